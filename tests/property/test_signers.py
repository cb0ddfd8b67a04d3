"""However signers change, throw out and gossip: who hears all of it knows the same, and nobody says wrong."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.errors import Untrusted
from p2pmesh.peer.signers import Signers
from p2pmesh.record import PeerId
from p2pmesh.trust.standing import Standing
from tests.unit.keyring import ADA, BLAISE, CARL, KEYS, certificate, genesis
from tests.unit.test_standing import Clock

MESH = genesis(*KEYS[:3])
OUT = (ADA, BLAISE, CARL)


def tell(one: Standing, other: Standing) -> None:
    """What a new neighbour hears, as `protocol.admission` tells it."""
    _, wrong = other.learn(one.statements())
    assert wrong == ""


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_one_history_is_known_to_all_in_the_end(seed: int) -> None:
    rng, clock = Random(seed), Clock()
    members = []
    for number, key in enumerate(KEYS):
        me = PeerId(key.id)
        own = certificate(MESH, *KEYS[:3], peer=me)
        members.append(Standing(me, MESH, own, clock, key=KEYS[number]))
    pending: list[str] = []
    for _ in range(40):
        one, other = rng.sample(members, 2)
        match rng.randrange(6):
            case 0 | 1:
                tell(one, other)
            case 2:
                said: list[bytes] = []
                add = [rng.choice(KEYS).id]
                remove = [rng.choice(one.roster.last.signers)] if rng.random() < 0.5 else []
                try:
                    pending.append(Signers(one, said.append).change(add=add, remove=remove, after_s=0.0).text)
                except Untrusted:
                    continue
            case 3 if pending:
                try:  # an honest signer signs no second one, so no two of them hold
                    pending.append(Signers(one, lambda _: None).sign(rng.choice(pending)).text)
                except Untrusted:
                    continue
            case 4:
                try:
                    one.revoke(rng.choice(OUT))
                except Untrusted:
                    continue
            case _:
                clock.now += rng.random()
    for _ in range(2):
        for one in members:
            one.heard()
            for other in members:
                tell(one, other)
    clock.now += 1.0
    heads = {member.roster.last for member in members}
    assert len(heads) == 1
    for peer in OUT:
        assert len({member.roster.revoked_at(peer, clock.now) for member in members}) == 1
