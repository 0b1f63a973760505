"""Asynchronous successive halving, by rungs written out by hand."""

from __future__ import annotations

from dataclasses import replace

from search.propose.halving import goes_on, promoted
from search.study import PrunerConfig
from storage.trials.paused import RungResult

PAUSING = PrunerConfig("asha", reduction_factor=3)
STOPPING = PrunerConfig("asha", reduction_factor=3, stop=True)


def rung(step: int, values: dict[int, float], paused: set[int]) -> list[RungResult]:
    return [RungResult(number, step, value, number in paused) for number, value in values.items()]


def test_one_of_three_goes_on() -> None:
    results = rung(3, {0: 3.0, 1: 1.0, 2: 2.0}, paused={0})
    assert [goes_on(PAUSING, results, number, 3) for number in (0, 1, 2)] == [False, True, False]
    assert not goes_on(PAUSING, results[:2], 1, 3), "two of them are not enough to know"
    assert not goes_on(PAUSING, [*results, RungResult(2, 9, 1.0, False)], 2, 9), "each rung for itself"


def test_a_trial_that_would_be_lost_goes_on_until_there_are_enough_to_compare() -> None:
    results = rung(3, {0: 3.0, 1: 1.0, 2: 2.0}, paused=set())
    assert goes_on(STOPPING, results[:1], 0, 3)
    assert goes_on(STOPPING, results[:2], 0, 3)
    assert not goes_on(STOPPING, results, 2, 3)


def test_later_results_promote_a_paused_trial() -> None:
    results = rung(3, {0: 1.0, 1: 2.0}, paused={0, 1})
    assert promoted(PAUSING, results, may_begin=True) is None
    results += rung(3, {2: 3.0}, paused={2})
    assert promoted(PAUSING, results, may_begin=True) == 0
    results += rung(3, {3: 4.0, 4: 5.0, 5: 6.0}, paused={3, 4, 5})
    results[0] = RungResult(0, 3, 1.0, paused=False)
    assert promoted(PAUSING, results, may_begin=True) == 1, "the second place of six"


def test_the_latest_rung_comes_first() -> None:
    early = rung(3, {n: float(n) for n in range(6)}, paused={1})
    late = rung(9, {6: 3.0, 7: 2.0, 8: 4.0}, paused={6, 7, 8})
    assert promoted(PAUSING, early + late, may_begin=True) == 7


def test_at_the_end_the_best_of_each_rung_go_on() -> None:
    late = rung(9, {0: 2.0, 1: 1.0, 2: 3.0}, paused={0, 2})
    early = rung(3, {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, paused={3, 4})
    finishing = [replace(PAUSING, finish=finish) for finish in (1, 2, 3, 4)]
    assert [promoted(pruner, late + early, may_begin=False) for pruner in finishing] == [None, 0, 0, 0]
    late = [replace(result, paused=False) for result in late]
    assert [promoted(pruner, late + early, may_begin=False) for pruner in finishing] == [None, None, None, 3]
    assert promoted(finishing[3], late + early, may_begin=True) is None


def test_of_equal_results_the_first_is_better() -> None:
    results = rung(3, {0: 1.0, 1: 1.0, 2: 1.0}, paused={0, 1, 2})
    assert promoted(PAUSING, results, may_begin=True) == 0
