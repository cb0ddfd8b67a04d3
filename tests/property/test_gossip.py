"""Merging is a join: the same records in any order, any number of times, leave the same knowledge."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.protocol import messages as m
from p2pmesh.record import PeerId, SignedRecord, Version
from tests.machines import ABLE, UNABLE, A, B, Bench, signed

pool = [
    signed(PeerId(f"n{peer}"), Version(epoch, seq), ABLE if seq % 2 else UNABLE)
    for peer in range(4)
    for epoch in (1, 2)
    for seq in (0, 1, 2)
] + [signed(PeerId("n0"), Version(9, 9), signer=A)]
frames = st.lists(st.lists(st.sampled_from(pool), max_size=6), max_size=8)


def knowledge(told: list[list[SignedRecord]]) -> dict[PeerId, SignedRecord]:
    bench = Bench()
    bench.link(A, B)
    for number, frame in enumerate(told):
        bench.say(A if number % 2 else B, m.Records(tuple(frame)))
    assert set(bench.machine.gossip.records) == set(bench.machine.membership.members)
    return bench.machine.gossip.records


@settings(max_examples=150, deadline=None)
@given(frames, st.randoms(use_true_random=False))
def test_order_repetition_and_packing_make_no_difference(told: list[list[SignedRecord]], rng: object) -> None:
    alone = [[record] for frame in told for record in frame]
    shuffled = alone + alone
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert knowledge(told) == knowledge(shuffled)


@settings(max_examples=150, deadline=None)
@given(frames)
def test_the_newest_that_was_signed_wins(told: list[list[SignedRecord]]) -> None:
    known = knowledge(told)
    for record in [r for frame in told for r in frame if r is not pool[-1]]:
        assert record.record.version <= known[record.record.id].record.version
    assert pool[-1] not in known.values()
