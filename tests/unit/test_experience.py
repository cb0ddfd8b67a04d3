"""What is made of outcomes: the estimate as arithmetic, whom to believe, what is told, what is forgotten."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from p2pmesh.protocol.experience import Experience, Learning, Report, Row
from p2pmesh.record import PeerId
from tests.machines import ME, A, B, C, D

CONFIG = Learning()
BELIEVED = Learning(stranger_weight=1.0, stranger_honesty=1.0)
"""Strangers count wholly: the arithmetic without the trust."""


def told(*rows: Row, epoch: int = 1) -> Report:
    return Report(epoch, rows)


def row(peer: PeerId = A, trials: int = 9, mean: float = 1.0, topic: str = "maths", born: int = 1) -> Row:
    return Row(peer, topic, born, trials, trials * mean)


def mind(config: Learning = CONFIG, *reports: tuple[PeerId, Report], epoch: int = 1) -> Experience:
    made = Experience(ME, epoch, config)
    for reporter, report in reports:
        made.heard(reporter, report)
    return made


# -- the estimate -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("claim", "expected"), [(0.0, 0.8 / 6), (0.5, 2.8 / 6), (1.0, 4.8 / 6)])
def test_a_claim_that_is_believed_is_four_trials_beside_a_prior_of_two(claim: float, expected: float) -> None:
    assert mind(BELIEVED).quality(A, "maths", claim) == pytest.approx(expected)


def test_the_claim_of_a_stranger_counts_for_its_weight() -> None:
    assert mind().quality(A, "maths", 1.0) == pytest.approx((0.8 + 2.0) / 4)


def test_an_outcome_of_our_own_is_one_trial() -> None:
    known = mind(replace(BELIEVED, eta=0.0))
    for outcome in (1.0, 1.0, 0.25):
        known.observed(A, "maths", outcome, 0.5)
    assert known.quality(A, "maths", 0.5) == pytest.approx((0.8 + 2.0 + 2.25) / (2 + 4 + 3))
    assert known.quality(A, "law", 0.5) == pytest.approx(2.8 / 6)
    assert known.quality(B, "maths", 0.5) == pytest.approx(2.8 / 6)


@pytest.mark.parametrize(
    ("trials", "counted"), [(1, 1), (10, 10), (11, 10), (1_000_000, 10)]
)  # a big mouth is one mouth
def test_one_reporter_counts_for_ten_trials_at_most(trials: int, counted: int) -> None:
    said = row(trials=trials)
    known = mind(BELIEVED, (B, told(said)))
    expected = (2.8 + counted * said.mean) / (6 + counted)
    assert known.quality(A, "maths", 0.5) == pytest.approx(expected)


def test_all_reporters_together_count_for_thirty_trials_at_most() -> None:
    crowd = [(PeerId(f"r{i}"), told(row(trials=10))) for i in range(5)]
    mean = row(trials=10).mean
    assert mind(BELIEVED, *crowd).quality(A, "maths", 0.5) == pytest.approx((2.8 + 30 * mean) / 36)


def test_a_stranger_counts_for_its_weight() -> None:
    known = mind(replace(BELIEVED, stranger_weight=0.3), (B, told(row(trials=10))))
    share = 3
    assert known.quality(A, "maths", 0.5) == pytest.approx((2.8 + share * row(trials=10).mean) / (6 + share))


@pytest.mark.parametrize(
    ("trials", "successes", "mean"), [(0, 0, 0.5), (1, 1, 0.75), (1, 0, 0.25), (9, 9, 0.95)]
)
def test_a_row_of_few_trials_is_never_certain(trials: int, successes: float, mean: float) -> None:
    assert Row(A, "maths", 1, trials, successes).mean == pytest.approx(mean)


def test_an_estimate_follows_whatever_changes_it() -> None:
    known = mind(BELIEVED)
    seen = [known.quality(A, "maths", 0.5)]
    known.observed(A, "maths", 1.0, 0.5)
    seen.append(known.quality(A, "maths", 0.5))
    known.heard(B, told(row(trials=10, mean=0.0)))
    seen.append(known.quality(A, "maths", 0.5))
    assert known.quality(A, "maths", 0.5) == seen[-1]
    known.heard(B, told(row(trials=11, mean=1.0)))
    seen.append(known.quality(A, "maths", 0.5))
    known.forget(A)
    seen.append(known.quality(A, "maths", 0.5))
    assert seen[0] < seen[1] > seen[2] < seen[3] > seen[4] == seen[0]


def test_an_outcome_changes_every_estimate_that_its_reporters_had_a_say_in() -> None:
    known = mind(CONFIG, (B, told(row(A, mean=1.0), row(C, mean=1.0))))
    own, other = (known.quality(peer, "maths", 0.5) for peer in (A, C))
    known.observed(A, "maths", 0.0, 0.5)
    assert known.quality(A, "maths", 0.5) < own
    assert known.quality(C, "maths", 0.5) < other


# -- whom to believe ----------------------------------------------------------------------------------


def test_who_foretold_wrongly_loses_weight_and_who_foretold_well_gains_it() -> None:
    known = mind(CONFIG, (B, told(row(mean=1.0))), (C, told(row(mean=0.0))))
    for _ in range(3):
        known.observed(A, "maths", 0.0, 0.5)
    assert known.weight(B) < CONFIG.stranger_weight < known.weight(C)
    assert known.weight(D) == CONFIG.stranger_weight


@pytest.mark.parametrize(
    ("said", "outcome", "excess"),
    [(0.95, 0.0, 0.855), (0.95, 1.0, -0.045), (0.5, 0.0, 0.0), (0.5, 1.0, 0.0), (0.5, 0.3, 0.0)],
)
def test_a_forecast_pays_for_the_error_that_it_did_not_allow_for(
    said: float, outcome: float, excess: float
) -> None:
    known = mind(
        replace(BELIEVED, slack=0.0, weight_min=0.01), (B, told(row(trials=9, mean=(said * 10 - 0.5) / 9)))
    )
    for scale in (0.0, 1.0):  # first down to where there is room above
        start = known.weight(B)
        known.observed(A, "maths", outcome, 0.5)
        if excess >= 0.0:
            assert known.weight(B) == pytest.approx(start * math.exp(-excess)), scale
        else:
            assert known.weight(B) == 1.0


def test_who_is_right_on_average_earns_the_slack() -> None:
    """A true 0.8, foretold as such, over ten outcomes: the errors it allowed for cancel out."""
    learning = replace(BELIEVED, stranger_weight=0.3)
    known = mind(learning, (B, told(row(trials=9, mean=7.5 / 9))))
    for outcome in (1.0, 1.0, 0.0, 1.0, 1.0) * 2:
        known.observed(A, "maths", outcome, 0.8)
    assert known.weight(B) == pytest.approx(0.3 * math.exp(10 * learning.slack))


def test_who_has_seen_little_has_not_said_much() -> None:
    known = mind(replace(BELIEVED, slack=0.0), (B, told(row(trials=1, mean=1.0))))
    known.observed(A, "maths", 0.0, 0.5)
    assert known.weight(B) == pytest.approx(math.exp(-(0.75**2 - 0.75 * 0.25) / 3))


def test_weights_stay_between_the_least_and_one() -> None:
    known = mind(CONFIG, (B, told(row(trials=100, mean=1.0))), (C, told(row(trials=100, mean=0.0))))
    for _ in range(100):
        known.observed(A, "maths", 0.0, 1.0)
    assert (known.weight(B), known.weight(C)) == (CONFIG.weight_min, 1.0)
    assert known.honesty(A) == CONFIG.weight_min


def test_a_mediocre_rating_convicts_who_promised_the_best() -> None:
    """Its squared error, 0.2, is below that of a coin, 1/4: it must lose all the same."""
    known = mind(BELIEVED, (B, told(row(trials=100, mean=0.95))))
    for _ in range(30):
        known.observed(A, "maths", 0.5, 0.95)
    assert known.weight(B) < 0.01
    assert known.honesty(A) < 0.01


def test_a_claim_that_proved_wrong_counts_less_in_every_topic() -> None:
    known = mind()
    before = known.quality(A, "law", 0.95)
    for _ in range(5):
        known.observed(A, "maths", 0.0, 0.95)
    assert known.quality(A, "law", 0.95) < before
    assert known.quality(A, "law", 0.95) == pytest.approx(0.4, abs=0.1)
    assert known.honesty(B) == CONFIG.stranger_honesty


def test_without_learning_everybody_is_believed_for_ever() -> None:
    blind = mind(replace(BELIEVED, eta=0.0), (B, told(row(mean=1.0))))
    for _ in range(20):
        blind.observed(A, "maths", 0.0, 1.0)
    assert (blind.weight(B), blind.honesty(A)) == (1.0, 1.0)


# -- what is heard ------------------------------------------------------------------------------------


def test_nobody_is_believed_about_itself() -> None:
    known = mind(BELIEVED, (A, told(row(A, 1_000), row(B))))
    assert known.quality(A, "maths", 0.5) == pytest.approx(2.8 / 6)
    assert known.rows(A) == (row(B),)


def test_our_own_reports_do_not_come_back() -> None:
    known = mind(BELIEVED, (ME, told(row())))
    assert known.rows(ME) == ()
    assert known.quality(A, "maths", 0.5) == pytest.approx(2.8 / 6)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (row(trials=5), row(trials=3), 0),  # late
        (row(trials=3), row(trials=5), 1),
        (row(trials=9, born=1), row(trials=1, born=2), 1),  # begun again
        (row(trials=1, born=2), row(trials=9, born=1), 0),
        (row(trials=5, mean=0.2), row(trials=5, mean=0.8), 1),  # two stories: everybody keeps the same
    ],
)
def test_of_two_rows_the_newer_counts_and_they_are_never_added(first: Row, second: Row, kept: int) -> None:
    known = mind(CONFIG, (B, told(first)), (B, told(second)), (B, told(first)))
    assert known.rows(B) == ((first, second)[kept],)


def test_a_reporter_that_starts_anew_is_heard_anew_and_its_weight_stays() -> None:
    known = mind(CONFIG, (B, told(row(trials=50), row(C))))
    known.observed(A, "maths", 0.0, 0.5)
    weight = known.weight(B)
    known.heard(B, told(row(trials=2), epoch=2))
    assert known.rows(B) == (row(trials=2),)
    assert known.weight(B) == weight
    known.heard(B, told(row(trials=99), epoch=1))
    assert known.rows(B) == (row(trials=2),)


# -- bounds -------------------------------------------------------------------------------------------


def test_of_our_own_rows_the_least_recently_changed_go_first() -> None:
    known = mind(Learning(own_rows_max=2))
    for topic in ("a", "b", "a", "c"):
        known.observed(A, topic, 1.0, 0.5)
    assert [(r.topic, r.trials) for r in known.rows(ME)] == [("a", 2), ("c", 1)]


def test_of_a_reporters_rows_the_least_recently_heard_go_first() -> None:
    a, b, c = (row(topic=topic) for topic in "abc")
    known = mind(replace(BELIEVED, reporter_rows_max=2), (B, told(a, b, a, c)))
    assert known.rows(B) == (a, c)
    assert known.quality(A, "b", 0.5) == pytest.approx(2.8 / 6)


def test_of_the_reporters_the_least_recently_heard_goes_first_and_takes_only_its_own_rows() -> None:
    known = mind(Learning(reporters_max=2), (B, told(row())), (C, told(row())), (B, told()), (D, told(row())))
    assert [known.rows(reporter) for reporter in (B, C, D)] == [(row(),), (), (row(),)]


def test_of_the_judged_the_least_recently_judged_goes_first() -> None:
    known = mind(Learning(judged_max=2))
    for peer in (A, B, A, C):
        known.observed(peer, "maths", 0.0, 1.0)
    assert known.honesty(B) == CONFIG.stranger_honesty
    assert known.honesty(A) < known.honesty(C) < CONFIG.stranger_honesty


def test_who_was_pushed_out_does_not_come_back_as_a_stranger() -> None:
    known = mind(Learning(reporters_max=1), (B, told(row())))
    known.observed(A, "maths", 0.0, 0.5)
    weight = known.weight(B)
    known.heard(C, told(row()))
    known.heard(B, told(row()))
    assert known.weight(B) == weight < CONFIG.stranger_weight


# -- what is forgotten --------------------------------------------------------------------------------


def test_other_models_are_judged_anew_and_their_owner_is_not() -> None:
    known = mind(BELIEVED, (B, told(row(A), row(C))), (C, told(row(A, topic="law"))))
    known.observed(A, "maths", 0.0, 0.95)
    known.observed(C, "maths", 1.0, 0.95)
    honesty, weight = known.honesty(A), known.weight(B)
    known.forget(A)
    assert [r.peer for r in known.rows(ME)] == [C]
    assert (known.rows(B), known.rows(C)) == ((row(C),), ())
    assert (known.honesty(A), known.weight(B)) == (honesty, weight)
    assert known.quality(A, "maths", 0.5) < 0.5


def test_a_row_begun_again_beats_the_one_that_others_still_hold() -> None:
    teller, listener = Experience(B, 1), Experience(ME, 1)
    for _ in range(5):
        teller.observed(A, "maths", 0.0, 0.5)
    listener.heard(B, teller.report()[0])
    teller.forget(A)
    teller.observed(A, "maths", 1.0, 0.5)
    listener.heard(B, teller.report()[0])
    [kept] = listener.rows(B)
    assert (kept.trials, kept.successes) == (1, 1.0)


# -- what is told -------------------------------------------------------------------------------------


def test_a_report_holds_what_changed_since_the_last_one() -> None:
    known = mind(epoch=7)
    assert known.report() == (Report(7, ()), 0)
    known.observed(A, "maths", 1.0, 0.5)
    known.observed(B, "law", 0.5, 0.5)
    report, since = known.report()
    assert report == Report(7, (Row(A, "maths", 1, 1, 1.0), Row(B, "law", 2, 1, 0.5)))
    assert known.report(since) == (Report(7, ()), since)
    known.observed(A, "maths", 0.0, 0.5)
    assert known.report(since)[0].rows == (Row(A, "maths", 1, 2, 1.0),)


def test_we_do_not_tell_of_ourselves() -> None:
    known = mind()
    known.observed(ME, "maths", 1.0, 0.5)
    assert known.report()[0].rows == ()


def test_a_report_is_short_and_who_keeps_asking_is_told_everything() -> None:
    known = mind(Learning(report_rows_max=3))
    for topic in "abcdefgh":
        known.observed(A, topic, 1.0, 0.5)
    since, heard = 0, []
    for length in (3, 3, 2, 0):
        report, since = known.report(since)
        assert len(report.rows) == length
        heard += [r.topic for r in report.rows]
    assert heard == list("abcdefgh")
