"""What is shown at the door, and what is given for a ticket: the bytes of it. Pure.

What they prove `standing` judges.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from p2pmesh.errors import Untrusted
from p2pmesh.trust.statements import BYTES_MAX, CHANGES_MAX
from p2pmesh.trust.tickets import SECRET_BYTES, Ticket

ONE_OUTSIDE = "one is in a mesh and the other in none: it takes a ticket to join (p2pmesh join TICKET)"
"""Why two do not link, for both to tell."""
_Statement = Annotated[bytes, msgspec.Meta(max_length=BYTES_MAX)]
_Changes = Annotated[tuple[_Statement, ...], msgspec.Meta(max_length=CHANGES_MAX)]


class Papers(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """What a member shows."""

    certificate: _Statement
    draft: _Statement = b""
    """What it would have signed; empty: nothing."""
    changes: _Changes = ()
    """How the signers changed: whoever was away since knows none of those who sign now."""


class Secret(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """What the holder of a ticket shows."""

    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]


class Welcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the holder of a ticket is given."""

    genesis: _Statement
    certificate: _Statement
    changes: _Changes = ()


_shown = msgspec.msgpack.Decoder(Papers | Secret)


def read_shown(shown: bytes) -> Papers | Secret:
    """Return what somebody shows. Raises Untrusted where it is nothing of the kind."""
    if not shown:
        raise Untrusted(ONE_OUTSIDE)
    try:
        papers: Papers | Secret = _shown.decode(shown)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Untrusted("what it shows is no certificate") from None
    return papers


def shown_for(ticket: Ticket) -> bytes:
    """Return what the holder of `ticket` shows."""
    return msgspec.msgpack.encode(Secret(ticket.secret))
