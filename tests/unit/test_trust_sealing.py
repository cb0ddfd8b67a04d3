"""Envelopes: who can open what, and what is told from outside."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import count

import pytest

from p2pmesh.errors import Untrusted
from p2pmesh.net.identity import Identity
from p2pmesh.trust.sealing import (
    BUCKETS,
    CHUNK_STEP,
    EARLY_S,
    KEPT_S,
    KEY_S,
    LATE_S,
    SALT_BYTES,
    AnswerCipher,
    Envelopes,
    bucket,
)

CONTEXT = b"this query, this attempt, from here, to there"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def dice(seed: int) -> Callable[[int], bytes]:
    rolls = count()
    return lambda size: hashlib.shake_256(f"{seed} {next(rolls)}".encode()).digest(size)


class Mail:
    """An origin and an executor, and what is between them."""

    def __init__(self, mesh: bytes = b"m" * 32) -> None:
        self.clock = Clock()
        self.asker = Identity.generate()
        self.origin = Envelopes(mesh, self.asker.sign, self.clock, dice(1))
        self.executor = Envelopes(mesh, Identity.generate().sign, self.clock, dice(2))

    def seal(self, data: bytes = b"secret", context: bytes = CONTEXT) -> tuple[bytes, AnswerCipher]:
        return self.origin.seal(data, context, self.executor.key())

    def open(self, sealed: bytes, context: bytes = CONTEXT) -> tuple[bytes, AnswerCipher]:
        return self.executor.open(sealed, context, self.asker.id)


@pytest.fixture
def mail() -> Mail:
    return Mail()


@pytest.mark.parametrize("length", [0, 1, 915, 916, 917, 4_000, 65_536, 70_000])
def test_the_executor_reads_what_was_sealed_to_it_and_the_asker_its_answer(mail: Mail, length: int) -> None:
    data = b"\0" * length  # also what looks as if it were filling
    sealed, asker = mail.seal(data)
    opened, writer = mail.open(sealed)
    assert opened == data
    pieces = [b"", b"one", b"two" * 999]
    closed = [writer.close(i, i == 2, piece) for i, piece in enumerate(pieces)]
    assert [asker.open(i, i == 2, piece) for i, piece in enumerate(closed)] == pieces


def test_what_is_seen_from_outside_is_a_step_of_its_length() -> None:
    mail = Mail()
    lengths = {len(mail.seal(b"x" * length)[0]) for length in range(0, 900, 10)}
    assert len(lengths) == 1
    assert [bucket(n) for n in (1, 1_024, 1_025, 65_536, 65_537)] == [
        1_024,
        1_024,
        4_096,
        65_536,
        65_536 + 16_384,
    ]
    assert tuple(sorted(BUCKETS)) == BUCKETS
    _, writer = mail.open(mail.seal()[0])
    closed = [writer.close(n, False, b"x" * n) for n in range(0, 250, 10)]
    assert {len(piece) for piece in closed} == {SALT_BYTES + CHUNK_STEP + 16}
    assert b"x" * 8 not in b"".join(closed)
    assert b"secret" not in mail.seal()[0]


@pytest.mark.parametrize("at", [0, 8, 40, 60, 500, -1])
def test_a_bit_that_was_changed_opens_nothing(mail: Mail, at: int) -> None:
    sealed = bytearray(mail.seal()[0])
    sealed[at] ^= 1
    with pytest.raises(Untrusted):
        mail.open(bytes(sealed))


@pytest.mark.parametrize("cut", [0, 7, 8, 39, 40, 56, 1_000])
def test_what_was_cut_off_opens_nothing(mail: Mail, cut: int) -> None:
    with pytest.raises(Untrusted):
        mail.open(mail.seal()[0][:cut])


def test_an_envelope_is_for_one_executor_one_context_and_one_mesh(mail: Mail) -> None:
    sealed = mail.seal()[0]
    with pytest.raises(Untrusted, match="as this query"):
        mail.open(sealed, CONTEXT + b"!")
    other = Envelopes(b"m" * 32, mail.asker.sign, mail.clock, dice(3))
    with pytest.raises(Untrusted, match="does not have"):
        other.open(sealed, CONTEXT, mail.asker.id)
    elsewhere = Envelopes(b"n" * 32, mail.asker.sign, mail.clock, dice(2))
    assert elsewhere.key() == mail.executor.key(), "the same dice"
    with pytest.raises(Untrusted, match="as this query"):
        elsewhere.open(sealed, CONTEXT, mail.asker.id)


def test_nobody_seals_in_anothers_name(mail: Mail) -> None:
    thief = Envelopes(b"m" * 32, Identity.generate().sign, mail.clock, dice(4))
    sealed, _ = thief.seal(b"secret", CONTEXT, mail.executor.key())
    with pytest.raises(Untrusted, match="somebody else"):
        mail.open(sealed)


def test_an_executor_cannot_pass_an_envelope_on_as_its_origin(mail: Mail) -> None:
    """It has the origin's signature, and seals the same again to another: that one is told."""
    third = Envelopes(b"m" * 32, Identity.generate().sign, mail.clock, dice(5))
    signed: list[bytes] = []

    def replayed(body: bytes) -> bytes:
        signed.append(body)
        return mail.asker.sign(signed[0])

    origin = Envelopes(b"m" * 32, replayed, mail.clock, bytes)  # the same secret, at the same time
    origin.seal(b"secret", CONTEXT, mail.executor.key())
    sealed, _ = origin.seal(b"secret", CONTEXT, third.key())
    with pytest.raises(Untrusted, match="somebody else"):
        third.open(sealed, CONTEXT, mail.asker.id)


