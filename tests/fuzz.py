"""Throw bytes at everything that reads bytes: `python -m tests.fuzz [--runs N] [--only NAME]` (`make fuzz`).

Each decoder runs in a process of its own, under atheris where that is installed, which finds its way by what
the code does with the bytes, else under plain mutation of good inputs. A decoder may raise its own error and
nothing else, and must not take long: the slowest input is run again thrice, and its best time counts, for the
machine may have been at something else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

INPUT_BYTES_MAX = 16_384
GOAL_S = 0.010
"""Longest that an input of so many bytes may take."""
_REPORT_EACH = 1_000


class Target(NamedTuple):
    """One decoder."""

    read: Callable[[bytes], object]
    refuses: tuple[type[BaseException], ...]
    """What it may raise."""
    good: Sequence[bytes]
    """Inputs that it takes: where to begin."""


def targets() -> dict[str, Callable[[], Target]]:
    """Return how each is made: what one needs is imported when it runs."""
    return {
        "message": _message,
        "record": _record,
        "frames": _frames,
        "engine_events": _engine_events,
        "engine_requests": _engine_requests,
        "statement": _statement,
        "papers": _papers,
        "change": _change,
        "ticket": _ticket,
        "envelope": _envelope,
        "sealed_piece": _sealed_piece,
        "receipt": _receipt,
        "http_body": _http_body,
        "schema": _schema,
        "bookmark": _bookmark,
    }


def _message() -> Target:
    from p2pmesh.config import Limits
    from p2pmesh.errors import RemoteProtocolError
    from p2pmesh.protocol.codec import Codec
    from tests.unit.test_codec import EVERY

    codec = Codec(Limits())

    def read(data: bytes) -> None:
        codec.encode(codec.decode(data))  # what was read can be said again

    return Target(read, (RemoteProtocolError,), [codec.encode(message) for message in EVERY])


def _record() -> Target:
    from p2pmesh.config import Limits
    from p2pmesh.errors import RemoteProtocolError
    from p2pmesh.protocol.codec import Codec
    from tests.machines import A, signed

    return Target(Codec(Limits()).decode_record, (RemoteProtocolError,), [signed(A).body])


def _frames() -> Target:
    from p2pmesh.errors import RemoteProtocolError
    from p2pmesh.net.framing import FrameReader, frame

    def read(data: bytes) -> None:
        reader = FrameReader(4_096)
        for at in range(0, len(data), 97):
            reader.feed(data[at : at + 97])

    return Target(read, (RemoteProtocolError,), [frame(b"one") + frame(b"") + frame(b"x" * 300)])


def _engine_events() -> Target:
    from p2pmesh.engine import base, frames
    from p2pmesh.errors import EngineError, Reason
    from p2pmesh.query import Usage

    good = (base.Generated("j", (1, 2), "ab"), base.Finished("j", Usage(1, 2), "stop"), base.Alive())
    failed = base.Failed("j", Reason.BAD_REQUEST, "no")
    encoded = [frames.encode(event) for event in (*good, failed)]
    return Target(lambda data: frames.EventReader().feed(data), (EngineError,), [*encoded, b"".join(encoded)])


def _engine_requests() -> Target:
    from p2pmesh.engine import base, frames
    from p2pmesh.errors import EngineError
    from p2pmesh.query import Message, Options

    asked = base.Generate("j", (Message("user", "hi"),), Options(stop=("x",)), (1, 2))
    good = [frames.encode(request) for request in (asked, base.Embed("j", ("a", "b")), base.Abort("j"))]
    return Target(lambda data: frames.RequestReader().feed(data), (EngineError,), good)


def _mesh() -> Any:
    from p2pmesh.net.identity import Identity
    from p2pmesh.trust.standing import Standing
    from tests.unit.keyring import genesis

    key = Identity.generate()
    begun = genesis(key)
    draft = Standing(key.id, begun, begun, time.time, key=key)
    own = draft.certify(key.id, ("hr",), int(time.time()))
    return Standing(key.id, begun, own, time.time, key=key)


def _statement() -> Target:
    from p2pmesh.errors import Untrusted
    from p2pmesh.trust.statements import Signed

    standing = _mesh()
    change = standing.approve(standing.roster.change(standing.roster.last, int(time.time())))
    good = [standing.genesis.to_bytes(), standing.certificate(), change.to_bytes()]
    return Target(Signed.parse, (Untrusted,), good)


def _papers() -> Target:
    from p2pmesh.errors import Untrusted

    standing = _mesh()
    good = [standing.show()]
    change = standing.approve(standing.roster.change(standing.roster.last, int(time.time())))
    standing.learn([change.to_bytes()])
    return Target(lambda data: standing.judge(standing.me, data), (Untrusted,), [*good, standing.show()])


def _change() -> Target:
    from p2pmesh.errors import Untrusted
    from p2pmesh.net.identity import Identity
    from p2pmesh.peer import signers

    word = signers.word_of(Identity.generate())
    change = signers.Signers(_mesh(), lambda _: None).change(add=[word], after_s=60.0).text

    def read(data: bytes) -> object:
        text = data.decode("latin-1")
        return signers.read_word(text) if text.startswith("p2pmesh-key") else signers.parse(text)

    return Target(read, (Untrusted,), [change.encode(), word.encode()])


def _ticket() -> Target:
    from p2pmesh.errors import Untrusted
    from p2pmesh.trust.tickets import Ticket

    good = [str(_mesh().invite(bytes(16), ("/ip4/127.0.0.1/tcp/1",), (), 60.0, 1)).encode()]
    return Target(lambda data: Ticket.parse(data.decode("latin-1")), (Untrusted,), good)


def _envelope() -> Target:
    from p2pmesh.errors import Untrusted
    from p2pmesh.net.identity import Identity
    from p2pmesh.trust.sealing import Envelopes

    me = Identity.generate()
    box = Envelopes(b"m", me.sign, time.time, os.urandom)
    good = [box.seal(b"x" * 99, b"c", box.key())[0]]
    return Target(lambda data: box.open(data, b"c", me.id), (Untrusted,), good)


def _sealed_piece() -> Target:
    from p2pmesh.errors import Untrusted
    from p2pmesh.trust.sealing import AnswerCipher

    good = [AnswerCipher(bytes(32), b"c", bytes(16)).close(0, False, b"x")]
    return Target(lambda data: AnswerCipher(bytes(32), b"c").open(0, False, data), (Untrusted,), good)


def _receipt() -> Target:
    from p2pmesh.receipt import Receipt
    from p2pmesh.trust import keys
    from tests.unit.test_receipt import receipt

    def read(data: bytes) -> None:
        found = Receipt.from_json(json.loads(data))
        keys.verify(found.executor, found.body(), found.signature)

    return Target(read, (ValueError, RecursionError), [json.dumps(receipt().to_json()).encode()])


def _http_body() -> Target:
    from p2pmesh.config import Limits
    from p2pmesh.gateway import openai

    limits = Limits()

    def read(data: bytes) -> None:
        request = openai.parse(data)
        openai.messages(request, limits)
        openai.options(request, limits)

    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "stop": ["a"]}
    good = [
        json.dumps(one).encode() for one in (body, {**body, "logit_bias": {"7": 1}, "response_format": form})
    ]
    return Target(read, (openai.BadRequest,), good)


def _schema() -> Target:
    from p2pmesh.engine.grammar import SchemaError, gbnf

    one = {
        "type": "object",
        "properties": {"a": {"enum": [1, "x"]}, "b": {"type": "array"}},
        "required": ["a"],
    }
    two = {"$defs": {"n": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}}, "$ref": "#/$defs/n"}
    good = [json.dumps(schema).encode() for schema in (one, two)]
    return Target(lambda data: gbnf(data.decode("utf-8", "replace")), (SchemaError,), good)


def _bookmark() -> Target:
    from p2pmesh.peer.answer import read_bookmark

    good = [f"{'0' * 32}.17.12D3KooW".encode()]
    return Target(lambda data: read_bookmark(data.decode("utf-8", "replace")), (ValueError,), good)


class Watch:
    """Runs one input after the other, and remembers the slowest."""

    def __init__(self, target: Target, report: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self._target, self._report, self._clock = target, report, clock
        self.runs = self.taken = 0
        self.worst_s = 0.0

    def __call__(self, data: bytes) -> None:
        """Run one input. Lets out what the decoder must not raise."""
        took = self._once(data)
        self.runs += 1
        if took > self.worst_s:
            self.worst_s = max(self.worst_s, min(took, *(self._once(data) for _ in range(3))))
        if self.runs % _REPORT_EACH == 0:
            self.tell()

    def _once(self, data: bytes) -> float:
        began = self._clock()
        try:
            self._target.read(data)
        except self._target.refuses:
            return self._clock() - began
        took = self._clock() - began
        self.taken += 1
        return took

    def tell(self) -> None:
        """Write down how far it is: a fuzzer ends its process without a word."""
        told = {"runs": self.runs, "taken": self.taken, "worst_ms": round(1e3 * self.worst_s, 3)}
        self._report.write_text(json.dumps(told), "utf-8")


def mutations(good: Sequence[bytes], runs: int, rng: Random) -> Iterator[bytes]:
    """Yield good inputs with something wrong about each."""
    for _ in range(runs):
        data = bytearray(rng.choice(good))
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(5):
                case 0:
                    data[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    del data[at : at + rng.choice((1, 4, 64))]
                case 2:
                    data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
                case 3:
                    data[at:at] = data[at : at + 256] * rng.choice((1, 2, 16))
                case _:
                    other = rng.choice(good)
                    data[at:] = other[rng.randrange(len(other) + 1) :]
        yield bytes(data[:INPUT_BYTES_MAX])


def child(name: str, runs: int, seed: int, folder: Path) -> None:
    """Fuzz one decoder in this process. Whatever it must not raise ends it."""
    report = folder / "report"
    if importlib.util.find_spec("atheris") is None:
        watch = Watch(targets()[name](), report)
        for data in mutations(watch._target.good, runs, Random(seed)):
            watch(data)
        watch.tell()
        return
    import atheris

    with atheris.instrument_imports(include=["p2pmesh"]):
        watch = Watch(targets()[name](), report)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(watch._target.good):
        (corpus / str(number)).write_bytes(data[:INPUT_BYTES_MAX])
    flags = [
        f"-runs={runs}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-seed={seed}",
        "-verbosity=0",
        "-rss_limit_mb=2048",
    ]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={folder}/", str(corpus)], watch)
    atheris.Fuzz()


def fuzz(name: str, runs: int, seed: int) -> dict[str, Any]:
    """Fuzz one decoder in a process of its own; return what came of it."""
    with tempfile.TemporaryDirectory(prefix="p2pmesh-fuzz-") as text:
        folder = Path(text)
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--child",
            name,
            "--runs",
            str(runs),
            "--seed",
            str(seed),
        ]
        began = time.monotonic()
        done = subprocess.run([*command, "--folder", text], capture_output=True, check=False)
        told: dict[str, Any] = {"runs": 0, "worst_ms": 0.0}
        if (folder / "report").exists():
            told = json.loads((folder / "report").read_text("utf-8"))
        told["seconds"] = round(time.monotonic() - began, 1)
        if done.returncode:
            inputs = [
                path.read_bytes() for path in folder.iterdir() if path.name.startswith(("crash", "timeout"))
            ]
            last = (done.stderr + done.stdout).decode("utf-8", "replace").strip().splitlines()[-12:]
            told |= {"crash": "\n".join(last), "input": inputs[0].hex() if inputs else ""}
        return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzz all decoders, one after the other, each with its share of the runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs in all")
    parser.add_argument("--only", choices=sorted(targets()), help="one decoder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child, options.runs, options.seed, options.folder)
        return
    names = [options.only] if options.only else list(targets())
    found = {}
    for name in names:
        found[name] = fuzz(name, -(-options.runs // len(names)), options.seed)
        print(f"{name}: {found[name]}", file=sys.stderr)
    told = {
        "by": "atheris" if importlib.util.find_spec("atheris") else "mutation",
        "runs": sum(one["runs"] for one in found.values()),
        "crashes": sum("crash" in one for one in found.values()),
        "worst_ms": max(one["worst_ms"] for one in found.values()),
        "goal_ms": 1e3 * GOAL_S,
        "targets": found,
    }
    print(json.dumps(told, indent=1))
    sys.exit(bool(told["crashes"]) or told["worst_ms"] > told["goal_ms"])


if __name__ == "__main__":
    main()
