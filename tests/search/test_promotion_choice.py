"""Which candidates can be told apart, and which one is chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import SearchError
from search.promote.choice import Choice, Result, choose, fold_errors
from search.promote.statistics import paired_interval

FOLDS = {"structure": 5, "molecule": 5}
ERRORS = st.lists(st.floats(0.1, 10), min_size=2, max_size=10)


def result(
    trial: int, values: list[float], parameters: int = 1000, molecule: list[float] | None = None
) -> Result:
    return Result(
        trial=trial,
        architecture="384-8-1 celu",
        val_mae=1.0,
        parameters=parameters,
        structures_per_second=1e4,
        folds={"structure": fold_errors(values), "molecule": fold_errors(molecule or values)},
    )


def chosen(*results: Result) -> Choice:
    return choose(results, "structure", {"structure": 5, "molecule": 5})


def test_the_interval_is_that_of_the_paper() -> None:
    # By hand: mean 0.2, s = 0.1581, n = 5, test/train = 1/4; t of 4 degrees of freedom at 97.5 % is 2.7764.
    interval = paired_interval([0.0, 0.1, 0.2, 0.3, 0.4], 0.25)
    half = 2.776445 * math.sqrt(0.025 * (1 / 5 + 1 / 4))
    assert (interval.mean, interval.low, interval.high) == pytest.approx(
        (0.2, 0.2 - half, 0.2 + half), rel=1e-5
    )


@given(values=ERRORS, share=st.floats(0.01, 1))
def test_the_interval_is_wider_than_the_usual_one_and_turns_with_the_sign(
    values: list[float], share: float
) -> None:
    interval, usual = paired_interval(values, share), paired_interval(values, 0.0)
    assert interval.low <= usual.low <= usual.mean <= usual.high <= interval.high
    turned = paired_interval([-value for value in values], share)
    assert (turned.low, turned.high) == pytest.approx((-interval.high, -interval.low))


def test_intervals_of_folds_without_a_difference_hold_zero_as_often_as_they_say() -> None:
    """Differences that share a part, as those of folds do: the usual interval would be wrong too often."""
    random = np.random.default_rng(0)
    common = random.normal(scale=math.sqrt(0.25), size=(2000, 1))
    holds = [paired_interval(list(row), 0.25).holds_zero for row in common + random.normal(size=(2000, 5))]
    usual = [paired_interval(list(row), 0.0).holds_zero for row in common + random.normal(size=(2000, 5))]
    assert 0.93 <= np.mean(holds) <= 0.97
    assert np.mean(usual) < 0.9


@given(values=ERRORS)
def test_equal_candidates_cannot_be_told_apart_and_the_cheapest_is_chosen(values: list[float]) -> None:
    choice = chosen(result(1, values, 3000), result(2, values, 1000), result(3, values, 2000))
    assert not any(each.folds["structure"].told_apart for each in choice.results)
    assert choice.number == 2


@given(values=ERRORS)
def test_a_clearly_better_one_is_chosen_whatever_it_costs(values: list[float]) -> None:
    better = [value / 2 - 0.01 * number for number, value in enumerate(values)]
    worse = [its + 5 + 0.01 * number for number, its in enumerate(better)]
    choice = chosen(result(1, worse, 10), result(2, better, 10**6))
    assert choice.number == 2
    assert [each.trial for each in choice.results] == [2, 1]
    assert choice.results[1].folds["structure"].told_apart
    assert "can be told apart from all others" in choice.reason


def test_noise_decides_for_the_cheaper_one() -> None:
    choice = chosen(
        result(7, [0.50, 0.60, 0.55, 0.52, 0.58], 4000), result(3, [0.55, 0.56, 0.57, 0.56, 0.54], 2000)
    )
    assert choice.number == 3
    assert (
        "cannot be told apart from trial 3; of these, trial 3 has the fewest parameters (2,000)"
        in choice.reason
    )
    difference = choice.results[1].folds["structure"].difference
    assert difference is not None
    assert difference.low < 0 < difference.high


def test_only_the_folds_that_decide_do() -> None:
    near, far = [1.0, 1.1, 1.05], [9.0, 9.1, 9.05]
    one, other = result(1, near, molecule=far), result(2, far, molecule=near)
    assert choose([one, other], "structure", FOLDS).number == 1  # type: ignore[arg-type]
    assert choose([one, other], "molecule", FOLDS).number == 2  # type: ignore[arg-type]


def test_a_candidate_that_cannot_be_trained_is_last() -> None:
    failed = replace(result(1, [0.1, 0.1]), failed="the loss is nan", folds={})
    choice = chosen(failed, result(2, [5.0, 6.0]))
    assert (choice.number, choice.reason) == (2, "trial 2 is the only candidate")
    assert [each.trial for each in choice.results] == [2, 1]
    with pytest.raises(SearchError, match="no candidate could be trained on all folds: the loss is nan"):
        chosen(failed)
