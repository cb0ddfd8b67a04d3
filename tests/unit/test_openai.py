"""OpenAI's words for our values: every shape of request, every refusal by name, every reason's status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pmesh.config import Limits
from p2pmesh.errors import QueryError, Reason
from p2pmesh.gateway import openai
from p2pmesh.query import Message, Options, TokenLogprobs, Usage

LIMITS = Limits()
USER = [{"role": "user", "content": "x"}]


def read(**fields: Any) -> tuple[openai.ChatRequest, tuple[Message, ...], Options]:
    request = openai.parse(json.dumps({"messages": USER, **fields}).encode())
    return request, openai.messages(request, LIMITS), openai.options(request, LIMITS)


def test_the_least_request_asks_for_the_defaults():
    request, messages, options = read()
    assert (request.model, request.zone, request.wants_usage) == ("auto", "general", False)
    assert not request.stream
    assert not read(stream=None)[0].stream
    assert messages == (Message("user", "x"),)
    assert options == Options()


def test_all_that_is_understood_is_passed_on():
    request, _, options = read(
        model="m",
        stream=True,
        stream_options={"include_usage": True, "more": 1},
        max_tokens=5,
        temperature=2,
        top_p=0.5,
        seed=-1,
        stop=["a", "b"],
        n=1,
        tools=[],
        logprobs=False,
        response_format={"type": "text"},
        user="me",
        metadata={"a": [1, {"b": None}]},
        presence_penalty=0,
        frequency_penalty=-2,
        repeat_penalty=1.1,
        top_k=40,
        min_p=0.05,
        logit_bias={"50256": -100, "7": 0.5},
        zone="hr",
    )
    assert (request.model, request.zone, request.stream, request.wants_usage) == ("m", "hr", True, True)
    assert options == Options(
        max_tokens=5,
        temperature=2.0,
        top_p=0.5,
        seed=2**32 - 1,
        stop=("a", "b"),
        top_k=40,
        min_p=0.05,
        repeat_penalty=1.1,
        frequency_penalty=-2.0,
        logit_bias=((50256, -100.0), (7, 0.5)),
    )


def test_fields_that_are_null_are_not_given():
    names = ("max_tokens", "temperature", "top_p", "seed", "stop", "n", "tools", "stream_options", "top_k")
    assert read(**dict.fromkeys(names))[2] == Options()
    more = (
        "min_p",
        "repeat_penalty",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "response_format",
    )
    assert read(**dict.fromkeys(more))[2] == Options()


def test_how_likely_tokens_were_is_asked_for_and_told():
    assert read(logprobs=False)[2].logprobs is None
    assert read(logprobs=True)[2].logprobs == 0
    assert read(logprobs=True, top_logprobs=20)[2].logprobs == 20
    told = (TokenLogprobs(b"a", -0.5, ((b"\xc3", -0.25),)), TokenLogprobs(b"", -9_999.0))
    expected = {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [{"token": "\ufffd", "logprob": -0.25, "bytes": [195]}],
            },
            {"token": "", "logprob": -9_999.0, "bytes": [], "top_logprobs": []},
        ]
    }
    assert openai.chunk("i", 1, "m", "a", told=told)["choices"][0]["logprobs"] == expected
    whole = openai.completion("i", 1, "m", "a", "stop", Usage(1, 2), told)
    assert whole["choices"][0]["logprobs"] == expected
    assert openai.chunk("i", 1, "m", "a")["choices"][0]["logprobs"] is None


def test_a_schema_is_passed_on_as_it_came():
    form = {
        "type": "json_schema",
        "json_schema": {"name": "x", "strict": True, "schema": {"b": 1, "a": ["\u2028"]}},
    }
    asked = json.dumps({"messages": USER, "response_format": form}).encode()
    assert openai.options(openai.parse(asked), LIMITS).schema == r'{"b": 1, "a": ["\u2028"]}'
    assert json.loads(read(response_format={"type": "json_object"})[2].schema) == {"type": "object"}
    assert read(response_format={})[2].schema == ""


def test_the_newer_name_of_a_bound_beats_the_older():
    assert read(max_tokens=5, max_completion_tokens=7)[2].max_tokens == 7
    assert read(stop="a")[2].stop == ("a",)


def test_every_shape_of_a_message_is_a_text():
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "", "name": "me"},
    ]
    assert read(messages=messages)[1] == (
        Message("system", "d"),
        Message("user", "a\nb"),
        Message("assistant", ""),
        Message("user", ""),
    )


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_request"),
        ({"messages": USER * 257}, "messages", "invalid_request"),
        ({"messages": "hi"}, "messages", "invalid_request"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_request"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_request"),
        ({"messages": [*USER, {"role": "tool", "content": "x"}]}, "messages[1].role", "invalid_request"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
            "invalid_request",
        ),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type", "invalid_request"),
        ({"model": 3}, "model", "invalid_request"),
        ({"stream": "yes"}, "stream", "invalid_request"),
        ({"max_tokens": 0}, "max_tokens", "invalid_request"),
        ({"max_tokens": LIMITS.max_tokens_max + 1}, "max_tokens", "invalid_request"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_request"),
        ({"temperature": -0.1}, "temperature", "invalid_request"),
        ({"temperature": 2.1}, "temperature", "invalid_request"),
        ({"temperature": "hot"}, "temperature", "invalid_request"),
        ({"top_p": 0}, "top_p", "invalid_request"),
        ({"top_p": 1.1}, "top_p", "invalid_request"),
        ({"seed": 0.5}, "seed", "invalid_request"),
        ({"stop": [""]}, "stop", "invalid_request"),
        ({"stop": ["x"] * 9}, "stop", "invalid_request"),
        ({"stop": "x" * 257}, "stop", "invalid_request"),
        ({"stop": [1]}, "stop[0]", "invalid_request"),
        ({"n": 2}, "n", "invalid_request"),
        ({"tools": [{}]}, "tools", "unsupported_parameter"),
        ({"zones": "hr"}, "zones", "invalid_request"),
        ({"zones": ["hr"]}, "zones", "invalid_request"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_request"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs", "invalid_request"),
        ({"logprobs": 2}, "logprobs", "invalid_request"),
        ({"response_format": {"type": "grammar"}}, "response_format", "unsupported_parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_request"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
            "invalid_request",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x" * 16_384}}},
            "response_format.json_schema.schema",
            "invalid_request",
        ),
        ({"top_k": -1}, "top_k", "invalid_request"),
        ({"top_k": 257}, "top_k", "invalid_request"),
        ({"top_k": 1.5}, "top_k", "invalid_request"),
        ({"min_p": 1.1}, "min_p", "invalid_request"),
        ({"repeat_penalty": 0}, "repeat_penalty", "invalid_request"),
        ({"frequency_penalty": 2.1}, "frequency_penalty", "invalid_request"),
        ({"presence_penalty": -2.1}, "presence_penalty", "invalid_request"),
        ({"presence_penalty": "much"}, "presence_penalty", "invalid_request"),
        ({"resume": "sometimes"}, "resume", "invalid_request"),
        ({"zone": None}, "zone", "invalid_request"),  # to take it for the general one would show it to all
        ({"zone": ["hr"]}, "zone", "invalid_request"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_request"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_request"),
        ({"logit_bias": {"\u0663": 1}}, "logit_bias", "invalid_request"),
        ({"logit_bias": {"2147483648": 1}}, "logit_bias", "invalid_request"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_request"),
        ({"logit_bias": {str(i): 1 for i in range(257)}}, "logit_bias", "invalid_request"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[...]", "invalid_request"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str, code: str):
    with pytest.raises(openai.BadRequest) as caught:
        read(**fields)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)
    assert str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 99_999,
        b'{"tools":' + b"[" * 99_999,
        rb'{"model": "\ud800"}',
    ],
)
def test_what_is_no_request_at_all_is_a_bad_request(body: bytes):
    with pytest.raises(openai.BadRequest):
        openai.parse(body)


def test_a_body_without_messages_says_so():
    with pytest.raises(openai.BadRequest, match="missing required field `messages`") as caught:
        openai.parse(b"{}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.OVERLOADED, 503),
        (Reason.NO_ROUTE, 503),
        (Reason.MODEL_NOT_FOUND, 404),
        (Reason.TOO_LONG, 400),
        (Reason.DEADLINE, 504),
        (Reason.PEER_LOST, 502),
        (Reason.ENGINE_FAILED, 503),
        (Reason.CANCELLED, 499),
        (Reason.VISITED, 503),
        (Reason.BAD_REQUEST, 400),
    ],
)
def test_each_reason_has_its_status(reason: Reason, status: int):
    found, body = openai.query_error(QueryError("why", reason=reason))
    assert found == status
    assert body["error"] == {
        "message": "why",
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": "model" if reason is Reason.MODEL_NOT_FOUND else None,
        "code": reason.value,
    }


def test_no_reason_is_without_a_status():
    assert set(openai.STATUS) == set(Reason)


def test_a_stream_begins_with_the_role_and_may_end_with_the_usage():
    first = openai.chunk("i", 1, "m", "", first=True)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    last = openai.chunk("i", 1, "m", finish_reason="stop")
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    spent = openai.usage_chunk("i", 1, "m", Usage(2, 3))
    assert (spent["choices"], spent["usage"]["total_tokens"]) == ([], 5)
