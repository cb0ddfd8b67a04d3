"""What signers state, and the bytes of it: how a mesh begins, who is in it, who is out. Pure.

It knows bytes and keys; no clock, no file, no wire. Whether a statement counts says `roster`. A statement is
kept and passed on as the very bytes that were signed, never encoded anew, so that there is nothing to
disagree about. Each kind has a number of its own within what is signed: no signature serves for another kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Protocol, TypeAlias

import msgspec
from typing_extensions import Self

from p2pmesh.errors import Untrusted
from p2pmesh.record import STATEMENT_BYTES_MAX, PeerId
from p2pmesh.trust.keys import PEER_ID_CHARS_MAX, public_key_of, verify

SIGNERS_MAX = 16
"""Most signers of a mesh. A guess: a few people, each with a spare key."""
ZONES_MAX = 15
"""Most zones in one certificate: a record has room for these and the general one."""
CHANGES_MAX = 32
"""Most times that the signers of a mesh change: all of it is shown at the door, to who was away meanwhile."""
NAME_BYTES_MAX = 64
"""Longest name of a mesh or a zone, in bytes of UTF-8."""
BYTES_MAX = STATEMENT_BYTES_MAX
"""Longest statement with its signatures."""
TIME_MAX = 2**40
"""Latest time, in Unix seconds."""
_DOMAIN = b"p2pmesh/statement/1\0"

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
_Peer = Annotated[str, msgspec.Meta(max_length=PEER_ID_CHARS_MAX)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=SIGNERS_MAX)]


class Quorum(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who signs, and how many of them it takes."""

    signers: Annotated[tuple[_Peer, ...], msgspec.Meta(min_length=1, max_length=SIGNERS_MAX)]
    """The peer ids of their keys, in order, each once."""
    admit: _Count
    """How many let a peer in."""
    zoned: _Count
    """How many let a peer see a zone, which is no fewer."""


class Genesis(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """How a mesh begins. Its digest is the mesh's id, so nobody has to sign it."""

    name: _Name
    quorum: Quorum
    salt: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    """Random, or two meshes of one name and one signer were the same."""


class Certificate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """A peer is in the mesh, and may see these zones beside the general one."""

    mesh: _Digest
    peer: _Peer
    zones: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=ZONES_MAX)]
    since: _Time
    """When a signer let it in, which a renewal does not change: what a revocation looks at."""
    not_before: _Time
    not_after: _Time


class Revocation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """A peer is out: no certificate counts of one that was let in at `at` or earlier. A later one lets it in
    again."""

    mesh: _Digest
    peer: _Peer
    at: _Time


