"""What a peer says of itself: who it is, what it can do, how busy it is.

Plain values. This module knows no message, no wire and no clock; how records travel is `protocol.gossip`'s
business, and how they are signed is `trust`'s.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import NewType

import numpy as np
from numpy.typing import NDArray

PeerId = NewType("PeerId", str)
"""A peer's identity: libp2p's peer id (the multihash of its public key) as base58 text."""

NOBODY = PeerId("")
"""The id of no peer."""

Vector = NDArray[np.int8]
"""A unit vector scaled to int8, shape (dimensions,): full width int8 loses nothing that routing needs
(measured, research on 10 000 peers), and 384 dimensions are 384 bytes."""

GENERAL = "general"
"""The name of the skill that every topic is equally near to."""


def quantise(vector: NDArray[np.floating]) -> Vector:
    """Return `vector` scaled to the int8 unit sphere: shape kept, largest length 127.

    Raises `ValueError` for a zero or non-finite vector, which has no direction.
    """
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0.0:
        raise ValueError("a vector needs a finite, non-zero length")
    return np.rint(np.asarray(vector, dtype=np.float64) / length * 127.0).astype(np.int8)


def unit(vector: Vector) -> NDArray[np.float32]:
    """Return `vector` at length 1, so that a product of two is their cosine; a zero vector stays zero."""
    wide = vector.astype(np.float32)
    length = float(np.sqrt(wide @ wide))
    return wide / np.float32(length) if length else wide


def cosine(a: Vector, b: Vector) -> float:
    """Return the cosine of the angle between two vectors of one space, in -1..1."""
    return float(unit(a) @ unit(b))


@dataclass(frozen=True, eq=False)
class Skill:
    """One thing a peer is good at: a direction in the embedding space, and how good it claims to be there."""

    name: str
    vector: Vector | None
    """Direction, int8 shape (384,) in `Capability.space`; None for the general skill."""
    quality: float = 0.5
    """Claimed quality of its answers in this topic, 0..1."""
    evaluations: int = 0
    """How many judged answers the claim rests on; 0 is a declaration."""
    model: str = ""
    """The name of the model that has it; empty: any model of this peer."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Skill):
            return NotImplemented
        mine, theirs = (
            (s.name, s.quality, s.evaluations, s.model, None if s.vector is None else s.vector.tobytes())
            for s in (self, other)
        )
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self.name, self.model, self.quality))


CONVERSATIONS_MAX = 1_024
"""Most conversations that a model may say it keeps: each has a key in its peer's memory."""


@dataclass(frozen=True)
class ModelInfo:
    """One model a peer serves, and how fast it measured it to be."""

    name: str
    digest: str
    """SHA-256 of the model file, in hex: peers with the same digest have the same mind."""
    context_tokens: int
    """Longest prompt plus answer of one query, in tokens."""
    prefill_tps: float
    """Prompt tokens read per second of one uncontended slot."""
    decode_tps: float
    """Answer tokens written per second of one uncontended slot."""
    slots: int
    """Queries it runs at once; 0: it is being restarted, and will be back."""
    prefixes: int = 0
    """How many conversations it keeps in its KV cache, so that the next turn need not read them again; 0:
    none."""
    zones: tuple[str, ...] = ()
    """Labels of what it was made of: it answers only queries of these zones, and what it is good at counts
    for no others. Empty: for every zone that its peer may see."""

    def answers_in(self, zone: str) -> bool:
        """Return whether it may answer a query of `zone`, as far as its own labels say."""
        return not self.zones or zone in self.zones


DEVICES_MAX = 8
"""Most GPUs that a peer tells of."""
DEVICE_BYTES_MAX = 64
"""Longest name of one, in bytes of UTF-8."""


@dataclass(frozen=True)
class Device:
    """A GPU that a peer can put layers on, as it was when its models had been loaded."""

    name: str
    """What its driver calls it."""
    free_bytes: int
    total_bytes: int
    shared: bool = False
    """Whether its memory is the CPU's."""


