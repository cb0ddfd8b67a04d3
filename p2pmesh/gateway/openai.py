"""OpenAI's words for our values: request bodies in, response bodies out. Pure: no HTTP, no peer.

What a request asks for and we cannot do is refused by name; what merely decorates it (user, metadata, …) is
ignored, since clients send a good deal of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from p2pmesh.config import Limits
from p2pmesh.errors import QueryError, Reason
from p2pmesh.query import AUTO, RANGES, Message, Options, TokenLogprobs, Usage
from p2pmesh.record import GENERAL

STATUS = {
    Reason.OVERLOADED: 503,
    Reason.QUOTA: 429,
    Reason.NO_ROUTE: 503,
    Reason.MODEL_NOT_FOUND: 404,
    Reason.ANSWER_NOT_FOUND: 404,
    Reason.TOO_LONG: 400,
    Reason.DEADLINE: 504,
    Reason.PEER_LOST: 502,
    Reason.FORGED: 502,
    Reason.ENGINE_FAILED: 503,
    Reason.CANCELLED: 499,
    Reason.VISITED: 503,
    Reason.BAD_REQUEST: 400,
}
"""HTTP status of each reason."""
_TEMPERATURE_MAX = 2.0
_TOKEN_ID = re.compile(r"[0-9]{1,10}", re.ASCII)
_ROLES = {"developer": "system"}


class BadRequest(Exception):
    """The body is wrong; `param` names the field."""

    def __init__(
        self, message: str, param: str | None = None, code: str = Reason.BAD_REQUEST.value, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Turn(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _JsonSchema(msgspec.Struct):
    schema: msgspec.Raw
    """As it came: the order of its properties is the order of the answer's."""


class _ResponseFormat(msgspec.Struct):
    type: str = "text"
    json_schema: _JsonSchema | None = None


class ChatRequest(msgspec.Struct):
    """The body of /v1/chat/completions, as far as it is understood."""

    messages: list[_Turn]
    model: str = AUTO
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: _ResponseFormat | None = None
    resume: Literal["any", "same-model", "never"] | None = None
    """Ours: see `p2pmesh.query.Resume`."""
    zone: str = GENERAL
    """Ours: only peers that may see it get to see the request."""
    zones: Any = None
    """No such thing: refused, for it would be asked in the general zone."""

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


_DECODER = msgspec.json.Decoder(ChatRequest)


