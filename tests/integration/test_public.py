"""The door for other machines: TLS, a key for each request and its zones, and nothing to rule by."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pmesh.cli.main import main
from p2pmesh.config import Config, Http, ModelConfig
from p2pmesh.errors import ConfigError
from p2pmesh.gateway import server
from p2pmesh.gateway.keys import Keys
from p2pmesh.gateway.server import open_public
from p2pmesh.net.identity import load_or_create
from p2pmesh.peer import credentials
from p2pmesh.peer.peer import open_peer
from p2pmesh.peer.state import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.wire
HANG_S = 60


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "peer")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    kind = serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, plain))
    return files


class Public:
    """A peer's public door, and a client of it."""

    def __init__(self, url: str, keys: Keys, certificate: Path, peer: Any) -> None:
        self.url, self.keys, self.peer = url, keys, peer
        self._trusts = ssl.create_default_context(cafile=str(certificate))

    def client(self, key: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, timeout=HANG_S, verify=self._trusts, headers=headers)

    async def call(self, method: str, path: str, key: str = "", **how: Any) -> httpx.Response:
        headers = how.pop("headers", {}) | ({"authorization": f"Bearer {key}"} if key else {})
        async with httpx.AsyncClient(base_url=self.url, timeout=HANG_S, verify=self._trusts) as client:
            return await client.request(method, path, headers=headers, **how)

    async def chat(self, key: str, **fields: Any) -> httpx.Response:
        body = {"model": "auto", "messages": [{"role": "user", "content": "one two"}], **fields}
        return await self.call("POST", "/v1/chat/completions", key, json=body)


@asynccontextmanager
async def public(tmp_path: Path, zones: tuple[str, ...] = (), **more: Any) -> AsyncIterator[Public]:
    certificate, private_key = self_signed(tmp_path)
    http = Http(public="127.0.0.1:0", certificate=str(certificate), private_key=str(private_key), **more)
    echo = ModelConfig(model="echo", engine="echo", tokens_per_s=1_000.0, zones=zones)
    if zones:
        (tmp_path / "state").mkdir()
        credentials.found(tmp_path / "state", load_or_create(tmp_path / "state" / KEY), "lab", zones)
    config = Config(name="ada", state=str(tmp_path / "state"), models=(echo,), embedder="none", http=http)
    with trio.fail_after(HANG_S):
        async with open_peer(config) as peer, open_public(peer) as url:
            assert url.startswith("https://127.0.0.1:")
            yield Public(url, Keys(tmp_path / "state"), certificate, peer)


async def test_who_has_a_key_asks_and_nobody_else(tmp_path: Path) -> None:
    async with public(tmp_path) as it:
        key = it.keys.make("app", [])
        answered = await it.chat(key)
        assert answered.json()["choices"][0]["message"]["content"] == "echo: one two"
        assert [m["id"] for m in (await it.call("GET", "/v1/models", key)).json()["data"]] == ["auto", "echo"]
        for wrong in ("", "p2pm-made-up", key[:-1]):
            refused = await it.chat(wrong)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert refused.json()["error"]["code"] == "invalid_api_key"
        basic = await it.call("GET", "/v1/models", headers={"authorization": f"Basic {key}"})
        assert basic.status_code == 401
        assert (await it.call("GET", "/healthz")).json() == {"ok": True}
        it.keys.remove("app")
        assert (await it.chat(key)).status_code == 401


async def test_a_key_is_good_in_its_zones_alone(tmp_path: Path) -> None:
    async with public(tmp_path) as it:
        plain, zoned = it.keys.make("plain", []), it.keys.make("zoned", ["hr"])
        refused = await it.chat(plain, zone="hr")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_trusted")
        assert "the key plain may not ask in the zone 'hr'" in refused.json()["error"]["message"]
        let_through = await it.chat(zoned, zone="hr")  # and there is nobody who may see it
        assert let_through.json()["error"]["code"] not in ("not_trusted", "invalid_api_key")


async def test_a_key_sees_the_models_of_its_zones_alone(tmp_path: Path) -> None:
    async with public(tmp_path, zones=("hr",)) as it:
        plain, zoned = it.keys.make("plain", []), it.keys.make("zoned", ["hr"])
        law = it.keys.make("law", ["law"])
        for key, names in ((plain, ["auto"]), (law, ["auto"]), (zoned, ["auto", "echo"])):
            told = (await it.call("GET", "/v1/models", key)).json()["data"]
            assert [model["id"] for model in told] == names
            assert (await it.call("GET", "/v1/models/echo", key)).is_success is ("echo" in names)
        assert (await it.chat(plain)).json()["error"]["code"] == "no_route"
        assert (await it.chat(zoned, zone="hr")).is_success
        words = [(await it.chat(plain, model=name)).json()["error"] for name in ("echo", "none")]
        assert words[0] == {**words[1], "message": words[1]["message"].replace("none", "echo")}


