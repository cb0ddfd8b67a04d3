"""Who asked: an open query is signed by its origin, and nobody is charged for what others ask in his name.

What is signed is what the asker said, in which attempt, and in which life of its peer; not the way, which
each on it changes. One of a zone needs none of it: it is sealed, and its origin's signature is inside
(`trust.sealing`). It knows queries and the signer that it is given.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from p2pmesh.protocol.admission import Signer
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.messages import Forward
from p2pmesh.query import Query

_DOMAIN = b"p2pmesh/asked/1\0"


class Origins:
    """The part of a machine that signs what is asked at it, and checks what was asked elsewhere."""

    def __init__(self, codec: Codec, signer: Signer) -> None:
        self._codec, self._signer = codec, signer

    def signed(self, query: Query, epoch: int) -> Query:
        """Return `query`, which was asked here in the life of that `epoch`, signed."""
        return replace(query, signature=self._signer.sign(self._body(query, epoch)))

    def proven(self, query: Query, epoch: int) -> bool:
        """Return whether it was asked where it says, in the life of that `epoch`: one of an earlier life is
        played back."""
        return self._signer.verify(query.origin, self._body(query, epoch), query.signature)

    def _body(self, query: Query, epoch: int) -> bytes:
        # As the wire has it, so that 0 and 0.0 are one.
        said = Query(
            query.id,
            query.origin,
            query.messages,
            query.options,
            model=query.model,
            zone=query.zone,
            attempt=query.attempt,
            accepted=query.accepted,
        )
        asked = hashlib.sha256(self._codec.encode(Forward(said))).digest()
        return _DOMAIN + epoch.to_bytes(8, "big") + asked
