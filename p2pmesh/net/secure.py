"""A TCP connection becomes one encrypted stream to a proven peer.

The only file that speaks libp2p. It uses libp2p's Noise, yamux and multistream-select on sockets of our own,
and none of its host: that is what listens with SO_REUSEPORT, offers plaintext, retries, blacklists, and
stops with any handler (research/libp2p, B2 to B6 and B11 to B13). No type and no exception of libp2p leaves
this file: all of them become NetworkError. It knows no frame and no mesh.

On top of libp2p stands a bound for each thing a stranger could make us hold: streams, bytes unread, seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import trio
from libp2p.crypto.ed25519 import Ed25519PrivateKey, KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import DEFAULT_WINDOW_SIZE, Yamux
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.transport.upgrader import TransportUpgrader

from p2pmesh.config import Net
from p2pmesh.errors import NetworkError
from p2pmesh.net.address import of_socket
from p2pmesh.net.identity import Identity
from p2pmesh.record import PeerId
from p2pmesh.trust.keys import public_key_of

PROTOCOL = "/p2pmesh/1.0.0"
WRITE_BYTES = 65_000
"""Most bytes of one write: with yamux's header it still fits one Noise message of 65519."""
UNREAD_BYTES_MAX = 1_048_576
"""Most bytes held unread, all streams of a connection together and the frame that is arriving. A peer that
keeps to its window of 256 KiB stays far below; libp2p only logs a peer that does not."""
HANDSHAKE_BYTES_MAX = 1_048_576
"""Most bytes taken from a socket before there are streams."""
NEGOTIATION_BYTES_MAX = 4_096
"""Most bytes of the talk about one stream's protocol: libp2p would hold a name of any length."""
_CREDIT_BYTES = DEFAULT_WINDOW_SIZE // 4

# libp2p reports every failed handshake on stderr unless somebody listens; we tell once, in our own words.
logging.getLogger("libp2p").addHandler(logging.NullHandler())


class ForeignProtocol(NetworkError):
    """The other side speaks something else. The connection must be ended."""


class Security:
    """What this peer proves itself with: Noise and its Ed25519 key, and nothing weaker to fall back to."""

    def __init__(self, identity: Identity, config: Net, note: Callable[[str, str], None]) -> None:
        """`note` is told, by kind and detail, what strangers do wrong."""
        private = Ed25519PrivateKey.from_bytes(identity.seed)
        noise = Noise(KeyPair(private, private.get_public_key()), create_new_key_pair().private_key)
        self._id = identity.id
        self._config = config
        self._note = note
        self._upgrader = TransportUpgrader({NOISE: noise}, {YAMUX: Yamux})

    async def connect(self, tcp: trio.SocketStream, expected: PeerId | None) -> Connection:
        """Return the connection over `tcp`, which we opened, to `expected` or whoever proves to be there.

        Raises NetworkError; the caller closes `tcp`. Cancelled, it leaves `tcp` in no usable state.
        """
        socket = _Socket(tcp, self._config.read_bytes, initiator=True)
        try:
            if expected is not None:
                secured = await self._upgrader.upgrade_security(socket, True, ID.from_base58(expected))
            else:
                secured = await self._upgrader.security_multistream.secure_outbound(socket, None)
            return await self._muxed(socket, secured)
        except Exception as error:
            raise _network_error("handshake failed", error) from error

    async def accept(self, tcp: trio.SocketStream) -> Connection:
        """Return the connection over `tcp`, which was opened to us. Raises and leaves as `connect` does."""
        socket = _Socket(tcp, self._config.read_bytes, initiator=False)
        try:
            secured = await self._upgrader.upgrade_security(socket, False)
            return await self._muxed(socket, secured)
        except Exception as error:
            raise _network_error("handshake failed", error) from error

    async def _muxed(self, socket: _Socket, secured: Any) -> Connection:
        peer = PeerId(secured.get_remote_peer().to_base58())
        if peer == self._id:
            raise NetworkError("that is this peer itself")
        public_key_of(peer)  # Ed25519 or nothing: our records are verified with the id alone
        muxed = await self._upgrader.upgrade_connection(secured, secured.get_remote_peer())
        socket.bytes_left = None
        budget = _Budget(self._config.inbound_streams_max, self._config.inbound_streams_per_s)
        return Connection(peer, socket, muxed, budget, self._note)