async def test_one_key_takes_no_more_than_its_share_and_the_others_notice_nothing(tmp_path: Path) -> None:
    async with public(tmp_path) as it:
        greedy, other = it.keys.make("greedy", [], per_minute=3), it.keys.make("other", [])
        assert [(await it.chat(greedy)).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        refused = await it.chat(greedy)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert (await it.call("GET", "/v1/models", greedy)).status_code == 200  # which costs nothing
        assert (await it.chat(other)).status_code == 200


async def test_who_comes_for_an_answer_is_counted_and_reads_none_of_another_zone(tmp_path: Path) -> None:
    async with public(tmp_path) as it:
        key = it.keys.make("app", ["law"], per_minute=2)
        mark = {"last-event-id": f"{1:032x}.0.{it.peer.id}"}
        told = [await it.call("GET", "/mesh/v1/answers", key, headers=mark) for _ in range(3)]
        assert [answer.status_code for answer in told] == [404, 404, 429]
        seen = []
        claim = it.peer.claim

        def noted(bookmark: str, **how: Any) -> Any:
            seen.append(how)
            return claim(bookmark, **how)

        it.peer.claim = noted
        await it.call("GET", "/mesh/v1/answers", it.keys.make("hr", ["hr"]), headers=mark)
        assert seen == [{"zones": ("hr",)}]


async def test_strangers_have_little_room_and_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_KNOWN_S", 0.5)
    async with public(tmp_path, requests_max=48) as it:
        key = it.keys.make("app", [])
        async with it.client(key) as known:
            assert (await known.get("/v1/models")).status_code == 200
            where = it.url.removeprefix("https://127.0.0.1:")
            silent = [await trio.open_tcp_stream("127.0.0.1", int(where)) for _ in range(12)]
            begun = trio.current_time()
            assert (await it.chat(key)).status_code == 200  # another connection: the door is not shut
            ended = []
            for stream in silent:
                async with stream:
                    with suppress(trio.BrokenResourceError):
                        await stream.receive_some()
                ended.append(trio.current_time() - begun)
            assert max(ended) < 5.0  # sooner than a handshake may take
            assert (await known.get("/v1/models")).status_code == 200  # on the connection it had
        assert (await it.chat(key)).status_code == 200


async def test_no_header_is_a_fault_of_ours(tmp_path: Path) -> None:
    async with public(tmp_path) as it:
        told = await it.call("GET", "/v1/models", headers={"origin": "http://["})
        assert told.status_code == 403


async def test_no_key_rules_the_peer(tmp_path: Path) -> None:
    async with public(tmp_path) as it:
        key = it.keys.make("app", [])
        for method, path in (
            ("POST", "stop"),
            ("POST", "drain"),
            ("POST", "invite"),
            ("POST", "revoke"),
            ("GET", "status"),
            ("GET", "peers"),
            ("POST", "explain"),
        ):
            assert (await it.call(method, f"/mesh/v1/{path}", key)).status_code == 404
        assert (await it.chat(key)).status_code == 200


async def test_a_page_from_elsewhere_is_refused_and_our_own_is_not(tmp_path: Path) -> None:
    async with public(tmp_path) as it:
        key = it.keys.make("app", [])
        for origin, status in (("https://evil.example", 403), ("null", 403), (it.url, 200)):
            told = await it.call("GET", "/v1/models", key, headers={"origin": origin})
            assert told.status_code == status


async def test_plain_http_gets_nothing(tmp_path: Path) -> None:
    async with public(tmp_path) as it:
        key = it.keys.make("app", [])
        host, _, port = it.url.removeprefix("https://").rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(f"GET /v1/models HTTP/1.1\r\nauthorization: Bearer {key}\r\n\r\n".encode())
            heard = b""
            try:
                async for data in stream:
                    heard += bytes(data)
            except trio.BrokenResourceError:
                pass
        assert b"HTTP" not in heard
        assert (await it.chat(key)).status_code == 200


def _encrypted(private_key: Path) -> None:
    key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    closed = serialization.BestAvailableEncryption(b"secret")
    kind = serialization.PrivateFormat.PKCS8
    private_key.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, closed))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda cert, key: cert.unlink(), "http.certificate: cannot read .*cert.pem: No such file"),
        (lambda cert, key: key.unlink(), "http.private_key: cannot read .*key.pem: No such file"),
        (lambda cert, key: cert.write_text("hello"), "http.certificate: .*cert.pem holds no PEM block"),
        (lambda cert, key: key.write_bytes(cert.read_bytes()), "http.private_key: .* of a private key"),
        (lambda cert, key: _encrypted(key), "key.pem takes a passphrase"),
        (
            lambda cert, key: key.write_bytes(self_signed(key.parent / "other")[1].read_bytes()),
            "the private key is another certificate's",
        ),
        (
            lambda cert, key: cert.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"),
            "http.certificate: .*cert.pem with .*key.pem",
        ),
    ],
    ids=["no certificate", "no key", "not PEM", "swapped", "a passphrase", "another's", "damaged"],
)
async def test_a_certificate_that_does_not_do_is_told_of(tmp_path: Path, spoil: Any, said: str) -> None:
    (tmp_path / "other").mkdir()
    certificate, private_key = self_signed(tmp_path)
    spoil(certificate, private_key)
    http = Http(public="127.0.0.1:0", certificate=str(certificate), private_key=str(private_key))
    config = Config(state=str(tmp_path / "state"), embedder="none", http=http)
    async with open_peer(config) as peer:
        with pytest.raises(ConfigError, match=said):
            async with open_public(peer):
                pass


async def test_keys_that_cannot_be_read_let_nobody_in_until_they_can(tmp_path: Path) -> None:
    async with public(tmp_path) as it:
        key = it.keys.make("app", [])
        file = tmp_path / "state" / "http-keys"
        whole = file.read_text()
        file.write_text("garbage")
        refused = await it.chat(key)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        file.write_text(whole)
        assert (await it.chat(key)).status_code == 200


async def test_the_verbs_ask_by_https_with_the_key_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with public(tmp_path) as it:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        ask = partial(CliRunner().invoke, main, ["ask", "one", "two", "--url", it.url])
        assert "is not known here" not in (refused := await trio.to_thread.run_sync(ask)).stderr
        assert refused.exit_code == 1
        monkeypatch.setenv("P2PMESH_KEY", it.keys.make("app", []))
        answered = await trio.to_thread.run_sync(ask)
        assert (answered.exit_code, answered.stdout) == (0, "echo: one two\n")