def parse(body: bytes) -> ChatRequest:
    """Return the request in `body`. Raises BadRequest, naming the field."""
    try:
        request = _DECODER.decode(body)
    except msgspec.ValidationError as exc:
        raise _wrong_shape(str(exc)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest(f"the body is not JSON: {exc}") from None
    _refuse_unsupported(request)
    return request


def _wrong_shape(complaint: str) -> BadRequest:
    """msgspec's words as ours: "… - at `$.messages[0].role`", or "… missing required field `role` - at …"."""
    text, _, where = complaint.partition(" - at `$")
    path = [where.strip("`.")]
    if "required field" in text:
        path.append(text.partition("required field `")[2].rstrip("`"))
    return BadRequest(complaint.replace("`$.", "`"), ".".join(filter(None, path)) or None)


def _refuse_unsupported(request: ChatRequest) -> None:
    if request.n not in (None, 1):
        raise BadRequest("n: one answer at a time is given here", "n")
    if request.zones is not None:
        raise BadRequest("zones: a request has one, and it is called zone", "zones")
    for name in ("tools", "functions"):
        if getattr(request, name):
            raise BadRequest(f"{name} are not supported", name, "unsupported_parameter")


def messages(request: ChatRequest, limits: Limits) -> tuple[Message, ...]:
    """Return the conversation. Raises BadRequest where it is not one of texts."""
    if not request.messages:
        raise BadRequest("a conversation needs at least one message", "messages")
    if len(request.messages) > limits.messages_max:
        raise BadRequest(f"at most {limits.messages_max} messages", "messages")
    return tuple(_message(turn, i) for i, turn in enumerate(request.messages))


def _message(turn: _Turn, index: int) -> Message:
    param = f"messages[{index}]"
    role = _ROLES.get(turn.role, turn.role)
    if role not in ("system", "user", "assistant"):
        raise BadRequest(f"unknown role {turn.role[:32]!r}", f"{param}.role")
    if isinstance(turn.content, list):
        if any(part.type != "text" for part in turn.content):
            raise BadRequest("only text parts are understood", f"{param}.content")
        return Message(role, "\n".join(part.text for part in turn.content))
    if turn.content is None and role != "assistant":
        raise BadRequest(f"a message of the {role} needs a content", f"{param}.content")
    return Message(role, turn.content or "")


def options(request: ChatRequest, limits: Limits) -> Options:
    """Return how to sample. Raises BadRequest for a value out of bounds."""
    defaults = Options()
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if len(stop) > limits.stop_max or any(not 1 <= len(s.encode()) <= limits.stop_bytes_max for s in stop):
        raise BadRequest(f"at most {limits.stop_max} stop texts of 1..{limits.stop_bytes_max} bytes", "stop")
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    return Options(
        max_tokens=_within("max_tokens", asked, defaults.max_tokens, 1, limits.max_tokens_max),
        temperature=_within("temperature", request.temperature, defaults.temperature, 0.0, _TEMPERATURE_MAX),
        top_p=_within("top_p", request.top_p, defaults.top_p, 1e-6, 1.0),
        seed=None if request.seed is None else request.seed % 2**32,
        stop=stop,
        top_k=_within("top_k", request.top_k, defaults.top_k, 0, limits.top_k_max),
        min_p=_ranged(request, "min_p"),
        repeat_penalty=_ranged(request, "repeat_penalty"),
        frequency_penalty=_ranged(request, "frequency_penalty"),
        presence_penalty=_ranged(request, "presence_penalty"),
        logit_bias=_logit_bias(request.logit_bias or {}, limits),
        schema=_schema(request.response_format or _ResponseFormat(), limits),
        logprobs=_logprobs(request, limits),
    )


def _logprobs(request: ChatRequest, limits: Limits) -> int | None:
    if not request.logprobs:
        if request.top_logprobs is not None:
            raise BadRequest("top_logprobs needs logprobs to be true", "top_logprobs")
        return None
    top: int = _within("top_logprobs", request.top_logprobs, 0, 0, limits.top_logprobs_max)
    return top


def _ranged(request: ChatRequest, name: str) -> Any:
    return _within(name, getattr(request, name), getattr(Options, name), *RANGES[name])


def _logit_bias(bias: dict[str, float], limits: Limits) -> tuple[tuple[int, float], ...]:
    if len(bias) > limits.logit_bias_max:
        raise BadRequest(f"logit_bias: at most {limits.logit_bias_max} tokens", "logit_bias")
    low, high = RANGES["logit_bias"]
    for token, shift in bias.items():
        if not _TOKEN_ID.fullmatch(token) or int(token) >= 2**31 or not low <= shift <= high:
            raise BadRequest(f"logit_bias maps token ids to {low:g}..{high:g}", "logit_bias")
    return tuple((int(token), float(shift)) for token, shift in bias.items())


def _schema(form: _ResponseFormat, limits: Limits) -> str:
    """Return the JSON schema an answer is to fit. What can be kept of it is the engine's to say."""
    if form.type == "text":
        return ""
    if form.type == "json_object":
        return '{"type": "object"}'
    if form.type != "json_schema":
        raise BadRequest(
            f"response_format {form.type[:32]!r} is not supported: text, json_object and json_schema are",
            "response_format",
            "unsupported_parameter",
        )
    if form.json_schema is None:
        raise BadRequest("response_format: json_schema needs a schema", "response_format.json_schema")
    raw = bytes(form.json_schema.schema)
    if len(raw) > limits.schema_bytes_max:
        param = "response_format.json_schema.schema"
        raise BadRequest(f"the schema has {len(raw)} bytes, at most {limits.schema_bytes_max}", param)
    return raw.decode("utf-8", "replace")


def _within(name: str, value: Any, default: Any, low: Any, high: Any) -> Any:
    if value is None:
        return default
    if not low <= value <= high:
        raise BadRequest(f"{name} must lie within {low}..{high}, not {value}", name)
    return value


# -- answers ------------------------------------------------------------------------------------------


def usage(value: Usage) -> dict[str, int]:
    """Return `usage` as OpenAI counts it."""
    return {
        "prompt_tokens": value.prompt_tokens,
        "completion_tokens": value.completion_tokens,
        "total_tokens": value.prompt_tokens + value.completion_tokens,
    }


def logprobs(values: Iterable[TokenLogprobs]) -> dict[str, Any] | None:
    """Return how likely tokens were, as OpenAI tells it; None where nothing is known."""
    content = [
        {
            **_told(value.spelled, value.logprob),
            "top_logprobs": [_told(spelled, logprob) for spelled, logprob in value.top],
        }
        for value in values
    ]
    return {"content": content} if content else None


def _told(spelled: bytes, logprob: float) -> dict[str, Any]:
    return {"token": spelled.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(spelled)}


def completion(
    ident: str,
    created: int,
    model: str,
    text: str,
    finish_reason: str,
    spent: Usage,
    told: Iterable[TokenLogprobs] = (),
) -> dict[str, Any]:
    """Return the body of a whole answer."""
    return {
        "id": f"chatcmpl-{ident}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
                "logprobs": logprobs(told),
            }
        ],
        "usage": usage(spent),
    }


def chunk(
    ident: str,
    created: int,
    model: str,
    text: str | None = None,
    *,
    first: bool = False,
    finish_reason: str | None = None,
    told: Iterable[TokenLogprobs] = (),
) -> dict[str, Any]:
    """Return one piece of a streamed answer."""
    delta: dict[str, str] = {"role": "assistant"} if first else {}
    if text is not None:
        delta["content"] = text
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs(told)}
    return _chunk(ident, created, model, [choice])


def usage_chunk(ident: str, created: int, model: str, spent: Usage) -> dict[str, Any]:
    """Return the last piece, where usage was asked for."""
    return {**_chunk(ident, created, model, []), "usage": usage(spent)}


def _chunk(ident: str, created: int, model: str, choices: list[Any]) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{ident}",
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
    }


def error(message: str, code: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == STATUS[Reason.QUOTA]:
        kind = "rate_limit_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def query_error(failure: QueryError) -> tuple[int, dict[str, Any]]:
    """Return status and body of a query that ended badly."""
    status = STATUS[failure.reason]
    param = "model" if failure.reason is Reason.MODEL_NOT_FOUND else None
    return status, error(str(failure), failure.reason.value, status, param)
