"""Receipts: whoever ends an answer signs it, and the peer that was asked believes no other.

It knows queries, answers' texts and the signer it is given. So nobody on the way can change an answer, pass a
model off as another, or answer in somebody else's name, without the asker's peer noticing it at the end.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from p2pmesh.protocol.admission import Signer
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.messages import Forward
from p2pmesh.query import Ended, Query
from p2pmesh.receipt import Receipt
from p2pmesh.record import PeerId


class Receipts:
    """The part of a machine that signs what it said, and checks what it was told."""

    def __init__(self, me: PeerId, codec: Codec, signer: Signer) -> None:
        self._me, self._codec, self._signer = me, codec, signer

    def signed(self, query: Query, ended: Ended, said: bytes) -> Ended:
        """Return the end of an answer that this peer gave, with its receipt; `said` is the digest of all of
        it."""
        receipt = self._of(query, ended, self._me, said)
        return replace(ended, receipt=replace(receipt, signature=self._signer.sign(receipt.body())))

    def holds(self, query: Query, ended: Ended, said: bytes) -> bool:
        """Return whether the peer at the end of the path signed that it gave this answer to that query."""
        if ended.receipt is None or not ended.path:
            return False
        executor = ended.path[-1].peer
        expected = self._of(query, ended, executor, said)
        if replace(ended.receipt, signature=b"") != expected:
            return False
        return self._signer.verify(executor, expected.body(), ended.receipt.signature)

    def _of(self, query: Query, ended: Ended, executor: PeerId, said: bytes) -> Receipt:
        # As the wire has it, so that 0 and 0.0 are one; and only what the asker said.
        plain = Query(query.id, query.origin, query.messages, query.options, zone=query.zone)
        asked = hashlib.sha256(self._codec.encode(Forward(plain))).digest()
        return Receipt(
            query.id,
            query.attempt,
            executor,
            ended.model,
            ended.digest,
            ended.finish_reason,
            ended.usage.prompt_tokens,
            ended.usage.completion_tokens,
            asked,
            said,
        )
