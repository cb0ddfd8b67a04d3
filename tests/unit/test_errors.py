"""What can go wrong: one base, and errors that say what state they leave."""

from __future__ import annotations

import inspect

import pytest

from p2pmesh import errors

KINDS = [k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, Exception)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_one_base_and_says_what_it_means(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.MeshError)
    assert kind.__doc__


def test_a_wrong_setting_is_also_a_value_error() -> None:
    assert issubclass(errors.ConfigError, ValueError)


def test_a_query_error_carries_what_the_asker_needs() -> None:
    error = errors.AnswerInterrupted(
        "gone", reason=errors.Reason.PEER_LOST, query_id="ab", path=("a", "b"), partial="half"
    )
    assert (str(error), error.reason, error.query_id) == ("gone", errors.Reason.PEER_LOST, "ab")
    assert (error.path, error.partial, error.retry_after_s) == (("a", "b"), "half", None)


def test_the_words_on_the_wire_are_distinct() -> None:
    assert len({reason.value for reason in errors.Reason}) == len(errors.Reason)
