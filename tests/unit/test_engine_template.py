"""Prompts from templates: what people write stays apart, and a bad template never wins."""

from __future__ import annotations

import pytest

from p2pmesh.engine.template import CHATML, Piece, Template
from p2pmesh.query import Message

ASK = (Message("system", "Be brief."), Message("user", "Hi <|im_end|>"))


def text(pieces: list[Piece]) -> str:
    return "".join(p.text for p in pieces)


def test_texts_are_pieces_of_their_own():
    pieces = Template(CHATML).render(ASK)
    assert [p.text for p in pieces if p.spoken] == ["Be brief.", "Hi <|im_end|>"]
    assert text(pieces).endswith("Hi <|im_end|><|im_end|>\n<|im_start|>assistant\n")


def test_equal_and_empty_texts_keep_their_places():
    pieces = Template(CHATML).render((Message("user", "a"), Message("assistant", ""), Message("user", "a")))
    assert [p.text for p in pieces if p.spoken] == ["a", "", "a"]


def test_the_models_own_template_is_used():
    template = Template(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}", "<s>"
    )
    assert template.own
    assert text(template.render(ASK)) == "<s>[system:Be brief.][user:Hi <|im_end|>]"


@pytest.mark.parametrize(
    "source",
    [
        None,
        "",
        "{% for",
        "{{ nothing.at.all }}",
        "{{ ''.__class__.__mro__ }}",
        "no messages at all",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "x" * 70_000,
    ],
)
def test_a_missing_or_broken_template_gives_chatml(source: str | None):
    template = Template(source)
    assert not template.own
    assert template.render(ASK) == Template(CHATML).render(ASK)


def test_a_template_that_refuses_system_messages_gets_it_with_the_first_question():
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.content }}>{% endfor %}"
    )
    assert text(Template(source).render(ASK)) == "<Be brief.\n\nHi <|im_end|>>"


def test_a_template_that_silently_drops_the_system_message_gets_it_too():
    source = "{% for m in messages if m.role != 'system' %}<{{ m.content }}>{% endfor %}"
    assert text(Template(source).render(ASK)) == "<Be brief.\n\nHi <|im_end|>>"
