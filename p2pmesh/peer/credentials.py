"""What a peer keeps of its mesh: genesis, statements, certificate, tickets given out, and a signer's key.

Knows files. One file holds all but the key, so that it is whole or as it was; what is in it `trust.standing`
judges. A signer's key is a file of its own, made like a peer's, so that it can be taken off the machine.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from p2pmesh.config import ModelConfig
from p2pmesh.errors import ConfigError, Untrusted
from p2pmesh.net import identity as identities
from p2pmesh.net.identity import Identity
from p2pmesh.peer import state
from p2pmesh.record import GENERAL, PeerId
from p2pmesh.trust.keys import public_key_of
from p2pmesh.trust.roster import BANNED_MAX
from p2pmesh.trust.standing import Standing
from p2pmesh.trust.statements import ZONES_MAX, Genesis, Quorum, Signed, check_name
from p2pmesh.trust.tickets import OPEN_MAX, Invite

_log = logging.getLogger("p2pmesh.peer")
SIGNER_KEY = "signer.key"
CONTACTS_MAX = 4
"""Most addresses kept of who let this peer in."""
_FILE = "mesh"
_FILE_BYTES_MAX = 64 * 2**20
"""Longest file, in bytes: all who can ever have signed, 150 by `HISTORY_BYTES_MAX`, have each thrown out a
thousand, of 220 bytes."""


class _Kept(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What the file holds."""

    genesis: bytes
    certificate: bytes
    statements: list[bytes]
    contacts: Annotated[list[str], msgspec.Meta(max_length=CONTACTS_MAX)]
    invites: Annotated[list[Invite], msgspec.Meta(max_length=OPEN_MAX)]
    banned: Annotated[dict[str, int], msgspec.Meta(max_length=BANNED_MAX)] = {}
    approved: tuple[int, bytes] = (0, b"")
    former: Annotated[list[str], msgspec.Meta(max_length=BANNED_MAX)] = []


def load(path: Path, me: PeerId) -> tuple[Standing, tuple[str, ...]] | None:
    """Return the standing kept in the state directory `path`, kept up from now on, and the addresses of who
    let this peer in; None: in no mesh.

    Raises ConfigError where a file cannot be read or is damaged: nothing was changed.
    """
    data = state.kept(path, _FILE, _FILE_BYTES_MAX)
    if data is None:
        return None
    try:
        kept = msgspec.msgpack.decode(data, type=_Kept)
        signed = [Signed.parse(one) for one in (kept.genesis, kept.certificate, *kept.statements)]
        banned = {PeerId(peer): since for peer, since in kept.banned.items()}
        invites, key = tuple(kept.invites), _key(path)
        held = (signed[2:], invites, key, banned, [PeerId(peer) for peer in kept.former], kept.approved)
        standing = Standing(me, signed[0], signed[1], time.time, *held)
    except (msgspec.MsgspecError, Untrusted) as exc:
        raise ConfigError(
            f"{path / _FILE} is damaged or not ours ({exc}): restore it, or move it away and join anew"
        ) from None
    contacts = tuple(kept.contacts)
    standing.on_change = lambda: _keep(path, standing, contacts)
    standing.renewal()  # a founder that was away for too long lets itself in again
    return standing, contacts


def apply(zones: Mapping[str, Collection[str]], standing: Standing | None) -> None:
    """Grant `zones` where this machine signs, to itself too. Raises ConfigError for a zone or a peer that
    cannot be, and where there is no mesh."""
    if not zones:
        return
    try:
        if standing is None:
            raise Untrusted("this peer is in no mesh, so it grants nothing: `p2pmesh mesh create` founds one")
        many = Counter(peer for peers in zones.values() for peer in set(peers)).most_common(1)
        if many and many[0][1] > ZONES_MAX:
            raise Untrusted(
                f"a certificate has room for {ZONES_MAX} zones, and {many[0][0]!r} is to see {many[0][1]}"
            )
        for zone, peers in zones.items():
            check_name("a zone", zone)
            if zone == GENERAL:
                raise Untrusted("everybody sees the general zone")
            for peer in peers:
                _check_id(peer)
    except Untrusted as exc:
        raise ConfigError(f"zones: {exc}") from None
    if not standing.signs:
        _log.warning("this machine signs for nobody, so what its [zones] say has no effect")
    elif lost := [z for z in standing.zones() if z in zones and standing.me not in zones[z]]:
        _log.warning(
            "by its own [zones] this peer will not see %s: add %s to the list", ", ".join(lost), standing.me
        )
    standing.policy.zones = {zone: frozenset(map(PeerId, peers)) for zone, peers in zones.items()}
    standing.renewal()


