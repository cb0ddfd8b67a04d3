"""What one relay hop costs on the wire: time and CPU for each token chunk, beside the same relay on bare TCP.

It measures `p2pmesh.net` under a relay that does the least there is to do; what the protocol does for a chunk
(decode, handle, encode) comes on top of both.

    python -m benchmarks.hop [--json] [--frames N] [--rounds R]

A source, three relays in a row and a sink, one process each, once with `p2pmesh.net.host` and once with
trio's sockets. The sink asks the source or one of the relays for chunks of about 64 bytes in msgpack: first
paced, which gives the latency and the CPU a streaming answer costs, then as fast as a window of
acknowledgements allows. Both kinds run in turn within each round, so that what else the machine does hits
both; ratios are paired by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import trio

from p2pmesh.config import Net
from p2pmesh.net.framing import FrameReader, frame
from p2pmesh.net.host import FrameReceived, Host, LinkUp, Priority, open_host
from p2pmesh.net.identity import Identity

RELAYS = 3
RATE = 200
"""Chunks a second of a paced answer: a fast model's."""
WINDOW = 256
"""Chunks under way unacknowledged in a flood."""
ACK_EVERY = 64
FRAME_MAX = 262_144
KINDS = ("p2pmesh", "raw")

Send = Callable[[object, bytes], Awaitable[None]]


class Node:
    """Source, relay or sink: the same for both kinds of wire, which call `receive` and offer `send`."""

    def __init__(self, send: Send, upstream: object | None) -> None:
        self.send = send
        self.upstream = upstream
        self.asked_by: dict[int, object] = {}
        self.acked: dict[int, int] = {}
        self.progress = trio.lowlevel.ParkingLot()
        self.answers, self.taken = trio.open_memory_channel[dict[str, Any]](100_000)

    async def receive(self, nursery: trio.Nursery, peer: object, data: bytes) -> None:
        """Handle one frame: a question or an acknowledgement goes up, a chunk comes down."""
        message = msgpack.unpackb(data)
        query, kind = message["q"], message["k"]
        if kind == "chunk":
            asker = self.asked_by.get(query)
            if asker is None:
                self.answers.send_nowait(message)
            else:
                await self.send(asker, msgpack.packb(message))
        elif self.upstream is not None:
            self.asked_by[query] = peer
            await self.send(self.upstream, msgpack.packb(message))
        elif kind == "ask":
            self.acked[query] = 0
            nursery.start_soon(self._answer, peer, query, message["n"], message["rate"])
        else:
            self.acked[query] = message["i"]
            self.progress.unpark_all()

    async def _answer(self, peer: object, query: int, n: int, rate: int) -> None:
        due = trio.current_time()
        for i in range(n):
            while not rate and i - self.acked[query] >= WINDOW:
                await self.progress.park()
            chunk = {"q": query, "k": "chunk", "i": i, "t": time.perf_counter(), "x": " token" * 3}
            await self.send(peer, msgpack.packb(chunk))
            if rate:
                due += 1 / rate
                await trio.sleep_until(due)
            else:
                await trio.lowlevel.checkpoint()

    async def ask(self, target: object, query: int, n: int, rate: int) -> tuple[list[float], float]:
        """Return the latency of each chunk in ms, and the seconds they took together."""
        began = time.perf_counter()
        await self.send(target, msgpack.packb({"q": query, "k": "ask", "n": n, "rate": rate}))
        latencies = []
        for i in range(n):
            message = await self.taken.receive()
            latencies.append((time.perf_counter() - message["t"]) * 1e3)
            if not rate and i % ACK_EVERY == ACK_EVERY - 1:
                await self.send(target, msgpack.packb({"q": query, "k": "ack", "i": i + 1}))
        return latencies, time.perf_counter() - began


async def _mesh_node(
    targets: list[str], live: Callable[[Node, list[object]], Awaitable[None]] | None
) -> None:
    async with open_host(Identity.generate(), Net(), FRAME_MAX) as host, trio.open_nursery() as nursery:
        for target in targets:
            host.dial(None, [target])
            assert isinstance(await host.receive(), LinkUp)
        peers: list[object] = [target.rpartition("/")[2] for target in targets]

        async def send(peer: object, data: bytes) -> None:
            assert host.send(peer, data, Priority.TOKENS)  # type: ignore[arg-type]

        node = Node(send, None if live or not peers else peers[0])
        nursery.start_soon(_pump_mesh, host, node, nursery)
        await _live(node, peers, f"{host.addresses[0]}/p2p/{host.id}", live)
        nursery.cancel_scope.cancel()


async def _pump_mesh(host: Host, node: Node, nursery: trio.Nursery) -> None:
    while True:
        event = await host.receive()
        if isinstance(event, FrameReceived):
            await node.receive(nursery, event.peer, event.data)


async def _raw_node(targets: list[str], live: Callable[[Node, list[object]], Awaitable[None]] | None) -> None:
    async with trio.open_nursery() as nursery:
        peers: list[object] = [await trio.open_tcp_stream("127.0.0.1", int(target)) for target in targets]

        async def send(peer: object, data: bytes) -> None:
            await peer.send_all(frame(data))  # type: ignore[attr-defined]

        node = Node(send, None if live or not peers else peers[0])

        async def pump(stream: trio.SocketStream) -> None:
            reader = FrameReader(FRAME_MAX)
            async for data in stream:
                for body in reader.feed(bytes(data)):
                    await node.receive(nursery, stream, body)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, pump, listeners)
        for peer in peers:
            nursery.start_soon(pump, peer)
        await _live(node, peers, str(listeners[0].socket.getsockname()[1]), live)
        nursery.cancel_scope.cancel()


