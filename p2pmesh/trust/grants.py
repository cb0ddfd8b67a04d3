"""What a signer's machine may sign for others by itself: rules, and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from p2pmesh.record import PeerId
from p2pmesh.trust.roster import SKEW_S, Member, Roster
from p2pmesh.trust.statements import ZONES_MAX, Certificate, Signer, Statement

NO_KEY = (
    "this peer signs for nobody: no signer's key was on this machine when it was started (`p2pmesh mesh key` "
    "makes one, and `p2pmesh mesh change --add`, where one signs already, lets it "
    "sign; start this peer anew then)"
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


class Policy:
    """Who is to see which zone, where this machine signs; of a zone that is not named tickets decide."""

    def __init__(self, roster: Roster, key: Signer | None) -> None:
        self.zones: Mapping[str, Collection[PeerId]] = {}
        self._roster, self._key = roster, key

    def instead(self, peer: PeerId, said: Statement | None, now: float) -> tuple[str, ...] | None:
        """Return the zones that `peer` is to see in place of those of the certificate `said`: who is named
        sees a zone, and nobody else. None: it is right as it is, or not for this machine to say. One that
        will sign no more says nothing: whom it does not renew would be cut off."""
        quorums = (self._roster.quorum(now), *self._roster.upcoming(now))
        stays = self._key is not None and all(self._key.id in quorum.signers for quorum in quorums)
        if not (self.zones and stays and isinstance(said, Certificate)):
            return None
        kept = [zone for zone in said.zones if zone not in self.zones or peer in self.zones[zone]]
        new = sorted(zone for zone, peers in self.zones.items() if peer in peers and zone not in kept)
        # Nothing gives way to what is new: another signer would put it back, and this one again, without end.
        zones = {*kept, *new[: max(0, ZONES_MAX - len(kept))]}
        return None if zones == set(said.zones) else tuple(sorted(zones))
