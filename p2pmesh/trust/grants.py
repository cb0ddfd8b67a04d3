"""What a signer's machine may sign for others by itself: rules, and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from p2pmesh.record import PeerId
from p2pmesh.trust.roster import SKEW_S, Member
from p2pmesh.trust.statements import Certificate, Statement

NO_KEY = (
    "this peer signs for nobody: no signer's key was on this machine when it was started (`p2pmesh mesh key` "
    "makes one, and `p2pmesh mesh change --add`, where one signs already, lets it sign)"
)
NOT_A_SIGNER = (
    "this peer signs for nobody: the signer's key on this machine is not, or not yet, one of those who sign "
    "(`p2pmesh status --json` has them)"
)
TWO_CHANGES = (
    "this machine has signed another change that does not hold yet, and two would make two meshes: --anew "
    "signs this one all the same; see that nobody signs the other"
)


def is_fair(new: Statement, old: Certificate, member: Member, now: float) -> bool:
    """Return whether `new` asks for no more than `member` has by its `old` certificate, and begins now."""
    return (
        isinstance(new, Certificate)
        and (new.mesh, new.peer, new.since) == (old.mesh, old.peer, old.since)
        and member.zones.issuperset(new.zones)
        and abs(now - new.not_before) <= SKEW_S / 2
        and new.not_after - new.not_before <= old.not_after - old.not_before
    )


def zones_by(
    policy: Mapping[str, Collection[PeerId]], peer: PeerId, zones: Collection[str]
) -> tuple[str, ...]:
    """Return the zones that `peer`, which had `zones`, is to see by a `policy`: who is named sees a zone that
    is named there, and nobody else; of the others it says nothing."""
    kept = {zone for zone in zones if zone not in policy}
    return tuple(sorted(kept | {zone for zone, peers in policy.items() if peer in peers}))
