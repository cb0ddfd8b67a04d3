"""The demo, as the README shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pmesh.config import Engine
from p2pmesh.engine import catalog
from tests.integration.processes import VERB, environment, run

pytestmark = [pytest.mark.wire, pytest.mark.model]


def demo(*args: str) -> Any:
    if catalog.DEFAULT not in catalog.names() or catalog.embedder_load(Engine()) is None:
        pytest.fail("run `make setup`: set-up has not made the models")
    done = run([*VERB, "demo", "--json", *args], environment())
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count("\n") == 1
    told = json.loads(done.stdout)
    assert told["ok"] is True
    for answer in told["answers"]:
        assert {"prompt", "text", "served_by", "path", "ttft_s", "tokens", "tokens_per_s", "ok"} <= set(
            answer
        )
        assert answer["ok"] is True
        assert answer["text"].strip()
        assert answer["path"][-1] == answer["served_by"]
        assert answer["ttft_s"] > 0
        assert answer["tokens"] > 0
        assert answer["tokens_per_s"] > 0
    return told["answers"]


def test_three_peers_share_the_questions():
    answers = demo("--peers", "3")
    assert len(answers) == 3
    assert len({answer["served_by"] for answer in answers}) >= 2


def test_in_a_line_the_question_goes_all_the_way():
    (answer,) = demo("--peers", "4", "--topology", "line")
    assert answer["path"] == ["ada", "blaise", "carl", "dorothy"]
    assert answer["tokens"] > 1