def check_labels(models: Sequence[ModelConfig], standing: Standing | None) -> None:
    """Warn of a model that is for zones alone which this peer may not see: it will answer nothing. Raises
    ConfigError for what can be no zone."""
    seen = standing.zones() if standing is not None else (GENERAL,)
    for model in models:
        try:
            for zone in model.zones:
                check_name("a zone", zone)
            if len(model.zones) > ZONES_MAX:
                raise Untrusted(f"a model is for at most {ZONES_MAX} zones")
        except Untrusted as exc:
            raise ConfigError(f"models.zones of {model.model!r}: {exc}") from None
        if model.zones and not set(model.zones).intersection(seen):
            names = ", ".join(model.zones)
            _log.warning("the model %s is for %s alone, which this peer may not see", model.model, names)


def _check_id(peer: str) -> None:
    """Raise Untrusted where `peer` is no id of a key."""
    try:
        public_key_of(peer)
    except ValueError:
        raise Untrusted(f"{peer[:80]!r} is no id of a peer: `p2pmesh peers --json` has them") from None


def _keep(path: Path, standing: Standing, contacts: tuple[str, ...]) -> None:
    """Keep `standing` in `path`. Raises ConfigError where it cannot be written; it is then as it was."""
    kept = _Kept(
        standing.genesis.to_bytes(),
        standing.certificate(),
        list(standing.statements()),
        list(contacts),
        list(standing.invites),
        {str(peer): since for peer, since in standing.roster.banned.items()},
        standing.approved,
        sorted(standing.roster.former),
    )
    state.keep(path, _FILE, msgspec.msgpack.encode(kept))


def found(path: Path, me: Identity, name: str, zones: tuple[str, ...]) -> Standing:
    """Found a mesh in `path`, with a new signer's key, and let this peer in.

    Raises ConfigError where the peer is in a mesh already, or nothing can be written; it is then in none.
    """
    check_outside(path, me.id)
    try:
        check_name("a mesh", name)
    except Untrusted as exc:
        raise ConfigError(f"no such mesh can be: {exc}") from None
    key = identities.load_or_create(path / SIGNER_KEY)
    try:
        genesis = Signed.of(Genesis(name, Quorum((key.id,), 1, 1), secrets.token_bytes(16)))
        draft = Standing(me.id, genesis, genesis, time.time, key=key)
        standing = Standing(me.id, genesis, draft.certify(me.id, zones, int(time.time())), time.time, key=key)
    except Untrusted as exc:
        raise ConfigError(f"no such mesh can be: {exc}") from None
    _keep(path, standing, ())
    return standing


def joined(path: Path, standing: Standing, contacts: tuple[str, ...]) -> None:
    """Keep the standing that this peer was given, and where; in place of an older one in the same mesh.
    Raises ConfigError as `found` does."""
    check_outside(path, standing.me, standing.roster.mesh)
    older = load(path, standing.me)
    if older is not None:
        standing.learn(older[0].statements())  # it was thrown out, perhaps, or others were
        standing.invites, standing.approved = older[0].invites, older[0].approved
        for peer, since in older[0].roster.banned.items():
            standing.roster.ban_since(peer, since)
        standing.roster.former |= older[0].roster.former
    _keep(path, standing, contacts)


def check_outside(path: Path, me: PeerId, mesh: bytes = b"") -> None:
    """Raise ConfigError where the peer of `path` is in a mesh already, other than `mesh`."""
    already = load(path, me)
    if already is not None and already[0].roster.mesh != mesh:
        raise ConfigError(
            f"the peer in {path} is in a mesh already: give this one a state directory of its own, or move "
            f"{path / _FILE} away to leave that mesh for good"
        )


def _key(path: Path) -> Identity | None:
    with suppress(FileNotFoundError):
        return identities.load(path / SIGNER_KEY)
    return None
