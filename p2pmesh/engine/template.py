"""A conversation becomes a prompt: the model's own chat template, with what people wrote kept apart.

Pure, and wary: a template is a program out of a model file. It runs in jinja2's immutable sandbox on
unguessable placeholders in place of the texts, so whatever it does, a text can never become a control token:
the caller tokenises the `spoken` pieces as plain text. Nothing here knows llama.cpp.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from p2pmesh.query import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
"""For models without a template of their own, or with a broken one."""
TEMPLATE_CHARS_MAX = 65_536
"""Longest template. The longest in use have some 10 000 characters."""
FRAME_CHARS_MAX = 262_144
"""Most characters a template may put around the texts of one conversation."""


@dataclass(frozen=True)
class Piece:
    """A part of a prompt."""

    text: str
    spoken: bool
    """Somebody's words: plain text whatever they look like. Else the template's, control tokens included."""


class TemplateError(Exception):
    """The template does not render this conversation faithfully."""


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


class Template:
    """Renders conversations. `source` is the GGUF's own template, or None."""

    def __init__(self, source: str | None, bos: str = "", eos: str = "") -> None:
        self._variables = {"bos_token": bos, "eos_token": eos, "raise_exception": _refuse}
        self._fallback = _compile(CHATML)
        self._own: jinja2.Template | None = None
        if source and len(source) <= TEMPLATE_CHARS_MAX:
            try:
                self._own = _compile(source)
                self._render(self._own, (Message("user", "?"),))
            except (jinja2.TemplateError, TemplateError):
                self._own = None

    @property
    def own(self) -> bool:
        """Whether the model's own template is in use."""
        return self._own is not None

    def render(self, messages: tuple[Message, ...]) -> list[Piece]:
        """Return the prompt for an answer to `messages`. Never fails: ChatML is the last resort."""
        for conversation in (messages, _without_system(messages)):
            try:
                return self._render(self._own or self._fallback, conversation)
            except (jinja2.TemplateError, TemplateError):
                continue
        return self._render(self._fallback, messages)

    def _render(self, template: jinja2.Template, messages: tuple[Message, ...]) -> list[Piece]:
        marks = {f"text{secrets.token_hex(16)}": m.content for m in messages}
        turns = [{"role": m.role, "content": mark} for m, mark in zip(messages, marks, strict=True)]
        parts: list[str] = []
        room = FRAME_CHARS_MAX + sum(map(len, marks))
        try:
            for part in template.generate(messages=turns, add_generation_prompt=True, **self._variables):
                parts.append(part)
                room -= len(part)
                if room < 0:
                    raise TemplateError("the template writes without end")
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            raise TemplateError(str(error)) from None
        texts = re.split("(" + "|".join(marks) + ")", "".join(parts))
        if sorted(texts[1::2]) != sorted(marks):
            raise TemplateError("the template drops or repeats a message")
        return [Piece(marks.get(t, t), i % 2 == 1) for i, t in enumerate(texts) if t]


def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    return environment.from_string(source)


def _without_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the conversation with its system message put before the first question."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return messages
    first = Message("user", f"{messages[0].content}\n\n{messages[1].content}")
    return (first, *messages[2:])