class Change(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Others sign from `at` on. Most of those who signed until then must say so."""

    mesh: _Digest
    number: Annotated[int, msgspec.Meta(ge=1, le=CHANGES_MAX)]
    """How many there are with this one."""
    after: _Digest
    """The digest of the one before, of the genesis for the first: there is one history."""
    quorum: Quorum
    at: _Time


Statement: TypeAlias = Genesis | Certificate | Revocation | Change
_decoder: msgspec.msgpack.Decoder[Statement] = msgspec.msgpack.Decoder(Statement)
_Signature = tuple[_Peer, Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]]
_Whole = tuple[bytes, Annotated[tuple[_Signature, ...], msgspec.Meta(max_length=SIGNERS_MAX)]]
_whole: msgspec.msgpack.Decoder[_Whole] = msgspec.msgpack.Decoder(_Whole)


class Signer(Protocol):
    """A key: `net.identity.Identity`, or a test's."""

    @property
    def id(self) -> PeerId:
        """The peer id of the key."""

    def sign(self, body: bytes) -> bytes:
        """Return the 64-byte signature of `body`."""


@dataclass(frozen=True)
class Signed:
    """A statement, the bytes it was signed as, and by whom it says it was signed."""

    statement: Statement
    body: bytes
    signatures: tuple[tuple[PeerId, bytes], ...] = ()
    _holds: dict[PeerId, bool] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Whose signature was checked, and whether it holds."""

    @classmethod
    def of(cls, statement: Statement, keys: Iterable[Signer] = ()) -> Self:
        """Return `statement`, signed with each of `keys`. Raises Untrusted for one that could not be read."""
        body = msgspec.msgpack.encode(statement)
        return cls(_read(body), body).signed(keys)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return what `to_bytes` made bytes of. Raises Untrusted, and nothing else, for any other bytes; no
        signature has been checked then."""
        if len(data) > BYTES_MAX:
            raise Untrusted(f"a statement of {len(data)} bytes, at most {BYTES_MAX}")
        try:
            body, signatures = _whole.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Untrusted(f"not a statement: {error}") from None
        if len({signer for signer, _ in signatures}) < len(signatures):
            raise Untrusted("a statement with two signatures of one signer")
        return cls(_read(body), body, tuple((PeerId(signer), text) for signer, text in signatures))

    def to_bytes(self) -> bytes:
        """Return it as it travels and is kept."""
        return msgspec.msgpack.encode((self.body, self.signatures))

    def signed(self, keys: Iterable[Signer]) -> Self:
        """Return it with the signatures of `keys` beside those it has."""
        mine = {key.id: key.sign(_DOMAIN + self.body) for key in keys}
        return type(self)(self.statement, self.body, tuple(sorted({**dict(self.signatures), **mine}.items())))

    def signers(self, known: Collection[PeerId]) -> frozenset[PeerId]:
        """Return those of `known` who signed it indeed. No other signature is looked at: a stranger shall not
        make us work."""
        for signer, signature in self.signatures:
            if signer in known and signer not in self._holds:
                self._holds[signer] = verify(signer, _DOMAIN + self.body, signature)
        return frozenset(signer for signer, holds in self._holds.items() if holds and signer in known)

    def only(self, known: Collection[PeerId]) -> Self:
        """Return it without what is no signature of one of `known`: that is to be neither kept nor passed
        on."""
        good = self.signers(known)
        kept = tuple((signer, signature) for signer, signature in self.signatures if signer in good)
        return type(self)(self.statement, self.body, kept)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the body: of a genesis, the id of its mesh."""
        return hashlib.sha256(_DOMAIN + self.body).digest()


def check_name(what: str, name: str) -> None:
    """Raise Untrusted where a mesh, or a zone, should not be called `name`: people read it, and type it."""
    size = len(name.encode("utf-8", "surrogatepass"))
    blank = any(letter.isspace() for letter in name)
    if not 0 < size <= NAME_BYTES_MAX or blank or not name.isprintable():
        how = f"a name of 1 to {NAME_BYTES_MAX} bytes, all printable and no blanks"
        raise Untrusted(f"{what} has {how}, not {name[:80]!r}")


def _read(body: bytes) -> Statement:
    """Return the statement in `body`. Raises Untrusted for what cannot be one, whoever signed it."""
    try:
        statement = _decoder.decode(body)
        if isinstance(statement, (Genesis, Change)):
            _check_quorum(statement.quorum)
        else:
            public_key_of(statement.peer)
        names = (statement.name,) if isinstance(statement, Genesis) else getattr(statement, "zones", ())
        if any(len(name.encode()) > NAME_BYTES_MAX for name in names):
            raise ValueError(f"a name of more than {NAME_BYTES_MAX} bytes")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Untrusted(f"not a statement: {error}") from None
    if isinstance(statement, Certificate) and not statement.not_before < statement.not_after:
        raise Untrusted("a certificate that ends before it begins")
    return statement


def _check_quorum(quorum: Quorum) -> None:
    """Raise ValueError for one that nobody, or anybody, could satisfy."""
    if list(quorum.signers) != sorted(set(quorum.signers)):
        raise ValueError("the signers are to be in order, and each of them once")
    for signer in quorum.signers:
        public_key_of(signer)
    if not quorum.admit <= quorum.zoned <= len(quorum.signers):
        raise ValueError(
            f"of {len(quorum.signers)} signers {quorum.admit} are to admit, and {quorum.zoned}, which may be "
            "no fewer, to grant a zone"
        )
