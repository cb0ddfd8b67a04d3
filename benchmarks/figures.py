"""What is worked out of the benchmarks' measurements: percentiles, ratios, tables. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

Value = float | int | str | None
Row = dict[str, Value]


def percentile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest value that at least `share` of them do not exceed; None where there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def mean(values: Iterable[float]) -> float | None:
    """Return the mean; None where there are no values."""
    found = list(values)
    return statistics.fmean(found) if found else None


def gaps(times: Sequence[float], since: float = -math.inf, until: float = math.inf) -> list[float]:
    """Return the gaps between neighbouring times that lie at least in part within `since`..`until`."""
    pairs = itertools.pairwise(times)
    return [after - before for before, after in pairs if after > since and before < until]


def over(a: Value, b: Value) -> float | None:
    """Return a / b; None where either is missing or b is nothing."""
    if not isinstance(a, (int, float)) or not isinstance(b, (int, float)) or b <= 0:
        return None
    return a / b


def median_ratio(pairs: Iterable[tuple[Value, Value]]) -> float | None:
    """Return the median of the rounds' ratios, None where no round has one: paired, so that what the machine
    did meanwhile hits both sides."""
    ratios = [ratio for a, b in pairs if (ratio := over(a, b)) is not None]
    return round(statistics.median(ratios), 3) if ratios else None


def median(values: Iterable[Value], digits: int = 3) -> float | None:
    """Return the median of the numbers among `values`; None where there are none."""
    numbers = [value for value in values if isinstance(value, (int, float))]
    return round(statistics.median(numbers), digits) if numbers else None


def rounded(value: float | None, digits: int, scale: float = 1.0) -> float | None:
    """Return `value` times `scale`, rounded; None stays None."""
    return None if value is None else round(value * scale, digits)


def table(rows: Sequence[Mapping[str, Value]]) -> str:
    """Return the rows under one head, each column as wide as it needs."""
    if not rows:
        return ""
    names = list(rows[0])
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def _cell(value: Value) -> str:
    return "-" if value is None else str(value)
