"""Whatever bytes come as a body, they are a request or a BadRequest, and nothing else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import Limits
from p2pmesh.gateway import openai
from p2pmesh.query import RANGES, Message, Options

LIMITS = Limits()
unhurried = settings(deadline=None, max_examples=200)
FIELDS = [
    "messages",
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "n",
    "logprobs",
    "top_logprobs",
    "tools",
    "functions",
    "response_format",
    "json_schema",
    "schema",
    "top_k",
    "min_p",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "role",
    "content",
    "type",
    "text",
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(FIELDS)
values: Any = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "developer", "x"]), "content": values}
)
requests = st.fixed_dictionaries(
    {"messages": st.lists(turns) | values}, optional={name: values for name in FIELDS if name != "messages"}
)


def read(body: bytes) -> None:
    with suppress(openai.BadRequest):
        request = openai.parse(body)
        messages, options = openai.messages(request, LIMITS), openai.options(request, LIMITS)
        assert all(isinstance(message, Message) for message in messages)
        assert isinstance(options, Options)
        assert 1 <= options.max_tokens <= LIMITS.max_tokens_max
        assert options.seed is None or 0 <= options.seed < 2**32
        assert 0 <= options.top_k <= LIMITS.top_k_max
        assert options.logprobs is None or 0 <= options.logprobs <= LIMITS.top_logprobs_max
        assert all(0 <= token < 2**31 and -100 <= bias <= 100 for token, bias in options.logit_bias)
        for name in ("min_p", "repeat_penalty", "frequency_penalty", "presence_penalty"):
            assert RANGES[name][0] <= getattr(options, name) <= RANGES[name][1]
        assert len(options.schema.encode("utf-8")) <= LIMITS.schema_bytes_max
        for message in messages:
            message.content.encode("utf-8")  # a lone surrogate would be no text


@unhurried
@given(st.binary())
def test_any_bytes_are_a_request_or_a_bad_request(body: bytes):
    read(body)


@unhurried
@given(requests)
def test_anything_like_a_request_is_one_or_a_bad_request(asked: Any):
    read(json.dumps(asked).encode())


@unhurried
@given(requests, st.data())
def test_a_damaged_request_is_one_or_a_bad_request(asked: Any, data: st.DataObject):
    body = bytearray(json.dumps(asked, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        body = body or bytearray(b" ")
    read(bytes(body))
