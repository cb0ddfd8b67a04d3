"""The routes: what can be asked over HTTP, and what a browser may not.

Only names and sizes are judged here; chat is `chat`'s, shapes are `openai`'s.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from p2pmesh.errors import ConfigError, MeshError, Reason, Untrusted
from p2pmesh.gateway import chat, openai
from p2pmesh.gateway.chat import ChatReply
from p2pmesh.gateway.keys import Allowance, Key, Keys
from p2pmesh.peer.peer import TICKET_LIFE_S, Member, Peer
from p2pmesh.query import AUTO, QueryId
from p2pmesh.record import GENERAL, PeerId

T = TypeVar("T")
_log = logging.getLogger("p2pmesh.gateway")
_HEALTH = ("/healthz", "/health")
"""The second is where llama.cpp's server, vLLM and routers before them have it."""


class _Explain(msgspec.Struct):
    prompt: str
    model: str = AUTO
    zone: str = GENERAL


class _Feedback(msgspec.Struct):
    id: str
    rating: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class _Invite(msgspec.Struct):
    zones: tuple[str, ...] = ()
    expires_s: float = TICKET_LIFE_S
    uses: int = 1


class _Withdraw(msgspec.Struct):
    ticket: str


class _Revoke(msgspec.Struct):
    peer: str


class _Signers(msgspec.Struct):
    add: list[str] = []
    remove: list[str] = []
    after_s: float | None = None
    anew: bool = False


class _Sign(msgspec.Struct):
    change: str
    anew: bool = False
    at_once: bool = False


class OwnHostOnly:
    """Refuses requests that a foreign web page made a browser send (DNS rebinding, cross-site posts)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what names this machine, in Host and, where there is one, in Origin."""
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            host = f"//{headers.get('host', '')}"
            if not _is_loopback(host) or not _is_loopback(headers.get("origin", host)):
                body = openai.error("this door answers to this machine only", "forbidden", 403)
                await JSONResponse(body, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


@dataclass(eq=False)
class Guest:
    """Whoever is at the other end of one connection."""

    address: str
    known: bool = False
    """Whether he has shown a key on it."""
    unwanted: trio.Event = field(default_factory=trio.Event)
    """Set when another wants his place, as long as he is not known."""


class KeysOnly:
    """Lets in whoever shows a key, from wherever, and no page that a browser has from elsewhere."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what shows a key; who only looks whether the peer is well needs none."""
        if scope["type"] == "http" and scope["path"] not in _HEALTH:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if not _is_own(headers.get("origin"), headers.get("host", "")):
                body = openai.error("a page from elsewhere may not ask here", "forbidden", 403)
                await JSONResponse(body, 403)(scope, receive, send)
                return
            kind, _, secret = headers.get("authorization", "").partition(" ")
            try:
                key = self._keys.find(secret.strip()) if kind.lower() == "bearer" else None
            except ConfigError as exc:  # nobody is let in, and the peer's own people read why in its log
                _log.error("the keys cannot be read: %s", exc)
                text = "this peer cannot read its keys; its log says more"
                body = openai.error(text, "internal_error", 503)
                await JSONResponse(body, 503, {"retry-after": "10"})(scope, receive, send)
                return
            if key is None:
                text = (
                    "this key is not known here, or was taken back"
                    if secret
                    else "this takes a key, as `Authorization: Bearer KEY`: `p2pmesh key create` makes one"
                )
                body = openai.error(text, "invalid_api_key", 401)
                await JSONResponse(body, 401, {"www-authenticate": "Bearer"})(scope, receive, send)
                return
            state = scope.setdefault("state", {})
            state["key"] = key
            if "guest" in state:
                state["guest"].known = True
        await self._app(scope, receive, send)


def _is_own(origin: str | None, host: str) -> bool:
    """Whether no page asks, or one of this very host."""
    try:
        return origin is None or urlsplit(origin).netloc == host
    except ValueError:
        return False


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def create_app(peer: Peer, stop: Callable[[], None], drain: Callable[[], None]) -> Starlette:
    """Return the ASGI application of `peer`; `stop` ends the process that serves it, `drain` once what
    the peer has begun has ended."""
    door = _Door(peer, stop, drain)
    routes = [
        *_asking(door),
        Route("/mesh/v1/status", door.status),
        Route("/mesh/v1/peers", door.peers),
        Route("/mesh/v1/explain", door.explain, methods=["POST"]),
        Route("/mesh/v1/invite", door.invite, methods=["POST"]),
        Route("/mesh/v1/withdraw", door.withdraw, methods=["POST"]),
        Route("/mesh/v1/revoke", door.revoke, methods=["POST"]),
        Route("/mesh/v1/signers", door.signers, methods=["POST"]),
        Route("/mesh/v1/sign", door.sign, methods=["POST"]),
        Route("/mesh/v1/stop", door.stop, methods=["POST"]),
        Route("/mesh/v1/drain", door.drain, methods=["POST"]),
    ]
    return _application(routes, Middleware(OwnHostOnly))


def create_public_app(peer: Peer, keys: Keys) -> Starlette:
    """Return the ASGI application for other machines: it asks, for whoever has one of `keys`, and rules
    nothing."""
    door = _Door(peer, _never, _never)
    return _application(_asking(door), Middleware(KeysOnly, keys=keys))


def _never() -> None:
    raise AssertionError("this door has no such route")


def _asking(door: _Door) -> list[Route]:
    """Return the routes by which one asks, and rates what he got."""
    return [
        Route("/", door.root),
        Route("/v1/models", door.models),
        Route("/v1/models/{name}", door.model),
        Route("/v1/chat/completions", door.chat, methods=["POST"]),
        Route("/mesh/v1/answers", door.answers),
        Route("/mesh/v1/feedback", door.feedback, methods=["POST"]),
        *(Route(path, door.health) for path in _HEALTH),
    ]


def _application(routes: list[Route], guard: Middleware) -> Starlette:
    handlers: Any = {
        openai.BadRequest: lambda _, exc: chat.bad_request(exc),
        Untrusted: lambda _, exc: JSONResponse(openai.error(str(exc), "not_trusted", 403), 403),
        MeshError: lambda _, exc: chat.mesh_failure(exc),
        ClientDisconnect: lambda _, __: Response(status_code=400),  # nobody reads it
        HTTPException: _http_error,
        Exception: _bug,
    }
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)


