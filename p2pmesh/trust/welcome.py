"""What becomes of a ticket at the one who shows it: the beginning of a standing. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from p2pmesh.errors import Untrusted
from p2pmesh.record import PeerId
from p2pmesh.trust.papers import Welcome
from p2pmesh.trust.standing import Standing
from p2pmesh.trust.statements import Signed
from p2pmesh.trust.tickets import Ticket


def welcomed(granted: bytes, ticket: Ticket, me: PeerId, clock: Callable[[], float]) -> Standing:
    """Return the standing that a peer has by what it was given for `ticket`. Raises Untrusted where that is
    not the mesh it was invited to, or does not let it in."""
    try:
        given = msgspec.msgpack.decode(granted, type=Welcome)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Untrusted(f"what was given for the ticket is no certificate: {error}") from None
    genesis = Signed.parse(given.genesis)
    if genesis.digest != ticket.mesh:
        raise Untrusted("what was given for the ticket is of another mesh")
    changes = [Signed.parse(change) for change in given.changes]
    standing = Standing(me, genesis, Signed.parse(given.certificate), clock, changes)
    standing.member()
    return standing
