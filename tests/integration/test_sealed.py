"""A secret asked over two relays: it is looked for in their memory, in all they wrote, and on the wire.

Real processes, a real mesh, echoes for models. The search must find what it looks for where that may be: in
the executor's memory, and in the relays' when the same is asked in the open.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from p2pmesh import Config, open_peer
from p2pmesh.config import Net
from p2pmesh.net.identity import load_or_create
from p2pmesh.peer import credentials, state
from p2pmesh.protocol.sealing import CLOSED
from p2pmesh.record import GENERAL
from p2pmesh.trust.standing import Standing
from tests.integration.processes import HANG_S, PeerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.wire
ZONE = "hr"
WORDS = 50
"""Words of a question, which an echo answers in as many: at 20 a second there is time to look round."""


def found_mesh(folder: Path, **zones: tuple[str, ...]) -> None:
    """Let peers of these names into a mesh whose signer is away."""
    signer = folder / "signer" / "state"
    signer.mkdir(parents=True)
    founder = credentials.found(signer, load_or_create(signer / state.KEY), "lab", ())
    for name, granted in zones.items():
        path = folder / name / "state"
        path.mkdir(parents=True)
        me = load_or_create(path / state.KEY).id
        certificate = founder.certify(me, granted, int(time.time()))
        credentials.joined(path, Standing(me, founder.genesis, certificate, time.time), ())


def start(folder: Path, name: str, *, echo: bool = False, join: str = "") -> PeerProcess:
    """Start a peer that dials nobody but whom it joins."""
    models = '{model = "echo", engine = "echo", tokens_per_s = 20.0}' if echo else ""
    joins = json.dumps([join] if join else [])
    file = folder / name / "peer.toml"
    file.write_text(
        f'name = "{name}"\nembedder = "none"\nmodels = [{models}]\nhttp.bind = "127.0.0.1:0"\n'
        f"net.join = {joins}\nnet.dial_discovered = false\n"
    )
    return PeerProcess(folder / name, ["--config", str(file), *([] if echo else ["--no-model"])])


def in_memory(pid: int, needle: bytes) -> int:
    """Return how often `needle` is in what a process can write to."""
    hits = 0
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            region, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            begin, end = (int(part, 16) for part in region.split("-"))
            try:
                memory.seek(begin)
                hits += memory.read(end - begin).count(needle)
            except (OSError, ValueError):  # a region of the kernel's own
                continue
    return hits


def on_disk(folder: Path, needle: bytes) -> list[str]:
    """Return the files that hold `needle`: state, logs, what was printed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if needle in path.read_bytes()]


class Capture:
    """Every packet on loopback, for as long as the block lasts."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._over = threading.Event()

    def run(self, wire: socket.socket) -> None:
        while not self._over.is_set():
            try:
                self.data += wire.recv(65_536)
            except TimeoutError:
                continue

    @contextmanager
    def on(self) -> Iterator[Capture | None]:
        """Yield itself; None where packets may not be captured."""
        try:
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        except PermissionError:
            yield None
            return
        with wire:
            wire.bind(("lo", 0))
            wire.settimeout(0.1)
            thread = threading.Thread(target=self.run, args=(wire,))
            thread.start()
            try:
                yield self
            finally:
                self._over.set()
                thread.join()


@contextmanager
def row(folder: Path) -> Iterator[tuple[PeerProcess, PeerProcess, PeerProcess]]:
    """Two relays in a row that may not see the zone, and behind them one that may, and alone has a model."""
    found_mesh(folder, asker=(), near=(), far=(), executor=(ZONE,))
    started: list[PeerProcess] = []
    try:
        started.append(start(folder, "executor", echo=True))
        started.append(start(folder, "far", join=started[0].told["addresses"][0]))
        started.append(start(folder, "near", join=started[1].told["addresses"][0]))
        yield started[2], started[1], started[0]
    finally:
        for peer in started:
            peer.stop()


def may_look() -> bool:
    """Whether a process here may read the memory of one that it started."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        return in_memory(child.pid, b"") > 0
    except PermissionError:
        return False
    finally:
        child.kill()
        child.communicate()


async def test_no_relay_reads_a_sealed_query_and_any_reads_an_open_one(tmp_path: Path) -> None:
    if not may_look():
        pytest.skip("this system lets nobody read another process's memory")
    with row(tmp_path) as (near, far, executor), Capture().on() as capture, trio.fail_after(HANG_S):
        net = Net(join=(near.told["addresses"][0],), dial_discovered=False)
        config = Config(name="asker", state=str(tmp_path / "asker" / "state"), embedder="none", net=net)
        async with open_peer(config) as peer:
            while not any(m.capability.models for m in peer.members()):  # noqa: ASYNC110
                await trio.sleep(0.02)
            for zone in (ZONE, GENERAL):
                canary = f"canary{secrets.token_hex(12)}"
                hits: dict[str, int] = {}
                async with peer.stream(" ".join([canary] * WORDS), zone=zone) as answer:
                    said = 0
                    async for _ in answer:
                        said += 1
                        if said == 10:
                            for other in (near, far, executor):
                                hits[other.told["name"]] = in_memory(other.pid, canary.encode())
                    whole = await answer.whole()
                assert canary in whole.text
                assert [hop.name for hop in whole.path] == ["asker", "near", "far", "executor"]
                assert hits["executor"] > 0, "the search does not work"
                if zone == GENERAL:
                    assert min(hits["near"], hits["far"]) > 0, "the search does not work"
                else:
                    assert (hits["near"], hits["far"]) == (0, 0)
                    after = [in_memory(other.pid, canary.encode()) for other in (near, far)]
                    assert after == [0, 0]
                    assert [hop.why for hop in whole.path[1:3]] == [CLOSED, CLOSED]
                assert on_disk(tmp_path, canary.encode()) == []
                if capture is not None:
                    assert len(capture.data) > 10_000, "nothing was captured"
                    assert canary.encode() not in capture.data