class Connection:
    """A secured connection and the one stream of ours on it.

    `run` must be running while anything else is used. Then either `open` or `accepted` makes the stream.
    """

    def __init__(
        self, peer: PeerId, socket: _Socket, muxed: Any, budget: _Budget, note: Callable[[str, str], None]
    ) -> None:
        self.peer = peer
        self._socket = socket
        self._muxed = muxed
        self._stream: Any = None
        self._arrived = trio.Event()
        self._negotiating = trio.Lock()
        self._refused = 0
        self._budget = budget
        self._note = note
        self._uncredited = 0
        self._why_ended = ""
        self._why_refused = ""
        self._over = False
        self._waiting: trio.CancelScope | None = None
        # Every body of a frame passes here, before it is read and held.
        self._read_body = muxed._read_data_body
        muxed._read_data_body = self._read_bounded

    async def run(self) -> None:
        """Move bytes until the connection ends; then return. Raises only what trio raises to cancel."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_failed, self._muxed.start)
                await self._until_failed(self._serve_streams, nursery)
                nursery.cancel_scope.cancel()
        finally:
            self.abort()
            self._over = True
            self._arrived.set()
            if self._waiting is not None:
                self._waiting.cancel()

    async def open(self) -> None:
        """Open our stream on it. Raises NetworkError: ForeignProtocol where the peer does not speak ours."""
        try:
            with self._while_it_lasts():
                self._stream = await self._muxed.open_stream()
                await MultiselectClient().select_one_of(
                    [PROTOCOL], MultiselectCommunicator(_Plain(self._stream))
                )
        except Exception as error:
            if "not supported" in _why(error):
                raise ForeignProtocol(f"it does not speak {PROTOCOL}") from error
            raise _network_error("no stream", error) from error

    async def accepted(self) -> None:
        """Wait until the peer has opened our stream on it. Raises NetworkError where the connection ends
        first."""
        await self._arrived.wait()
        if self._stream is None:
            kind = ForeignProtocol if self._refused else NetworkError
            raise kind(self._why_ended or self._why_refused or "it went away")

    async def read(self) -> bytes:
        """Return the next bytes, at least one. Raises NetworkError at the end, which libp2p cannot tell from
        a reset. Safe to cancel."""
        try:
            with self._while_it_lasts():
                data: bytes = await self._muxed.read_stream(self._stream.stream_id, DEFAULT_WINDOW_SIZE)
        except Exception as error:
            raise NetworkError(self._why_ended or "the connection broke without a goodbye") from error
        # Credit by the quarter of the window, as yamux's specification wants it.
        self._uncredited += len(data)
        if self._uncredited >= _CREDIT_BYTES:
            await self._credit()
        return data

    async def write(self, data: bytes) -> None:
        """Write all of `data`, in at most WRITE_BYTES to share the wire. Raises NetworkError. Cancelled
        midway it leaves the connection unusable (B1): cancel only what is being ended."""
        try:
            if len(data) <= WRITE_BYTES:
                await self._stream.write(data)
            else:
                for at in range(0, len(data), WRITE_BYTES):
                    await self._stream.write(data[at : at + WRITE_BYTES])
        except Exception as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: Exception) -> NetworkError:
        """Say why a write failed: where we ended the connection, that it is closed is only what follows."""
        return NetworkError(self._why_ended) if self._why_ended else _network_error("write failed", error)

    def abort(self, why: str = "") -> None:
        """End it at once, from anywhere. Whatever reads or writes on it raises NetworkError. Never blocks."""
        self._why_ended = self._why_ended or why
        self._socket.abort()
        if self._stream is not None:
            self._stream.closed = True  # a write that waits for a window looks at this

    @contextmanager
    def _while_it_lasts(self) -> Iterator[None]:
        """Wait on yamux no longer than `run` runs: it does not always wake who waits for a stream's bytes."""
        if self._over:
            raise NetworkError("ended")
        with trio.CancelScope() as self._waiting:
            yield
            return
        raise NetworkError("ended")

    async def _credit(self) -> None:
        credit, self._uncredited = self._uncredited, 0
        self._stream.recv_window += credit
        try:
            # Half a frame on the wire would end the connection, and a read may be cancelled.
            with trio.CancelScope(shield=True):
                await self._stream.send_window_update(credit)
        except Exception as error:
            raise self._unwritten(error) from error

    async def _read_bounded(self, length: int) -> bytes:
        """Read the body of a frame of yamux, or end the connection where too much would be held."""
        held = sum(map(len, self._muxed.stream_buffers.values()))
        if held + length > UNREAD_BYTES_MAX:
            self._note("unread floods", f"{self.peer} sent more than its windows; its connection was ended")
            self.abort("it sent more than its windows")
            self._muxed.event_shutting_down.set()  # or yamux would go on, within the body
            raise ConnectionClosedError(self._why_ended, transport="tcp")
        data: bytes = await self._read_body(length)
        return data

    async def _until_failed(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        # libp2p raises what it likes when a connection ends, and nothing that tells more than that it did.
        with suppress(Exception):
            await work(*args)

    async def _serve_streams(self, nursery: trio.Nursery) -> None:
        """Take the streams the peer opens, within its budget, until the connection or the budget ends."""
        while True:
            stream = await self._muxed.accept_stream()
            if not self._budget.take():
                self._note("stream floods", f"{self.peer} opened too many streams; its connection was ended")
                self.abort("it opened too many streams")
                return
            nursery.start_soon(self._negotiate, stream)

    async def _negotiate(self, stream: Any) -> None:
        """Agree on a protocol: ours, once, and with one stream at a time. A stream for anything else, or one
        more, is refused and the connection lives."""
        async with self._negotiating:
            try:
                if self._stream is None:
                    await Multiselect({PROTOCOL: None}).negotiate(MultiselectCommunicator(_Plain(stream)))
                if self._stream is None:
                    self._stream = stream
                    self._arrived.set()
                    return
            except Exception as error:  # noqa: BLE001 - as above
                self._why_refused = f"it spoke no protocol of ours ({_why(error)})"
            self._refused += 1
            self._note("refused streams", f"{self.peer} opened one that is none of ours, or one more")
            try:
                # yamux would keep what is unread of it for a minute
                self._muxed.stream_buffers.get(stream.stream_id, bytearray()).clear()
                await stream.reset()
            except Exception as error:  # noqa: BLE001 - as above
                self.abort(_why(error))


class _Socket:
    """A TCP stream as libp2p's raw connection, read in large pieces: Noise asks for 2 bytes, then for some
    more."""

    def __init__(self, tcp: trio.SocketStream, read_bytes: int, *, initiator: bool) -> None:
        self.is_initiator = initiator
        self.bytes_left: int | None = HANDSHAKE_BYTES_MAX
        self._tcp = tcp
        self._read_bytes = read_bytes
        self._buffer = b""
        self._at = 0

    async def read(self, n: int | None = None) -> bytes:
        if self._at >= len(self._buffer):
            await self._fill()
        stop = len(self._buffer) if n is None else min(len(self._buffer), self._at + n)
        data = self._buffer[self._at : stop]
        self._at = stop
        return data

    async def _fill(self) -> None:
        try:
            data = await self._tcp.receive_some(self._read_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(str(error), transport="tcp") from error
        if not data:
            raise ConnectionClosedError("end of stream", transport="tcp")
        if self.bytes_left is not None:
            self.bytes_left -= len(data)
            if self.bytes_left < 0:
                self.abort()
                raise ConnectionClosedError("its handshake is too long", transport="tcp")
        self._buffer, self._at = bytes(data), 0

    async def write(self, data: bytes) -> None:
        try:
            await self._tcp.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(str(error), transport="tcp") from error

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._tcp.socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        try:
            address = of_socket(self._tcp.socket.getpeername())
        except OSError:
            return None
        return address.host, address.port


class _Plain:
    """A yamux stream while its protocol is talked about: read without libp2p's window tuning, which gives
    credit after each read, an encrypted frame every time, and doubles the window with each of the quick
    reads, up to 16 MiB. Gives at most NEGOTIATION_BYTES_MAX."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = NEGOTIATION_BYTES_MAX
        self.write = stream.write

    async def read(self, n: int) -> bytes:
        if n > self._left:
            raise NetworkError("too long a talk about a protocol")
        data: bytes = await self._stream.muxed_conn.read_stream(self._stream.stream_id, n)
        self._left -= len(data)
        return data


class _Budget:
    """So many at once, so many a second."""

    def __init__(self, burst: float, per_s: float) -> None:
        self._left = self._burst = burst
        self._per_s = per_s
        self._since = trio.current_time()

    def take(self) -> bool:
        now = trio.current_time()
        self._left = min(self._burst, self._left + (now - self._since) * self._per_s)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _network_error(what: str, error: Exception) -> NetworkError:
    return NetworkError(f"{what}: {_why(error)}")


def _why(error: BaseException) -> str:
    """Return the innermost reason of a chain of exceptions, in few words."""
    for _ in range(16):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            break
        error = cause
    return f"{type(error).__name__}: {error}"[:200].rstrip(": ")
