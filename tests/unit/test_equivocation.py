"""Two records of one version put their owner out, everywhere; and nobody is put out by anything less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from p2pmesh.errors import Untrusted
from p2pmesh.protocol import equivocation
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.record import PeerId, SignedRecord, Version
from p2pmesh.sim.signer import SimSigner
from tests.machines import ABLE, ME, UNABLE, A, B, Bench, C, D, of, sent, signed
from tests.unit.test_admission import Trust, let_go

V1 = Version(1, 1)
WHITE, BLACK = signed(D, V1, UNABLE), signed(D, V1, ABLE)
EVIDENCE = m.Evidence(WHITE, BLACK)


class Banning(Trust):
    """Who is banned is out, until it is pardoned; junk certificates are no news to it."""

    def ban(self, peer: PeerId, certificates: Sequence[bytes]) -> bool:
        if b"junk" in certificates:
            raise Untrusted("0 of 1 signers have let it in")
        if peer in self.out:
            return False
        self.out.add(peer)
        return True

    def vouches(self, peer: PeerId, certificate: bytes, zones: object) -> bool:
        return peer not in self.out


def meshed(*peers: PeerId) -> Bench:
    bench = Bench(UNABLE, trust=Banning())
    bench.link(*peers, capability=UNABLE)
    bench.wait(1.0)
    return bench


def told(effects: list[e.Effect]) -> dict[PeerId, m.Evidence]:
    return {s.peer: s.message for s in of(effects, e.Send) if isinstance(s.message, m.Evidence)}


def line(record: SignedRecord) -> m.Line:
    return m.Line(record.record.id, record.record.version, 1, record.mark)


def test_another_record_of_the_same_version_is_asked_for_and_puts_its_owner_out() -> None:
    bench = meshed(A, B, D)  # D has given the one
    effects = bench.say(A, m.Announce((line(BLACK),)))
    assert sent(effects, m.Pull, A) == [m.Pull((D,))]
    effects = bench.say(A, m.Records((BLACK,)))
    assert told(effects) == dict.fromkeys((A, B, D), EVIDENCE)
    assert let_go(effects) == [D]
    assert [n.peer for n in of(effects, e.Notify)] == [D, D]
    assert "signed two records" in of(effects, e.Notify)[0].what


def test_the_same_record_is_not_asked_for_again() -> None:
    bench = meshed(A, D)
    assert not sent(bench.say(A, m.Announce((line(WHITE),))), m.Pull)
    assert not sent(bench.say(A, m.Announce((replace(line(BLACK), mark=b""),))), m.Pull)
    assert not told(bench.say(A, m.Records((WHITE,))))


def test_a_comparison_of_sums_brings_it_to_light_too() -> None:
    bench = meshed(A, D)
    [digest] = sent(bench.handle(e.Connected(B)), m.Digest, B)
    other = meshed(A)
    other.say(A, m.Records((BLACK,)))
    [lines] = sent(other.say(A, digest), m.Lines, A)
    assert m.Pull((D,)) in sent(bench.say(A, lines), m.Pull)


def test_what_is_passed_on_is_looked_at_acted_upon_and_passed_on_once() -> None:
    bench = meshed(A, B, C, D)
    effects = bench.say(A, EVIDENCE)
    assert told(effects) == dict.fromkeys((B, C, D), EVIDENCE)
    assert let_go(effects) == [D]
    bench.handle(e.Disconnected(D))
    for peer in (A, B, C):
        assert not of(bench.say(peer, EVIDENCE), e.Send)
        assert not let_go(bench.say(peer, replace(EVIDENCE, first=BLACK, second=WHITE)))


@pytest.mark.parametrize(
    ("evidence", "why"),
    [
        (m.Evidence(WHITE, WHITE), "twice the same"),
        (m.Evidence(WHITE, signed(D, Version(1, 2), ABLE)), "two versions"),
        (m.Evidence(WHITE, signed(C, V1, ABLE)), "of two peers"),
        (m.Evidence(WHITE, signed(D, V1, ABLE, signer=A)), "never signed"),
        (m.Evidence(signed(D, V1, ABLE, signer=A), WHITE), "never signed"),
        (m.Evidence(WHITE, replace(WHITE, certificate=b"another")), "never signed"),
    ],
)
def test_what_proves_nothing_puts_out_nobody_but_who_says_it(evidence: m.Evidence, why: str) -> None:
    bench = meshed(A, B, D)
    effects = bench.say(A, evidence)
    assert let_go(effects) == [A]
    assert why in of(effects, e.Notify)[0].what
    assert not told(effects)


def test_the_word_of_one_that_was_never_let_in_is_evidence_of_nothing() -> None:
    """Anybody can make keys, and let each of them say two things. Who passes it on may know more signers."""
    bench = meshed(A, B)
    stranger = m.Evidence(*(resigned(record, b"junk") for record in (WHITE, BLACK)))
    effects = bench.say(A, stranger)
    assert let_go(effects) == []
    assert "signers have let it in" in of(effects, e.Notify)[0].what
    assert not told(effects)


def resigned(record: SignedRecord, certificate: bytes) -> SignedRecord:
    changed = replace(record, certificate=certificate)
    return replace(changed, signature=SimSigner(record.record.id).sign(changed.signed))


def test_who_still_tells_of_it_has_not_heard_and_is_told_once() -> None:
    bench = meshed(A, D)
    bench.say(A, EVIDENCE)
    bench.link(B, capability=UNABLE)
    hers = m.Announce((line(WHITE),))
    assert told(bench.say(B, hers)) == {B: EVIDENCE}
    assert not told(bench.say(B, hers))
    assert not told(bench.say(A, hers))
    bench.handle(e.Disconnected(B))
    bench.link(B, capability=UNABLE)
    assert told(bench.say(B, hers)) == {B: EVIDENCE}


def pardoned() -> Bench:
    """One that is linked to A and B, and has heard that D was let in anew."""
    bench = meshed(A, B, D)
    bench.say(A, EVIDENCE)
    bench.handle(e.Disconnected(D))
    trust = bench.machine._admission._trust
    assert isinstance(trust, Banning)
    trust.out.clear()
    return bench


def test_who_was_let_in_anew_is_told_of_no_more() -> None:
    bench = pardoned()
    newer = signed(D, Version(2, 1), UNABLE)
    bench.say(A, m.Records((newer,)))
    assert D in bench.machine.gossip.records
    assert not told(bench.say(B, m.Announce((line(newer),))))


def test_who_says_two_things_again_after_he_was_let_in_anew_is_told_of_to_all_again() -> None:
    bench = pardoned()
    white, black = (signed(D, Version(2, 1), able) for able in (UNABLE, ABLE))
    bench.say(A, m.Records((white,)))
    assert told(bench.say(B, m.Records((black,)))) == dict.fromkeys((A, B), m.Evidence(white, black))


def test_our_own_key_in_other_hands_is_told_of_too() -> None:
    bench = meshed(A, B)
    other = signed(ME, bench.machine.gossip.me.record.version, ABLE)
    effects = bench.say(A, m.Announce((line(other),)))
    assert sent(effects, m.Pull, A) == [m.Pull((ME,))]
    effects = bench.say(A, m.Records((other,)))
    assert set(told(effects)) == {A, B}
    assert of(effects, e.Notify)[0].peer == ME


def test_only_so_much_evidence_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivocation, "KEPT_MAX", 2)
    bench = meshed(A)
    for name in "xyz":
        liar = PeerId(name)
        bench.say(A, m.Evidence(signed(liar, V1, ABLE), signed(liar, V1, UNABLE)))
    assert list(bench.machine._equivocation._kept) == ["y", "z"]


@pytest.mark.parametrize("first", [WHITE, BLACK])
def test_where_nobody_is_out_all_hold_the_same_in_the_end(first: SignedRecord) -> None:
    bench = Bench(UNABLE)
    bench.link(A, B, capability=UNABLE)
    bench.say(A, m.Records((first,)))
    effects = []
    for _ in range(2):
        for record in (WHITE, BLACK):
            effects += bench.say(B, m.Records((record,)))
    assert bench.machine.gossip.records[D].mark == max(WHITE.mark, BLACK.mark)
    assert not told(effects)
    assert not let_go(effects)
    assert {n.peer for n in of(effects, e.Notify)} == {D}
    assert not let_go(bench.say(A, EVIDENCE))
    for number in range(100):
        bench.say(A, m.Evidence(signed(PeerId(f"x{number}")), signed(PeerId(f"x{number}"), V1, UNABLE)))
    assert not bench.machine._equivocation._told
