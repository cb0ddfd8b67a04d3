"""Those on other machines who ask over HTTP: with no key, with one that is not theirs, and with one they wear
out."""

from __future__ import annotations

import json
import ssl
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import trio

from p2pmesh.gateway.keys import Keys
from tests.attacks.ground import HANG_S, ZONE, Ground
from tests.attacks.verdict import Verdict

_SILENT = 100
RULING = (
    ("POST", "/mesh/v1/invite"),
    ("POST", "/mesh/v1/withdraw"),
    ("POST", "/mesh/v1/revoke"),
    ("POST", "/mesh/v1/signers"),
    ("POST", "/mesh/v1/sign"),
    ("POST", "/mesh/v1/stop"),
    ("POST", "/mesh/v1/drain"),
    ("GET", "/mesh/v1/status"),
)
"""What is for those alone who are on the peer's own machine."""
_ASKED = {"model": "small", "max_tokens": 4, "messages": [{"role": "user", "content": "one two"}]}


def _keys(ground: Ground) -> Keys:
    return Keys(Path(ground.desk.state))


def _client(ground: Ground, key: str) -> httpx.AsyncClient:
    trusts = ssl.create_default_context(cafile=str(ground.tls))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=ground.public, verify=trusts, headers=headers, timeout=HANG_S)


async def _ask(ground: Ground, key: str, method: str = "POST", path: str = "", **more: Any) -> int:
    """Return the status that somebody gets who shows `key`."""
    async with _client(ground, key) as client:
        body = None if method == "GET" else {**_ASKED, **more}
        return (await client.request(method, path or "/v1/chat/completions", json=body)).status_code


async def stolen_door(ground: Ground) -> Verdict:
    """Ask with no key, a made-up one, half of one, one that was taken back; in a zone that one is not good
    for; and rule the peer with one that is good. A good one is answered: or nothing would be shown."""
    keys = _keys(ground)
    good, gone = keys.make("good", ()), keys.make("gone", ())
    keys.remove("gone")
    wrong = {name: await _ask(ground, key) for name, key in _wrong(good, gone).items()}
    zoned = await _ask(ground, good, zone=ZONE)
    ruled = {path: await _ask(ground, good, method, path) for method, path in RULING}
    answered = await _ask(ground, good)
    keys.remove("good")
    blocked = set(wrong.values()) == {401} and zoned == 403 and min(ruled.values()) >= 403 and answered == 200
    seen = f"{wrong}, in a zone {zoned}, ruling {sorted({*ruled.values()})}"
    return Verdict(blocked, f"{seen}, a good one {answered}")


def _wrong(good: str, gone: str) -> dict[str, str]:
    return {"none": "", "made up": "p2pm-" + "a" * 43, "half": good[:-1], "taken back": gone}


async def plain_or_old_tls(ground: Ground) -> Verdict:
    """Speak plain HTTP to the public door, and TLS of 2006."""
    host, port = ground.public.removeprefix("https://").split(":")
    heard = b""
    with trio.move_on_after(5.0):
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
                async for data in stream:
                    heard += bytes(data)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    spoke = "nothing"
    with trio.move_on_after(5.0), suppress(ssl.SSLError, trio.BrokenResourceError):
        async with await trio.open_tcp_stream(host, int(port)) as tcp:
            await trio.SSLStream(tcp, old).do_handshake()
            spoke = "TLS 1.1"
    blocked = b"200" not in heard.partition(b"\r\n")[0] and spoke == "nothing"
    return Verdict(blocked, f"plain text got {heard[:40]!r}, an old handshake {spoke}")


async def silent_guests(ground: Ground) -> Verdict:
    """Hold a hundred connections to the public door open and say nothing; who has a key is served beside."""
    key = _keys(ground).make("beside", ())
    host, port = ground.public.removeprefix("https://").split(":")
    streams = []
    with trio.move_on_after(HANG_S):
        for _ in range(_SILENT):
            with suppress(OSError):
                streams.append(await trio.open_tcp_stream(host, int(port)))
    statuses = []
    for _ in range(3):
        with suppress(httpx.HTTPError):
            statuses.append(await _ask(ground, key))
    for stream in streams:
        await stream.aclose()
    _keys(ground).remove("beside")
    served = statuses.count(200)
    return Verdict(served == 3, f"{len(streams)} silent ones held, {served} of 3 with a key were answered")


async def worn_out_key(ground: Ground) -> Verdict:
    """Ask without a pause with a key of ten a minute."""
    keys = _keys(ground)
    key = keys.make("kiosk", (), per_minute=10)
    statuses = [await _ask(ground, key) for _ in range(20)]
    keys.remove("kiosk")
    blocked = statuses.count(200) <= 11 and statuses.count(429) >= 9
    return Verdict(blocked, json.dumps({str(code): statuses.count(code) for code in sorted({*statuses})}))


ATTACKS = (stolen_door, plain_or_old_tls, silent_guests, worn_out_key)
