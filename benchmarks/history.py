"""What happened to every query of a chaos run, and whether it may have.

    python -m benchmarks.history FILE

The workload appends one line of JSON for each thing it sees, and whoever kills peers one for each of those;
nothing is ever changed. The judge reads the lines afterwards, in order, and knows nothing else: no mesh, no
clock, no process. It helps nobody.

1. Every query whose asker lives ends, once, within its budget: whole, or in an error with a code.
2. No gap and no duplicate in any stream, and no word that the echo does not say at that place.
3. Nothing of a query after its end or its error, and nothing of one that was never asked.
4. Attempts never fall, and numbered pieces follow one another (where the client is told: Python, not HTTP).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pmesh.engine.echo import token_id, words
from p2pmesh.query import Message

LATE_S = 1.0
"""Seconds by which an end may come to its client's ears after its budget. A guess, for busy cores."""
NEAR_S = 10.0
"""Seconds after a kill in which the pauses of a stream count as its doing."""

Row = Mapping[str, Any]


class History:
    """The lines, in memory and in a file."""

    def __init__(self, clock: Callable[[], float], file: Path | None = None) -> None:
        self.rows: list[Row] = []
        self._clock = clock
        self._file = None if file is None else file.open("a", encoding="utf-8", buffering=1)

    def add(self, what: str, **told: Any) -> None:
        """Append what happened now."""
        row = {"at": round(self._clock(), 4), "what": what, **told}
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()


def read(file: Path) -> list[Row]:
    """Return the lines of a file; one that was cut off by a crash, the last, is left out."""
    lines = file.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


@dataclass(frozen=True)
class Violation:
    """Something that may never happen did."""

    rule: str
    """`lost`, `late`, `after its end`, `gap`, `duplicate`, `wrong text`, `attempt`, `unasked`."""
    query: str
    detail: str
    count: int = 1
    """How many tokens, where tokens are counted."""


@dataclass
class _Asking:
    """One query, as its client saw it."""

    query: str
    asker: str
    due: float
    expected: list[str]
    """The tokens of the whole answer, as text."""
    next: int = 0
    """Place of the token that must follow."""
    pieces: int = 0
    attempt: int = 0
    over: str = ""
    orphaned: bool = False
    """Its asker's peer died, or its client went away: nobody waits for it."""


def tokens_of(text: str) -> list[str]:
    """Cut what an echo said into its tokens: words, each with the blank before it."""
    first, *rest = text.split(" ")
    return [*([first] if first else []), *(f" {word}" for word in rest)]


def answer_to(prompt: str) -> list[str]:
    """Return the tokens of the echo's whole answer."""
    return words((Message("user", prompt),))


@dataclass
class Judge:
    """Reads a history, and finds what may not be in it."""

    found: list[Violation] = field(default_factory=list)
    _askings: dict[str, _Asking] = field(default_factory=dict)
    _down: set[str] = field(default_factory=set)

    def read(self, rows: Iterable[Row]) -> list[Violation]:
        """Judge all of them, and what is missing at their end."""
        last = 0.0
        for row in rows:
            last = row["at"]
            self._row(row)
        for asking in self._askings.values():
            if not asking.over and not asking.orphaned:
                self._say("lost", asking.query, f"asked at {asking.asker}, and no end by {last:.1f}")
        return self.found

    def _say(self, rule: str, query: str, detail: str, count: int = 1) -> None:
        self.found.append(Violation(rule, query, detail, count))

    def _row(self, row: Row) -> None:
        match row["what"]:
            case "killed":
                self._down.add(row["peer"])
                for asking in self._askings.values():
                    asking.orphaned |= asking.asker == row["peer"] and not asking.over
            case "ready":
                self._down.discard(row["peer"])
            case "asked":
                self._asked(row)
            case "placed" | "piece" | "ended" | "failed" | "cut" | "left" as what:
                self._of_query(what, row)

    def _asked(self, row: Row) -> None:
        query, asker = row["query"], row["asker"]
        if query in self._askings:
            self._say("unasked", query, "two queries of one name")
        due = row["at"] + row["budget_s"] + LATE_S
        orphaned = asker in self._down
        self._askings[query] = _Asking(query, asker, due, answer_to(row["prompt"]), orphaned=orphaned)

    def _of_query(self, what: str, row: Row) -> None:
        asking = self._askings.get(row["query"])
        if asking is None:
            self._say("unasked", row["query"], f"{what}, and nobody asked")
            return
        if asking.over:
            self._say("after its end", asking.query, f"{what} after it had {asking.over}")
            return
        if row["at"] > asking.due and not asking.orphaned:
            self._say(
                "late", asking.query, f"{what} {row['at'] - asking.due + LATE_S:.2f} s after its budget"
            )
        if what == "piece":
            self._piece(asking, row)
        elif what == "ended":
            self._ended(asking, row)
        elif what == "cut" and not asking.orphaned:
            self._say("lost", asking.query, f"its stream was cut without an end: {row.get('detail', '')}")
        elif what == "failed" and not row.get("code"):
            self._say("lost", asking.query, "an error without a code")
        if what != "placed" and what != "piece":
            asking.over = what

    def _ended(self, asking: _Asking, row: Row) -> None:
        missing = len(asking.expected) - asking.next
        if missing > 0:
            self._say("gap", asking.query, f"it ended, and its last {missing} tokens never came", missing)
        told = row.get("tokens")
        if told is not None and told != asking.next:
            self._say("gap", asking.query, f"{told} tokens by its own count, {asking.next} arrived")

    def _piece(self, asking: _Asking, row: Row) -> None:
        attempt, index = row.get("attempt"), row.get("index")
        if attempt is not None:
            if attempt < asking.attempt:
                self._say("attempt", asking.query, f"a piece of attempt {attempt} after {asking.attempt}")
            asking.attempt = max(attempt, asking.attempt)
        if index is not None and index != asking.pieces:
            rule = "gap" if index > asking.pieces else "duplicate"
            self._say(rule, asking.query, f"piece {index} where {asking.pieces} must follow")
        asking.pieces += 1
        said = tokens_of(row["text"])
        ids = row.get("tokens")
        if ids is not None and list(ids) != [token_id(word) for word in said]:
            self._say("wrong text", asking.query, f"tokens that do not spell {row['text']!r}")
        for word in said:
            self._token(asking, word)

    def _token(self, asking: _Asking, word: str) -> None:
        """Find the place of a token. Words of one prompt differ, so that each has but one."""
        at, expected = asking.next, asking.expected
        if at < len(expected) and word == expected[at]:
            asking.next += 1
        elif word in expected[:at]:
            self._say("duplicate", asking.query, f"{word!r} again at {at}")
        elif word in expected[at:]:
            found = expected.index(word, at)
            self._say("gap", asking.query, f"{word!r} at {at}, it belongs to {found}", found - at)
            asking.next = found + 1
        else:
            self._say("wrong text", asking.query, f"{word!r} at {at}")


