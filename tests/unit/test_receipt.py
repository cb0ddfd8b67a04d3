"""Receipts: what they bind, how they are kept, and what `p2pmesh verify` says of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2pmesh.cli.main import main
from p2pmesh.config import Limits
from p2pmesh.net.identity import Identity
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.receipts import Receipts
from p2pmesh.query import Ended, Hop, Message, Options, Query, QueryId, Usage
from p2pmesh.receipt import Receipt
from p2pmesh.sim.signer import SimSigner
from p2pmesh.trust import keys
from tests.machines import ME, A, B, query

ADA = Identity.generate()
TEXT = "Paris. ☕"
SAID = hashlib.sha256(TEXT.encode()).digest()


class Signer:
    def __init__(self, identity: Identity) -> None:
        self.sign, self.verify = identity.sign, keys.verify


def receipt() -> Receipt:
    part = Receipts(ADA.id, Codec(Limits()), Signer(ADA))
    ended = Ended(Usage(9, 3), "stop", "small", "00" * 32, (Hop(ADA.id, "ada", ""),))
    found = part.signed(query(), ended, SAID).receipt
    assert found is not None
    return found


def test_each_field_is_bound_by_the_signature() -> None:
    whole = receipt()
    assert keys.verify(whole.executor, whole.body(), whole.signature)
    for field in fields(Receipt)[:-1]:
        value = getattr(whole, field.name)
        other: Any = value + 1 if isinstance(value, int) else value[:-1]
        if field.name == "executor":
            other = Identity.generate().id
        changed = replace(whole, **{field.name: other})
        assert not keys.verify(changed.executor, changed.body(), whole.signature), field.name
    moved = replace(whole, model=whole.model + whole.digest[:1], digest=whole.digest[1:])
    assert moved.body() != whole.body(), "fields that run into one another"


def test_it_is_the_same_after_it_was_kept() -> None:
    assert Receipt.from_json(json.loads(json.dumps(receipt().to_json()))) == receipt()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda raw: [], "an object"),
        (lambda raw: {k: v for k, v in raw.items() if k != "said"}, "lacks 'said'"),
        (lambda raw: {**raw, "attempt": True}, "'attempt'"),
        (lambda raw: {**raw, "attempt": -1}, "'attempt'"),
        (lambda raw: {**raw, "prompt_tokens": 2**31}, "'prompt_tokens'"),
        (lambda raw: {**raw, "model": 7}, "'model'"),
        (lambda raw: {**raw, "signature": "xy"}, "hex"),
    ],
)
def test_what_is_no_receipt_is_told_by_its_field(spoil: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Receipt.from_json(spoil(receipt().to_json()))


def test_a_question_is_the_same_before_and_after_the_wire() -> None:
    """0 and 0.0 are one, and what only the way knows is no part of it."""
    part, signer = Receipts(A, Codec(Limits()), SimSigner(A)), Receipts(ME, Codec(Limits()), SimSigner(ME))
    asked = Query(QueryId("0" * 32), ME, (Message("user", "x"),), Options(temperature=0, top_p=1))  # type: ignore[arg-type]
    came = replace(asked, options=Options(temperature=0.0, top_p=1.0), model="small", hops_left=3, target=A)
    ended = Ended(Usage(1, 1), "stop", "small", "", (Hop(ME, "me", ""), Hop(A, "a", "")))
    assert signer.holds(asked, part.signed(came, ended, SAID), SAID)
    assert not signer.holds(replace(asked, attempt=1), part.signed(came, ended, SAID), SAID)
    assert not signer.holds(replace(asked, zone="hr"), part.signed(came, ended, SAID), SAID)
    assert not signer.holds(asked, part.signed(came, ended, SAID), bytes(32))
    whole = part.signed(came, ended, SAID)
    assert whole.receipt is not None
    told = replace(whole, receipt=replace(whole.receipt, model="large"))  # the signature is of what it was
    assert not signer.holds(asked, told, SAID)
    forged = Receipts(B, Codec(Limits()), SimSigner(B)).signed(came, ended, SAID).receipt
    assert forged is not None
    assert not signer.holds(asked, replace(ended, receipt=replace(forged, executor=A)), SAID)


# -- p2pmesh verify -----------------------------------------------------------------------------------


def verify(path: Path, raw: Any, *flags: str) -> Any:
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw), "utf-8")
    return CliRunner().invoke(main, ["verify", str(path), *flags])


def asked(text: str = TEXT) -> dict[str, Any]:
    """What `p2pmesh ask --json` prints."""
    return {"text": text, "path": ["ada"], "model": "small", "receipt": receipt().to_json()}


def door(text: str = TEXT) -> dict[str, Any]:
    """What the HTTP door says."""
    message = {"message": {"role": "assistant", "content": text}}
    return {"choices": [message], "model": "small", "p2pmesh": {"receipt": receipt().to_json()}}


@pytest.mark.parametrize("raw", [asked(), door()])
def test_an_answer_that_was_signed_holds(tmp_path: Path, raw: dict[str, Any]) -> None:
    result = verify(tmp_path / "r", raw)
    assert result.exit_code == 0, result.output
    assert f"{ADA.id} signed this answer" in result.stdout
    assert "by small, SHA-256 " + "00" * 32 in result.stdout


def test_a_receipt_alone_holds_for_nothing_but_itself(tmp_path: Path) -> None:
    for raw in (receipt().to_json(), {"p2pmesh": {"receipt": receipt().to_json()}}):
        result = verify(tmp_path / "r", raw)
        assert (result.exit_code, "an answer of 3 tokens" in result.stdout) == (0, True)
    told = json.loads(verify(tmp_path / "r", receipt().to_json(), "--json").stdout)
    assert (told["holds"], told["answer"], told["wrong"]) == (True, False, "")


def test_another_text_or_another_signer_does_not_hold(tmp_path: Path) -> None:
    for raw in (asked("London."), door("London.")):
        result = verify(tmp_path / "r", raw)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "of another text" in result.stderr
    for raw in (asked(), door()):
        assert "another model" in verify(tmp_path / "r", {**raw, "model": "large"}).stderr
    forged = asked()
    forged["receipt"]["executor"] = Identity.generate().id
    result = verify(tmp_path / "r", forged)
    assert (result.exit_code, "did not sign this" in result.stderr) == (1, True)
    told = json.loads(verify(tmp_path / "r", forged, "--json").stdout)
    assert told["holds"] is False


def test_what_it_prints_does_not_steer_a_terminal(tmp_path: Path) -> None:
    evil = replace(receipt(), model="m\x1b[2J", digest="00\x1b]0;x\x07")
    signed = replace(evil, signature=ADA.sign(evil.body()))
    for raw in (signed.to_json(), {**signed.to_json(), "executor": "\x1b[2Jada"}):
        result = verify(tmp_path / "r", raw)
        assert "\x1b" not in result.output
        assert "\x07" not in result.output


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": [{"message": {"content": TEXT}}, {"message": {"content": "more"}}]},
        {"choices": [5]},
        {"choices": [{"message": {"content": None}}]},
        {"text": TEXT},
    ],
)
def test_an_answer_of_which_it_cannot_be_told_what_it_says_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    result = verify(tmp_path / "r", {**door(), **changes})
    assert (result.exit_code, "holds no receipt" in result.stderr) == (1, True)
    assert verify(tmp_path / "r", {**asked(), "text": 5}).exit_code == 1


def test_a_piece_of_a_stream_has_no_text_to_be_checked(tmp_path: Path) -> None:
    last = {**door(), "choices": [{"delta": {}}]}
    result = verify(tmp_path / "r", last)
    assert (result.exit_code, "not here to be checked" in result.stdout) == (0, True)


@pytest.mark.parametrize(
    "raw", ["", "{", "[]", "7", "{}", "[" * 100_000, '{"text": "x", "receipt": null}', "\0"]
)
def test_what_holds_no_receipt_is_told(tmp_path: Path, raw: str) -> None:
    result = verify(tmp_path / "r", raw)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "holds no receipt" in result.stderr
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    assert "holds no receipt" in CliRunner().invoke(main, ["verify", str(tmp_path / "b")]).stderr