@pytest.mark.parametrize("key", [b"\0" * 32, b"\1" + b"\0" * 31])
def test_what_is_no_key_is_told(mail: Mail, key: bytes) -> None:
    with pytest.raises(Untrusted, match="no key"):
        mail.origin.seal(b"secret", CONTEXT, key)


def test_a_key_lasts_a_day_and_an_hour_and_is_then_forgotten(mail: Mail) -> None:
    first = mail.executor.key()
    mail.clock.now += KEY_S - 1
    sealed = mail.seal()[0]
    assert mail.executor.key() == first
    mail.clock.now += 2
    second = mail.executor.key()
    assert second != first
    assert mail.open(sealed)[0] == b"secret"
    mail.clock.now += LATE_S - 10
    assert mail.open(sealed)[0] == b"secret"
    mail.clock.now += KEPT_S - LATE_S + 10
    with pytest.raises(Untrusted, match="no more"):
        mail.open(sealed)


def test_a_clock_that_is_set_back_makes_a_new_key_and_the_old_one_serves_still(mail: Mail) -> None:
    sealed = mail.seal()[0]
    first = mail.executor.key()
    mail.clock.now -= EARLY_S
    second = mail.executor.key()
    assert second != first
    assert mail.open(sealed)[0] == b"secret"
    mail.clock.now -= 3 * KEY_S
    assert mail.executor.key() != second
    assert len(mail.executor._keys) == 2


@pytest.mark.parametrize(
    ("later_s", "opens"), [(-EARLY_S - 2, False), (-EARLY_S, True), (LATE_S, True), (LATE_S + 2, False)]
)
def test_an_old_envelope_is_played_back_and_one_from_the_future_is_of_a_wrong_clock(
    mail: Mail, later_s: float, opens: bool
) -> None:
    mail.executor.key()
    sealed = mail.seal()[0]
    mail.executor._clock = lambda: mail.clock.now + later_s
    mail.executor._keys[0] = (mail.clock.now - EARLY_S - 9, mail.executor._keys[0][1])
    if opens:
        assert mail.open(sealed)[0] == b"secret"
    else:
        with pytest.raises(Untrusted, match="played back"):
            mail.open(sealed)


def test_an_envelope_played_back_closes_nothing_under_the_same_key(mail: Mail) -> None:
    sealed, asker = mail.seal()
    first, second = mail.open(sealed)[1], mail.open(sealed)[1]
    one, two = first.close(0, False, b"yes"), second.close(0, False, b"yes")
    assert one[SALT_BYTES:] != two[SALT_BYTES:]
    assert asker.open(0, False, one) == b"yes"
    with pytest.raises(Untrusted, match="another answer"):
        asker.open(1, False, second.close(1, False, b"no"))


def test_pieces_are_not_swapped_cut_off_taken_from_elsewhere_or_made_last(mail: Mail) -> None:
    sealed, asker = mail.seal()
    writer = mail.open(sealed)[1]
    pieces = [writer.close(i, False, b"piece") for i in range(3)]
    with pytest.raises(Untrusted):
        asker.open(0, False, pieces[1])
    with pytest.raises(Untrusted):
        asker.open(0, True, pieces[0])
    for cut in (0, 5, SALT_BYTES, SALT_BYTES + 4, len(pieces[0]) - 1):
        with pytest.raises(Untrusted):
            asker.open(0, False, pieces[0][:cut])
    other = mail.open(mail.seal()[0])[1]
    with pytest.raises(Untrusted):
        asker.open(0, False, other.close(0, False, b"piece"))
    assert asker.open(0, False, pieces[0]) == b"piece", "what was wrong spoilt nothing"
    assert asker.open(2, True, writer.close(2, True, b"")) == b""


def test_the_answers_key_is_the_one_that_is_written_down() -> None:
    """A vector for whoever writes it anew: docs/cryptography.md says how it comes about."""
    writer = AnswerCipher(bytes(range(32)), b"context", bytes(range(16)))
    closed = writer.close(7, False, b"hello")
    assert closed[:SALT_BYTES] == bytes(range(16))
    assert hashlib.sha256(closed).hexdigest() == VECTOR
    assert AnswerCipher(bytes(range(32)), b"context").open(7, False, closed) == b"hello"


VECTOR = "69be498828c91528d6227d2b4d7cfd641ef9d43307fedac5327c1880b9d41431"
