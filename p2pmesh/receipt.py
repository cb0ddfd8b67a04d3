"""What whoever wrote an answer signs of it: which words, by which model, to which question. Plain values.

It knows bytes, and neither keys nor the wire: who signs it and who checks it brings a key. A receipt proves
who *claims* to have said what; that the model was really run, nobody can prove so.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any

from p2pmesh.record import PeerId

DIGEST_BYTES = 32
"""Length of the two digests: SHA-256."""
_DOMAIN = b"p2pmesh/receipt/1\0"
_COUNT_MAX = 2**31 - 1


@dataclass(frozen=True)
class Receipt:
    """Who gave which answer to what."""

    query_id: str
    attempt: int
    """The attempt under which the answer ended; peers that were lost may have written what came before."""
    executor: PeerId
    """Who ended the answer, and signs."""
    model: str
    digest: str
    """SHA-256 of the model file, in hex."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    asked: bytes
    """SHA-256 of what was asked, as the wire carries it: messages and options, id, origin and zone."""
    said: bytes
    """SHA-256 of the whole answer in UTF-8, with what an earlier attempt brought of it."""
    signature: bytes = b""
    """The executor's, of `body`. Empty: not signed yet."""

    def body(self) -> bytes:
        """Return what is signed: every field but the signature, behind its length in four bytes, in order."""
        parts = []
        for field in fields(self)[:-1]:
            value = getattr(self, field.name)
            raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
            parts.append(len(raw).to_bytes(4, "big") + raw)
        return _DOMAIN + b"".join(parts)

    def tells(self, text: str) -> bool:
        """Return whether `text` is the answer it is of."""
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() == self.said

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it: bytes in hex."""
        return {name: v.hex() if isinstance(v, bytes) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, raw: object) -> Receipt:
        """Return what `to_json` made. Raises ValueError, naming the field."""
        if not isinstance(raw, dict):
            raise ValueError("a receipt is an object")
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in raw]:
            raise ValueError(f"the receipt lacks {missing[0]!r}")
        values = {name: raw[name] for name in names}
        for name in ("attempt", "prompt_tokens", "completion_tokens"):
            if type(values[name]) is not int or not 0 <= values[name] <= _COUNT_MAX:
                raise ValueError(f"{name!r} is to be a number")
        for name in sorted(set(names) - {"attempt", "prompt_tokens", "completion_tokens"}):
            if not isinstance(values[name], str):
                raise ValueError(f"{name!r} is to be a text")
        try:
            raws = {name: bytes.fromhex(values[name]) for name in ("asked", "said", "signature")}
        except ValueError:
            raise ValueError("'asked', 'said' and 'signature' are to be hex digits") from None
        return cls(**{**values, **raws})
