"""Keys with known seeds, for what signers say."""

from __future__ import annotations

from p2pmesh.net.identity import Identity
from p2pmesh.record import PeerId
from p2pmesh.trust.statements import Certificate, Change, Genesis, Quorum, Revocation, Signed

DAY = 86_400
NOW = 1_800_000_000
KEYS = sorted((Identity.from_seed(bytes([n]) * 32) for n in range(1, 7)), key=lambda key: key.id)
"""In the order of their ids, as a quorum has them."""
ADA, BLAISE, CARL = (Identity.from_seed(bytes([n]) * 32).id for n in (101, 102, 103))


def quorum(*keys: Identity, admit: int = 1, zoned: int | None = None) -> Quorum:
    return Quorum(tuple(sorted(key.id for key in keys)), admit, zoned or admit)


def genesis(*keys: Identity, admit: int = 1, zoned: int | None = None) -> Signed:
    return Signed.of(Genesis("lab", quorum(*keys, admit=admit, zoned=zoned), bytes(16)))


def certificate(
    mesh: Signed,
    *keys: Identity,
    peer: PeerId = ADA,
    zones: tuple[str, ...] = (),
    since: int | None = None,
    begins: int = NOW,
    life: int = DAY,
) -> Signed:
    """Return a certificate, of one let in at NOW, or when it begins where that is before."""
    since = min(NOW, begins) if since is None else since
    return Signed.of(Certificate(mesh.digest, peer, zones, since, begins, begins + life), keys)


def change(
    mesh: Signed,
    before: list[Signed],
    *keys: Identity,
    to: tuple[Identity, ...],
    admit: int = 1,
    at: int = NOW,
) -> Signed:
    """Return the change after those `before` by which `to` sign from `at` on, signed by `keys`."""
    last = before[-1].digest if before else mesh.digest
    return Signed.of(Change(mesh.digest, len(before) + 1, last, quorum(*to, admit=admit), at), keys)


def revocation(mesh: Signed, *keys: Identity, peer: PeerId = ADA, at: int = NOW) -> Signed:
    return Signed.of(Revocation(mesh.digest, peer, at), keys)
