"""What a peer says of itself: directions, versions, equality."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from p2pmesh.record import (
    MARK_BYTES,
    Capability,
    PeerId,
    PeerRecord,
    SignedRecord,
    Skill,
    Version,
    cosine,
    quantise,
)
from tests.machines import MODEL


def test_a_quantised_vector_keeps_its_direction_in_one_byte_a_dimension() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = rng.normal(size=384), rng.normal(size=384)
        true = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert quantise(a).dtype == np.int8
        assert cosine(quantise(a), quantise(b)) == pytest.approx(true, abs=0.01)
        assert int(np.abs(quantise(a)).max()) <= 127


@pytest.mark.parametrize("bad", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_what_has_no_direction_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="length"):
        quantise(np.array(bad))


def test_the_cosine_of_the_same_is_one_of_the_opposite_minus_one_and_with_nothing_zero() -> None:
    one = quantise(np.array([3.0, 4.0]))
    assert cosine(one, one) == pytest.approx(1.0)
    assert cosine(one, -one) == pytest.approx(-1.0)
    assert cosine(one, np.zeros(2, np.int8)) == 0.0


def test_long_vectors_do_not_overflow() -> None:
    most = np.full(1_024, 127, np.int8)
    assert cosine(most, most) == pytest.approx(1.0)


def test_skills_are_equal_by_value_vectors_included() -> None:
    one, same, other = (Skill("s", quantise(np.array(v))) for v in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != Skill("s", None)
    assert one != "s"


@pytest.mark.parametrize(("older", "newer"), [((1, 1), (1, 2)), ((1, 9), (2, 0)), ((0, 0), (2**62, 2**62))])
def test_a_new_start_beats_any_change_of_an_older_life(
    older: tuple[int, int], newer: tuple[int, int]
) -> None:
    assert Version(*older) < Version(*newer)
    assert Version(*older) <= Version(*newer)
    assert not Version(*newer) <= Version(*older)
    assert Version(*older) <= Version(*older)


def test_a_record_is_told_from_any_other_by_its_mark_and_signed_with_its_certificate() -> None:
    plain = SignedRecord(PeerRecord(PeerId("a"), Version(1, 1)), b"body", b"signature", b"certificate")
    assert len(plain.mark) == MARK_BYTES
    assert replace(plain, signature=b"another").mark == plain.mark
    others = (replace(plain, body=b"body2"), replace(plain, certificate=b""))
    assert len({plain.mark, *(other.mark for other in others)}) == 3
    assert plain.signed not in {other.signed for other in others}
    assert plain.signed.startswith(b"p2pmesh/record/1")  # no receipt, and no statement, begins like that


def test_a_model_is_found_by_its_name() -> None:
    able = Capability(models=(MODEL,))
    assert able.model("small") is MODEL
    assert able.model("large") is None
