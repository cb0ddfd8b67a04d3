"""`p2pmesh verify`: who said this? Needs no peer and no network: a peer's id holds its key.

Knows receipts and files. That the signer is a member, or may see a zone, it cannot know: that is between the
peers, when they talk.
"""

from __future__ import annotations

import json
import sys
from typing import IO, Any

import click

from p2pmesh.cli import client

_BYTES_MAX = 4 * 2**20
"""Longest file: an answer, and what comes with it."""


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(file: IO[bytes], as_json: bool) -> None:
    """Check the receipt of an answer, and the answer with it. FILE is what `p2pmesh ask --json` or the HTTP
    door has said of it, or the receipt alone; -, or nothing, reads stdin. It exits with 1 where that does not
    hold."""
    from p2pmesh.receipt import Receipt
    from p2pmesh.trust import keys

    data = file.read(_BYTES_MAX + 1)
    try:
        if len(data) > _BYTES_MAX:
            raise ValueError(f"the file is longer than {_BYTES_MAX} bytes")
        raw, text, model = _found(json.loads(data))
        receipt = Receipt.from_json(raw)
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise click.ClickException(f"{file.name} holds no receipt: {exc}") from None
    wrong = ""
    if not keys.verify(receipt.executor, receipt.body(), receipt.signature):
        wrong = f"{client.printable(receipt.executor)} did not sign this"
    elif text is not None and not receipt.tells(text):
        wrong = "the receipt holds, and is of another text than this"
    elif model is not None and model != receipt.model:
        wrong = "the receipt holds, and is of another model's answer than it says here"
    if as_json:
        told = {"holds": not wrong, "wrong": wrong, "answer": text is not None, "receipt": receipt.to_json()}
        click.echo(json.dumps(told))
    elif not wrong:
        unread = f"an answer of {receipt.completion_tokens} tokens, whose text is not here to be checked"
        of = "this answer" if text is not None else unread
        model, digest = map(client.printable, (receipt.model, receipt.digest))
        click.echo(f"{receipt.executor} signed {of}\nby {model}, SHA-256 {digest}")
    if wrong:
        click.echo(f"does not hold: {wrong}", err=True)
        sys.exit(1)


def _found(raw: Any) -> tuple[Any, str | None, str | None]:
    """Return the receipt in what was read, and the answer's text and model where they are there too. Raises
    ValueError where there is an answer, and it cannot be told which."""
    if not isinstance(raw, dict):
        raise ValueError("it is no JSON object")
    told = raw.get("p2pmesh")
    if isinstance(told, dict) and "receipt" in told:
        if "text" in raw:
            raise ValueError("it has a text beside that of the HTTP door")
        return told["receipt"], _choice(raw.get("choices")), raw.get("model")
    if "receipt" not in raw:
        return raw, None, None
    if not isinstance(raw.get("text", ""), str):
        raise ValueError("its text is none")
    return raw["receipt"], raw.get("text"), raw.get("model")


def _choice(choices: Any) -> str | None:
    """Return the text of the one choice of a whole answer; None of a piece of one, or where there is none."""
    if not choices:
        return None
    if not isinstance(choices, list) or len(choices) > 1 or not isinstance(choices[0], dict):
        raise ValueError("it has not one choice")
    if "message" not in choices[0]:
        return None
    message = choices[0]["message"]
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise ValueError("its answer is no text")
    return str(message["content"])