@dataclass
class Stream:
    """One stream, for figures."""

    asker: str
    asked_at: float
    path: tuple[str, ...] = ()
    """As last told; empty: not known, as nobody has told since one on it was killed."""
    first_path: tuple[str, ...] = ()
    """As first told."""
    times: list[float] = field(default_factory=list)
    over: str = ""
    ended_at: float = 0.0
    code: str = ""
    resumed: int = 0
    kills: list[float] = field(default_factory=list)
    """When somebody on its path was killed."""
    orphaned: bool = False


def streams_of(rows: Iterable[Row]) -> dict[str, Stream]:
    """Return what became of each query."""
    streams: dict[str, Stream] = {}
    for row in rows:
        if row["what"] == "asked":
            streams[row["query"]] = Stream(row["asker"], row["at"])
        elif row["what"] == "killed":
            for stream in streams.values():
                if not stream.over:
                    _struck(stream, row)
        elif row.get("query", "") in streams:
            _went_on(streams[row["query"]], row)
    return streams


def _struck(stream: Stream, row: Row) -> None:
    if row["peer"] == stream.asker:
        stream.orphaned = True
    elif row["peer"] in stream.path and stream.times:
        stream.kills.append(row["at"])
        stream.path = ()


def _went_on(stream: Stream, row: Row) -> None:
    match row["what"]:
        case "placed":
            stream.path = tuple(row["path"])
            stream.first_path = stream.first_path or stream.path
        case "piece":
            stream.times.append(row["at"])
        case "ended" | "failed" | "cut" | "left" as what:
            stream.over, stream.ended_at = what, row["at"]
            stream.path = tuple(row.get("path", ())) or stream.path
            stream.code, stream.resumed = row.get("code", ""), len(row.get("resumed", ()))


def pauses(streams: Iterable[Stream]) -> list[float]:
    """Return, for each kill that hit a stream which went on, the longest pause between two pieces from the
    last one before the kill on: a piece that was under way already hides nothing."""
    found = []
    for stream in streams:
        for at in stream.kills:
            before = max(t for t in stream.times if t <= at)
            times = [t for t in stream.times if before <= t <= at + NEAR_S]
            if any(t > at for t in times):
                found.append(max(b - a for a, b in itertools.pairwise(times)))
    return found


def counts(rows: Iterable[Row], found: Iterable[Violation]) -> dict[str, Any]:
    """Return the figures that every scenario prints."""
    rows, found = list(rows), list(found)
    streams = [s for s in streams_of(rows).values() if not s.orphaned and s.over != "left"]
    rules: Counter[str] = Counter()
    for violation in found:
        rules[violation.rule] += violation.count
    codes = Counter(s.code for s in streams if s.over == "failed")
    return {
        "streams": len(streams),
        "whole": sum(s.over == "ended" for s in streams),
        "failed": dict(codes),
        "hit": sum(bool(s.kills) for s in streams),
        "hit_and_whole": sum(bool(s.kills) and s.over == "ended" for s in streams),
        "resumed": sum(bool(s.resumed) for s in streams),
        "pieces": sum(len(s.times) for s in streams),
        "lost": rules["lost"] + rules["late"],
        "duplicated_tokens": rules["duplicate"],
        "gaps": rules["gap"],
        "wrong_text": rules["wrong text"],
        "other_violations": rules["after its end"] + rules["attempt"] + rules["unasked"],
        "violations": [f"{v.rule}: {v.query}: {v.detail}" for v in found[:20]],
    }


def main() -> None:
    """Judge a file from the command line; exit with 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description="Judge a history.")
    parser.add_argument("file", type=Path)
    rows = read(parser.parse_args().file)
    found = Judge().read(rows)
    print(json.dumps(counts(rows, found), indent=1))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
