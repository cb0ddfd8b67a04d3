"""One connection that shows something at a peer's door and takes what is given for it: how a machine joins.

Knows one address and one peer. It listens nowhere and becomes no link.
"""

from __future__ import annotations

import os

import trio

from p2pmesh.config import Net
from p2pmesh.errors import NetworkError, RemoteProtocolError
from p2pmesh.net.address import parse
from p2pmesh.net.identity import Identity
from p2pmesh.net.link import NONCE_BYTES, Granted, Link
from p2pmesh.net.secure import Security
from p2pmesh.record import PeerId


async def knock(
    identity: Identity, config: Net, frame_bytes_max: int, peer: PeerId, address: str, shown: bytes
) -> bytes:
    """Return what `peer` at `address` grants to who shows `shown`; only that peer sees it.

    Raises NetworkError with its reason where it grants nothing, and where it cannot be reached within
    `config.dial_timeout_s`.
    """
    tcp: trio.SocketStream | None = None
    try:
        where = parse(address)
        with trio.fail_after(config.dial_timeout_s):
            tcp = await trio.open_tcp_stream(where.host, where.port)
            connection = await Security(identity, config, lambda kind, detail: None).connect(tcp, peer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                link = Link(
                    connection,
                    address,
                    inbound=False,
                    outbox_frames_max=1,
                    frame_bytes_max=frame_bytes_max,
                )
                failure: Exception | None = None
                granted = b""
                try:
                    await connection.open()
                    await link.greet(os.urandom(NONCE_BYTES), shown)
                    await link.admit()
                except Granted as answer:
                    granted = answer.data
                except Exception as error:  # noqa: BLE001 - raised below: a nursery would wrap it in a group
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
    except trio.TooSlowError:
        raise NetworkError(f"no answer within {config.dial_timeout_s:g} s") from None
    except (ValueError, OSError, RemoteProtocolError) as error:
        raise NetworkError(str(error) or type(error).__name__) from None
    finally:
        if tcp is not None:
            tcp.socket.close()
    if not granted:
        raise NetworkError("it let us in, and gave nothing")
    return granted
