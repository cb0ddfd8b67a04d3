"""What is signed is these bytes, of this kind, and nothing else is taken for a statement."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from p2pmesh.errors import Untrusted
from p2pmesh.trust.statements import BYTES_MAX, Certificate, Genesis, Quorum, Revocation, Signed
from tests.unit.keyring import ADA, DAY, KEYS, certificate, genesis, quorum, revocation

MESH = genesis(*KEYS[:3])
EVERYBODY = frozenset(key.id for key in KEYS)


@pytest.mark.parametrize(
    "signed",
    [
        MESH,
        certificate(MESH, KEYS[0], zones=("hr", "überall")),
        revocation(MESH, *KEYS[:3]),
    ],
    ids=lambda signed: type(signed.statement).__name__,
)
def test_it_travels_as_it_was_signed(signed: Signed) -> None:
    found = Signed.parse(signed.to_bytes())
    assert found == signed
    assert found.signers(EVERYBODY) == {signer for signer, _ in signed.signatures}
    assert found.digest == signed.digest


def test_the_greatest_statement_there_can_be_travels() -> None:
    zones = tuple("\U0001f512" * 15 + chr(97 + n) for n in range(15))
    signatures = tuple((key.id, bytes(64)) for key in KEYS)
    assert len(signatures) == 6
    # Sixteen signers of 52 characters and 64 bytes each.
    size = len(certificate(MESH, zones=zones).to_bytes()) + 16 * (52 + 64 + 5)
    assert size <= BYTES_MAX


def test_a_signature_of_another_statement_counts_for_nothing() -> None:
    good, other = certificate(MESH, KEYS[0]), certificate(MESH, KEYS[0], life=2 * DAY)
    assert not replace(other, signatures=good.signatures).signers(EVERYBODY)
    assert not replace(good, signatures=((KEYS[1].id, good.signatures[0][1]),)).signers(EVERYBODY)


def test_a_signature_of_one_kind_serves_for_no_other() -> None:
    """The two have fields alike, and only the number of the kind, which is signed, sets them apart."""
    out = revocation(MESH, KEYS[0])
    fields = msgspec.msgpack.decode(out.body)
    for kind in (0, 1):
        body = msgspec.msgpack.encode([kind, *fields[1:]])
        forged = (body, [list(signature) for signature in out.signatures])
        with pytest.raises(Untrusted, match="not a statement"):
            Signed.parse(msgspec.msgpack.encode(forged))


def test_what_was_signed_for_something_else_is_no_statement() -> None:
    signed = certificate(MESH)
    bare = replace(signed, signatures=((KEYS[0].id, KEYS[0].sign(signed.body)),))
    assert not bare.signers(EVERYBODY)


def test_only_signatures_that_hold_and_are_asked_for_are_kept() -> None:
    signed = certificate(MESH, *KEYS[:3])
    padded = replace(signed, signatures=(*signed.signatures, (KEYS[3].id, bytes(64))))
    assert padded.only({KEYS[1].id, KEYS[3].id}) == certificate(MESH, KEYS[1])
    assert padded.only(EVERYBODY) == signed
    assert not padded.only(()).signatures


def test_more_signatures_are_added_and_none_is_lost() -> None:
    one = certificate(MESH, KEYS[0])
    both = one.signed([KEYS[1]])
    assert both.signers(EVERYBODY) == {KEYS[0].id, KEYS[1].id}
    assert both.digest == one.digest
    assert both.signed([KEYS[0]]) == both


@pytest.mark.parametrize(
    "statement",
    [
        Genesis("", quorum(KEYS[0]), bytes(16)),
        Genesis("x" * 65, quorum(KEYS[0]), bytes(16)),
        Genesis("ü" * 33, quorum(KEYS[0]), bytes(16)),
        Genesis("lab", quorum(KEYS[0]), bytes(15)),
        Genesis("lab", Quorum((), 1, 1), bytes(16)),
        Genesis("lab", Quorum((KEYS[0].id,), 0, 1), bytes(16)),
        Genesis("lab", Quorum((KEYS[0].id,), 1, 2), bytes(16)),
        Genesis("lab", Quorum((KEYS[0].id, KEYS[1].id), 2, 1), bytes(16)),
        Genesis("lab", Quorum((KEYS[1].id, KEYS[0].id), 1, 1), bytes(16)),
        Genesis("lab", Quorum((KEYS[0].id, KEYS[0].id), 1, 1), bytes(16)),
        Genesis("lab", Quorum(("nobody",), 1, 1), bytes(16)),
        Certificate(bytes(31), ADA, (), 0, 0, 1),
        Certificate(bytes(32), "nobody", (), 0, 0, 1),
        Certificate(bytes(32), ADA, (), 0, 1, 1),
        Certificate(bytes(32), ADA, (), 0, -1, 1),
        Certificate(bytes(32), ADA, (), 0, 0, 2**41),
        Certificate(bytes(32), ADA, ("",), 0, 0, 1),
        Certificate(bytes(32), ADA, ("ü" * 33,), 0, 0, 1),
        Certificate(bytes(32), ADA, ("z",) * 16, 0, 0, 1),
        Revocation(bytes(32), ADA, 2**41),
    ],
)
def test_what_makes_no_sense_cannot_be_stated(
    statement: Genesis | Certificate | Revocation,
) -> None:
    with pytest.raises(Untrusted):
        Signed.of(statement)


def test_a_stranger_does_not_make_us_check_his_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr("p2pmesh.trust.statements.verify", lambda signer, *_: checked.append(signer) or True)
    signed = revocation(MESH, *KEYS[:3])
    assert signed.signers({KEYS[0].id}) == {KEYS[0].id}
    assert checked == [KEYS[0].id]


def test_one_that_is_too_long_is_not_even_read() -> None:
    with pytest.raises(Untrusted, match="at most 8192"):
        Signed.parse(MESH.to_bytes() + bytes(BYTES_MAX))


def test_two_signatures_of_one_signer_are_refused() -> None:
    signed = certificate(MESH, KEYS[0])
    with pytest.raises(Untrusted, match="two signatures"):
        Signed.parse(replace(signed, signatures=signed.signatures * 2).to_bytes())


def test_every_cut_and_every_flipped_bit_is_refused_or_unsigned() -> None:
    whole = certificate(MESH, KEYS[0], zones=("hr",)).to_bytes()
    damaged = [whole[:cut] for cut in range(len(whole))]
    damaged += [
        whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
        for at in range(len(whole))
        for bit in range(8)
    ]
    for data in damaged:
        try:
            found = Signed.parse(data)
        except Untrusted:
            continue
        assert not found.signers(EVERYBODY)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x91" * 10_000, b"\xdd\xff\xff\xff\xff", bytes(BYTES_MAX + 1)]
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(Untrusted):
        Signed.parse(data)