def _http_error(request: Request, failure: HTTPException) -> Response:
    text = f"{request.method} {request.url.path}: {failure.detail}"
    code = {404: "not_found", 405: "method_not_allowed"}.get(failure.status_code, "invalid_request")
    body = openai.error(text, code, failure.status_code)
    return JSONResponse(body, failure.status_code, failure.headers)


def _bug(request: Request, failure: Exception) -> Response:
    """The server logs what it was; the client is told no more than that."""
    return JSONResponse(openai.error("a fault of this peer; its log says more", "internal_error", 500), 500)


def _key_of(request: Request) -> Key | None:
    """Return the key that a request came with; None: at the door of this machine, where none is asked for."""
    key = request.scope.get("state", {}).get("key")
    return key if isinstance(key, Key) else None


class _Door:
    """The endpoints of one peer."""

    def __init__(self, peer: Peer, stop: Callable[[], None], drain: Callable[[], None]) -> None:
        self._peer = peer
        self._stop = stop
        self._drain = drain
        self._requests = 0
        self._allowance = Allowance()

    async def chat(self, request: Request) -> Any:
        """Answer a chat."""

        async def reply() -> ChatReply:
            body = await chat.body_of(request, self._peer.config.http.body_bytes_max)
            asked = openai.parse(body)
            if key is not None and not key.may_ask_in(asked.zone):
                raise Untrusted(f"the key {key.name} may not ask in the zone {asked.zone!r}")
            return chat.ask(self._peer, asked, self._finished)

        key = _key_of(request)
        return await self._admit(reply, key)

    async def answers(self, request: Request) -> Any:
        """Give the rest of an answer that was begun at a peer that has died, from where its reader was."""

        key = _key_of(request)

        async def reply() -> ChatReply:
            mark = request.headers.get("last-event-id", "")
            return chat.claim(self._peer, mark, None if key is None else key.zones, self._finished)

        return await self._admit(reply, key)

    async def _admit(self, reply: Callable[[], Awaitable[ChatReply]], key: Key | None) -> Any:
        """Let one who generates in, by `key` where he has one, if there is room and his allowance lasts."""
        config = self._peer.config.http
        wait_s = 0.0 if key is None else self._allowance.wait_s(key, trio.current_time())
        if key is not None and wait_s:
            text = f"this key may ask {key.per_minute} queries a minute"
            body = openai.error(text, "rate_limit_exceeded", 429)
            return JSONResponse(body, 429, {"retry-after": str(math.ceil(wait_s))})
        if self._requests >= config.requests_max or self._peer.draining:
            busy = "this peer is about to go" if self._peer.draining else "too many requests are being served"
            return JSONResponse(openai.error(busy, Reason.OVERLOADED.value, 503), 503, {"retry-after": "1"})
        self._requests += 1
        try:
            return await reply()
        except BaseException:
            self._finished()
            raise

    def _finished(self) -> None:
        self._requests -= 1

    async def root(self, request: Request) -> Response:
        paths = [route.path for route in request.app.routes]
        return JSONResponse({"p2pmesh": self._peer.name, "paths": paths})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._models(_key_of(request))})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        for model in self._models(_key_of(request)):
            if model["id"] == name:
                return JSONResponse(model)
        text = f"no peer within reach serves the model {name!r}"
        return JSONResponse(openai.error(text, Reason.MODEL_NOT_FOUND.value, 404, "model"), 404)

    def _models(self, key: Key | None) -> list[dict[str, Any]]:
        served: dict[str, list[str]] = {AUTO: []}
        for member in self._peer.members():
            if member.alive and member.distance >= 0:
                for model in member.capability.models:
                    if key is None or any(map(key.may_ask_in, member.capability.zones_of(model))):
                        served.setdefault(model.name, []).append(member.name)
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": "p2pmesh", "peers": peers}
            for name, peers in served.items()
        ]

    async def status(self, request: Request) -> Response:
        return JSONResponse(self._peer.status())

    async def peers(self, request: Request) -> Response:
        return JSONResponse({"peers": [_member(member) for member in self._peer.members()]})

    async def explain(self, request: Request) -> Response:
        asked = await self._read(request, _Explain)
        decision = await self._peer.explain(asked.prompt, model=asked.model, zone=asked.zone)
        rows = [
            {
                "peer": row.name,
                "id": row.peer,
                "model": row.model,
                "skill": row.skill,
                "quality": round(row.quality, 4),
                "wait_s": round(row.wait_s, 4),
                "work_s": round(row.work_s, 4),
                "rtt_s": round(row.rtt_s, 6),
                "j_s": round(row.j_s, 4),
                "why_not": row.why_not.value if row.why_not else None,
            }
            for row in decision.table
        ]
        return JSONResponse({"decision": decision.kind.value, "why": decision.explain(), "table": rows})

    async def feedback(self, request: Request) -> Response:
        """Take a rating of an answer given here."""
        said = await self._read(request, _Feedback)
        if not self._peer.rate(QueryId(said.id.removeprefix("chatcmpl-")), said.rating):
            why = "it was asked elsewhere, or long ago, or is rated, or is of a zone, where none is rated"
            text = f"no answer {said.id!r} awaits a rating: {why}"
            return JSONResponse(openai.error(text, "not_found", 404, "id"), 404)
        return Response(status_code=204)

    async def invite(self, request: Request) -> Response:
        """Make a ticket."""
        self._check_token(request)
        said = await self._read(request, _Invite)
        ticket = self._peer.invite(zones=said.zones, expires_s=said.expires_s, uses=said.uses)
        return JSONResponse({"ticket": ticket, "addresses": list(self._peer.addresses)})

    async def withdraw(self, request: Request) -> Response:
        """Take a ticket back."""
        self._check_token(request)
        said = await self._read(request, _Withdraw)
        return JSONResponse({"let_in": list(self._peer.withdraw(said.ticket))})

    async def revoke(self, request: Request) -> Response:
        """Throw a peer out."""
        self._check_token(request)
        said = await self._read(request, _Revoke)
        self._peer.revoke(PeerId(said.peer))
        return Response(status_code=204)

    async def signers(self, request: Request) -> Response:
        """Let others sign for the mesh."""
        self._check_token(request)
        said = await self._read(request, _Signers)
        proposal = self._peer.signers.change(**msgspec.structs.asdict(said))
        return JSONResponse({"change": proposal.text, "missing": proposal.missing})

    async def sign(self, request: Request) -> Response:
        """Sign a change of signers."""
        self._check_token(request)
        said = await self._read(request, _Sign)
        proposal = self._peer.signers.sign(said.change, anew=said.anew, at_once=said.at_once)
        return JSONResponse({"change": proposal.text, "missing": proposal.missing})

    def _check_token(self, request: Request) -> None:
        """Raise Untrusted for who cannot read this peer's state directory: others on this machine may ask,
        and not let anybody in."""
        shown = request.headers.get("x-p2pmesh-token", "")
        if not secrets.compare_digest(shown.encode(), self._peer.token.encode()):
            raise Untrusted("this takes the token of the peer, from running.json in its state directory")

    async def _read(self, request: Request, kind: type[T]) -> T:
        body = await chat.body_of(request, self._peer.config.http.body_bytes_max)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise openai.BadRequest(str(exc)) from None

    async def stop(self, request: Request) -> Response:
        return JSONResponse({"stopping": True}, background=BackgroundTask(_soon, self._stop))

    async def drain(self, request: Request) -> Response:
        told = {"draining": True, "grace_s": self._peer.config.relay.drain_s}
        return JSONResponse(told, background=BackgroundTask(_soon, self._drain))

    async def health(self, request: Request) -> Response:
        return JSONResponse({"ok": True})


async def _soon(call: Callable[[], None]) -> None:
    call()


def _member(member: Member) -> dict[str, Any]:
    capability, load = member.capability, member.load
    return {
        "id": member.id,
        "name": member.name,
        "alive": member.alive,
        "linked": member.linked,
        "distance": member.distance,
        "rtt_ms": None if member.rtt_s is None else round(member.rtt_s * 1e3, 3),
        "addresses": list(member.addresses),
        "zones": [zone for zone in capability.zones if zone != GENERAL],
        "skills": [{"name": s.name, "quality": s.quality} for s in capability.skills],
        "models": [
            {
                "name": m.name,
                "digest": m.digest,
                "context_tokens": m.context_tokens,
                "prefill_tokens_per_s": round(m.prefill_tps, 1),
                "decode_tokens_per_s": round(m.decode_tps, 1),
                "slots": m.slots,
                "zones": list(m.zones),
            }
            for m in capability.models
        ],
        "devices": [asdict(device) for device in capability.devices],
        "load": None
        if load is None
        else {
            "remaining_s": round(load.remaining_s, 3),
            "free_slots": load.free_slots,
            "queued": load.queued,
        },
    }