async def _live(
    node: Node,
    peers: list[object],
    address: str,
    live: Callable[[Node, list[object]], Awaitable[None]] | None,
) -> None:
    """Tell the address, then do as the sink does, or as told on stdin: end at its end."""
    print(address, flush=True)
    if live:
        await live(node, peers)
    else:
        await trio.to_thread.run_sync(sys.stdin.read)


async def _sink(node: Node, peers: list[object]) -> None:
    """Measure what stdin says, one JSON line each."""
    query = 0
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        order = json.loads(line)
        query += 1
        latencies, seconds = await node.ask(peers[order["relays"]], query, order["n"], order["rate"])
        latencies.sort()
        row = {
            "p50": latencies[len(latencies) // 2],
            "p99": latencies[int(len(latencies) * 0.99)],
            "s": seconds,
        }
        print(json.dumps(row), flush=True)


class Chain:
    """The processes of one kind, and the questions put to their sink."""

    def __init__(self, kind: str) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        addresses: list[str] = []
        for _ in range(RELAYS + 1):
            addresses.append(self._start(kind, "node", addresses[-1:]))
        self._start(kind, "sink", addresses)

    def _start(self, kind: str, role: str, targets: list[str]) -> str:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hop", "--part", kind, role, *targets],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        self.processes.append(process)
        return self._line(process)

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise SystemExit("a process of the benchmark ended early")
        return line

    def measure(self, relays: int, n: int, rate: int) -> dict[str, float]:
        """Return p50 and p99 in ms, seconds in all, and the CPU of one relay in µs a frame (0 relays: the
        source)."""
        sink, nearest = self.processes[-1], self.processes[relays]
        assert sink.stdin is not None
        before = _cpu_s(nearest.pid)
        sink.stdin.write(json.dumps({"relays": relays, "n": n, "rate": rate}) + "\n")
        sink.stdin.flush()
        row: dict[str, float] = json.loads(self._line(sink))
        return row | {"cpu_us": (_cpu_s(nearest.pid) - before) / n * 1e6}

    def close(self) -> None:
        """End every process, the sink first."""
        for process in reversed(self.processes):
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


def _cpu_s(pid: int) -> float:
    """Return the seconds of CPU a process has used, all its threads."""
    return sum(int(p.read_text().split()[0]) for p in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def measure(frames: int, rounds: int) -> dict[str, object]:
    """Run the benchmark; return its figures as `--json` prints them."""
    chains = {kind: Chain(kind) for kind in KINDS}
    rows = []
    try:
        for chain in chains.values():
            for relays in range(RELAYS + 1):
                chain.measure(relays, 50, RATE)  # warm-up
        for round_ in range(rounds):
            for relays in range(RELAYS + 1):
                for kind in KINDS if round_ % 2 else reversed(KINDS):
                    paced = chains[kind].measure(relays, frames, RATE)
                    flood = chains[kind].measure(relays, frames * 5, 0)
                    rows.append(
                        {
                            "round": round_,
                            "kind": kind,
                            "relays": relays,
                            "p50_ms": round(paced["p50"], 3),
                            "p99_ms": round(paced["p99"], 3),
                            "cpu_us": round(paced["cpu_us"], 1),
                            "flood_fps": round(frames * 5 / flood["s"]),
                            "flood_cpu_us": round(flood["cpu_us"], 1),
                        }
                    )
    finally:
        for chain in chains.values():
            chain.close()
    return _summary(rows, rounds)


def _summary(rows: list[dict[str, object]], rounds: int) -> dict[str, object]:
    at = {(r["round"], r["kind"], r["relays"]): r for r in rows}

    def added(kind: str, field: str) -> list[float]:
        """One hop's share of what three relays add, for each round."""
        return [
            (float(at[i, kind, RELAYS][field]) - float(at[i, kind, 0][field])) / RELAYS  # type: ignore[arg-type]
            for i in range(rounds)
        ]

    def relay(kind: str, field: str) -> float:
        return statistics.median(float(r[field]) for r in rows if r["kind"] == kind and r["relays"])  # type: ignore[arg-type]

    mesh, raw = added("p2pmesh", "p50_ms"), added("raw", "p50_ms")
    return {
        "added_ms_p50": round(statistics.median(mesh), 3),
        "added_ms_p50_raw": round(statistics.median(raw), 3),
        "ratio": round(statistics.median(m / r for m, r in zip(mesh, raw, strict=True) if r > 0), 2),
        "added_ms_p99": round(statistics.median(added("p2pmesh", "p99_ms")), 3),
        "added_ms_p99_raw": round(statistics.median(added("raw", "p99_ms")), 3),
        "cpu_us_per_frame": relay("p2pmesh", "cpu_us"),
        "cpu_us_per_frame_raw": relay("raw", "cpu_us"),
        "flood_cpu_us_per_frame": relay("p2pmesh", "flood_cpu_us"),
        "flood_cpu_us_per_frame_raw": relay("raw", "flood_cpu_us"),
        "flood_fps": relay("p2pmesh", "flood_fps"),
        "flood_fps_raw": relay("raw", "flood_fps"),
        "cores": os.cpu_count(),
        "rows": rows,
    }


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hop", description="What one relay hop costs.")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--frames",
        type=int,
        default=400,
        help="paced chunks of each measurement; five times as many in a flood",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        kind, role, *targets = options.part
        node = _mesh_node if kind == "p2pmesh" else _raw_node
        trio.run(node, targets, _sink if role == "sink" else None)
        return
    figures = measure(options.frames, options.rounds)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for row in figures.pop("rows"):  # type: ignore[attr-defined]
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    for key, value in figures.items():
        print(f"{key:28s} {value}")


if __name__ == "__main__":
    main()