@dataclass(frozen=True)
class Capability:
    """What a peer can do. Kilobytes; changes rarely; signed by its owner."""

    space: str = ""
    """Names the embedding model its skill vectors live in; empty: this peer cannot embed."""
    skills: tuple[Skill, ...] = ()
    models: tuple[ModelInfo, ...] = ()
    """Empty: a peer that asks and relays, and answers nothing."""
    zones: tuple[str, ...] = (GENERAL,)
    """Labels of the data it may see."""
    devices: tuple[Device, ...] = ()
    """Its GPUs, at most `DEVICES_MAX`. For people: how fast it is says `ModelInfo`, which was measured."""

    @cached_property
    def directions(self) -> tuple[tuple[Skill, ...], NDArray[np.float32]]:
        """The skills with a direction, as long as the first one's, and these at length 1: a row each."""
        first = next((s.vector for s in self.skills if s.vector is not None), None)
        if first is None:
            return (), np.empty((0, 0), np.float32)
        skills = tuple(s for s in self.skills if s.vector is not None and s.vector.shape == first.shape)
        return skills, np.stack([unit(s.vector) for s in skills if s.vector is not None])

    def zones_of(self, model: ModelInfo) -> tuple[str, ...]:
        """Return the zones whose queries `model` may answer here."""
        return tuple(zone for zone in self.zones if model.answers_in(zone))

    def directions_in(self, zone: str) -> tuple[tuple[Skill, ...], NDArray[np.float32]]:
        """Return `directions` without those skills whose models answer no query of `zone`."""
        skills, vectors = self.directions
        silent = {model.name for model in self.models if not model.answers_in(zone)}
        if not silent:
            return skills, vectors
        if len(silent) == len(self.models):  # what any of them is good at counts for nothing, too
            silent.add("")
        kept = [row for row, skill in enumerate(skills) if skill.model not in silent]
        return tuple(skills[row] for row in kept), vectors[kept]

    def model(self, name: str) -> ModelInfo | None:
        """Return the model called `name`, or None."""
        return next((m for m in self.models if m.name == name), None)


HELD_MAX = 16
"""Most conversations that a load tells of: 160 bytes of a report. A guess: a small peer's slots four times
over."""


@dataclass(frozen=True)
class Load:
    """How busy a peer is. Bytes; pushed when it moves."""

    remaining_s: float = 0.0
    """Seconds until its queue, as it stands, is served: a finish time, so it drains without messages."""
    free_slots: int = 0
    queued: int = 0
    """Queries that wait for a slot."""
    running: tuple[float, ...] = ()
    """Of each query that runs, the seconds of work that are left, alone on the model: what tells how long one
    more would take beside them."""
    waiting_s: float = 0.0
    """Seconds of work, alone on the model, of all that wait."""
    held: tuple[bytes, ...] = ()
    """Keys of the conversations that its models hold in their KV caches, at most `HELD_MAX`, the most recent
    first: who knows a conversation can tell whether it is among them."""
    pace: float = 1.0
    """How many times as fast as their records say its models were of late; 0.2: a machine that swaps. The
    seconds above reckon with it already; the work of one more query does not."""


VERSION_MAX = 2**62
"""Highest epoch and highest seq: what fits msgpack's integers with room to spare."""


@dataclass(frozen=True)
class Version:
    """Which of two records of one peer is newer. Only the owner makes one: a new `epoch` each start, `seq`
    within it. A peer refutes a suspicion of version v by publishing a newer one (SWIM's incarnation)."""

    epoch: int
    seq: int

    def next(self) -> Version:
        """Return the next newer version, of a new epoch where this one is used up."""
        used_up = self.seq >= VERSION_MAX
        return Version(self.epoch + 1, 1) if used_up else Version(self.epoch, self.seq + 1)

    def __lt__(self, other: Version) -> bool:
        return (self.epoch, self.seq) < (other.epoch, other.seq)

    def __le__(self, other: Version) -> bool:
        return (self.epoch, self.seq) <= (other.epoch, other.seq)


@dataclass(frozen=True)
class PeerRecord:
    """A peer as it describes itself."""

    id: PeerId
    version: Version
    name: str = ""
    """For people; not unique, proves nothing."""
    addresses: tuple[str, ...] = ()
    """Multiaddresses it listens on, without the peer id."""
    capability: Capability = field(default_factory=Capability)
    seal_key: bytes = b""
    """The public key that queries of a zone are sealed to for it; another one each day."""


SEAL_KEY_BYTES = 32
"""Length of one: X25519."""
STATEMENT_BYTES_MAX = 8_192
"""Longest certificate, or other statement of signers, in bytes: sixteen of them, and sixteen zones of
four-byte characters."""


@dataclass(frozen=True)
class SignedRecord:
    """A record with the exact bytes its owner signed, which are what is passed on."""

    record: PeerRecord
    body: bytes
    signature: bytes
    certificate: bytes = b""
    """What proves that its owner is in the mesh, and may see the zones it names; nothing, where there is no
    mesh to be in."""

    @property
    def signed(self) -> bytes:
        """What the signature is under."""
        return record_to_sign(self.body, self.certificate)

    @cached_property
    def mark(self) -> bytes:
        """`MARK_BYTES` that tell this record from any other, the same on every peer."""
        return hashlib.blake2b(self.signed, digest_size=MARK_BYTES).digest()


MARK_BYTES = 16
"""Length of a record's mark. Two records with the same one take 2^64 hashes to find (birthday bound)."""


def record_to_sign(body: bytes, certificate: bytes) -> bytes:
    """Return what the owner of a record signs: the record's `body`, and which `certificate` goes with it, so
    that nobody can put another in its place; under a heading of its own, so that no signature of anything
    else serves for a record."""
    return b"p2pmesh/record/1\0" + hashlib.sha256(certificate).digest() + body
