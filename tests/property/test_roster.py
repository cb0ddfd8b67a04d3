"""Whatever order statements come in, and however often, the same roster follows."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.errors import Untrusted
from p2pmesh.trust.roster import Roster
from p2pmesh.trust.statements import Signed
from tests.unit.keyring import ADA, BLAISE, KEYS, NOW, certificate, genesis, revocation

MESH = genesis(*KEYS[:3])
PEERS = (ADA, BLAISE)


def statements(rng: Random) -> list[Signed]:
    """Revocations by signers, together and apart, and by others."""
    said = []
    for _ in range(rng.randrange(6)):
        keys = rng.sample(KEYS, rng.randrange(3))
        said.append(revocation(MESH, *keys, peer=rng.choice(PEERS), at=NOW + rng.randrange(3)))
    return said


def heard(said: list[Signed], rng: Random) -> Roster:
    """A roster that was told all of it, in some order, as often as gossip tells."""
    roster = Roster(MESH)
    for _ in range(2):
        for signed in rng.sample(said, len(said)):
            try:
                roster.add(Signed.parse(signed.to_bytes()), NOW)
            except Untrusted:
                continue
    return roster


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_the_order_and_the_number_of_times_do_not_matter(seed: int) -> None:
    """A revocation that two signers had signed apart from one another was told as the one's alone."""
    said = statements(Random(seed))
    one, other = (heard(said, Random(seed + n)) for n in range(2))
    told = Roster(MESH)
    for signed in one:
        told.add(signed, NOW)
    certificates = [
        certificate(MESH, key, peer=p, since=NOW + b) for key in KEYS for p in PEERS for b in (0, 2)
    ]
    for roster in (other, told):
        assert all(roster.revoked_at(peer, NOW) == one.revoked_at(peer, NOW) for peer in PEERS)
        assert {s.digest for s in roster} == {s.digest for s in one}
        for signed in certificates:
            assert is_in(roster, signed) == is_in(one, signed)


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_revoked_stays_so_whatever_else_is_heard(seed: int) -> None:
    rng = Random(seed)
    out = revocation(MESH, KEYS[0], at=NOW + 5)
    roster = Roster(MESH)
    roster.add(out, NOW)
    for signed in statements(rng):
        try:
            roster.add(signed, NOW)
        except Untrusted:
            continue
        assert roster.revoked_at(ADA, NOW) >= NOW + 5


def is_in(roster: Roster, signed: Signed) -> bool:
    try:
        roster.check(signed, signed.statement.peer, NOW + 3)  # type: ignore[union-attr]
    except Untrusted:
        return False
    return True
