from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler

from benchmarks.search_replay import (
    SearchHistory,
    Trainings,
    VirtualClock,
    replay_learning,
    replay_optuna,
    replay_ours,
)
from benchmarks.search_table import EPOCHS, Cell, Training
from search.propose import halving
from search.study import PrunerConfig
from storage.trials.paused import RungResult
from trainer.task import Task


def error(cell: Cell) -> float:
    """What a cell ends with, kcal/mol: 0.4 for the best."""
    return (
        0.4
        + 0.2 * abs(math.log10(cell.learning_rate) + 3)
        + (cell.activation == "relu") / (1 + sum(cell.hidden))
    )


def cells() -> list[Cell]:
    values = itertools.product(
        [(8,), (16,), (16, 8)], ["relu", "celu"], [1e-4, 1e-3, 1e-2], [16, 32, 64, 128], [0.0]
    )
    return [Cell(*each) for each in values]


@pytest.fixture
def trainings() -> Trainings:
    return Trainings(
        [
            Training(
                cell,
                tuple(error(cell) * (1 + 9 / epoch) - 9 / EPOCHS for epoch in range(1, EPOCHS + 1)),
                1,
                seconds=2.0,
            )
            for cell in cells()
        ]
    )


def points(history: SearchHistory) -> list[Any]:
    assert history.points
    return history.points


def test_the_clock_lets_the_one_run_that_is_due_first() -> None:
    clock, seen = VirtualClock(), []

    def action(name: str, seconds: list[float]) -> None:
        for each in seconds:
            clock.sleep(each)
            seen.append((clock.now, name))

    clock.run([lambda: action("a", [3, 1]), lambda: action("b", [1, 1, 2])])
    assert seen == [(1, "b"), (2, "b"), (3, "a"), (4, "b"), (4, "a")], "at the same time: who slept first"


def test_the_clock_passes_on_what_an_action_raised() -> None:
    clock, seen = VirtualClock(), []

    def fail() -> None:
        clock.sleep(1)
        raise ValueError("no")

    def go_on() -> None:
        clock.sleep(2)
        seen.append(clock.now)

    with pytest.raises(ValueError, match="no"):
        clock.run([fail, go_on])
    assert seen == [2]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_replay_repeats_bit_for_bit_by_its_seed(trainings: Trainings, task: Task, workers: int) -> None:
    pruner = {"pruner": {"kind": "asha", "min_epochs": 3}}
    first, again, other = (
        points(replay_ours(trainings, task, pruner, seed, 300, workers)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    epochs, seconds, _ = first[-1]
    assert 300 <= epochs < 300 + workers * EPOCHS
    assert epochs * 2.0 / workers <= seconds <= epochs * 2.0, "an epoch takes 2 s"


def test_another_rule_of_promotion_changes_the_figures(
    trainings: Trainings, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = {"pruner": {"kind": "asha", "min_epochs": 3}}
    before = points(replay_ours(trainings, task, pruner, 0, 300, 2))
    rule = halving.promoted

    def reversed_rule(pruner: PrunerConfig, results: Sequence[RungResult], may_begin: bool) -> int | None:
        return rule(pruner, [replace(each, value=-each.value) for each in results], may_begin)

    monkeypatch.setattr(halving, "promoted", reversed_rule)
    assert points(replay_ours(trainings, task, pruner, 0, 300, 2)) != before


def test_plain_optuna_spends_the_same_epochs_on_the_same_clock(trainings: Trainings) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for pruner in (None, optuna.pruners.MedianPruner()):
        first, again = (
            points(replay_optuna(trainings, RandomSampler(seed=3), pruner, 300, 2)) for _ in range(2)
        )
        assert first == again
        epochs, seconds, taken = first[-1]
        assert 300 <= epochs < 300 + 2 * EPOCHS
        assert epochs <= seconds <= epochs * 2.0
        assert taken >= trainings.ranked()[0][0]


def test_a_training_that_failed_costs_its_epochs_and_is_never_taken(trainings: Trainings, task: Task) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    best = trainings.ranked()[0][1]
    rows = [row for cell in cells() for row in [trainings.find(cell, 0)]]
    failing = Trainings(
        [
            dataclasses.replace(row, val_mae=row.val_mae[:5], failure="the loss is not finite")
            if dataclasses.astuple(row.cell)[:5] != best
            else row
            for row in rows
        ]
    )
    asha = {"pruner": {"kind": "asha", "min_epochs": 3}}
    for history in (
        replay_ours(failing, task, asha, 0, 500, 1),
        replay_optuna(failing, RandomSampler(seed=0), None, 1000, 1),
    ):
        assert {5, 10, 15} <= {epochs for epochs, _, _ in points(history)}
        taken = [error for _, _, error in history.points]
        assert taken[0] == math.inf
        assert taken[-1] == failing.ranked()[0][0]


def test_a_person_takes_what_was_trained_longest(trainings: Trainings) -> None:
    history = SearchHistory(trainings)
    good, bad, unknown = cells()[7], cells()[0], cells()[1]
    for epoch in range(1, EPOCHS + 1):
        history.report(bad, 0, epoch, error(bad), 1.0)
    for epoch in range(1, EPOCHS + 1):
        history.report(good, 1, epoch, error(good), 2.0)
    history.report(unknown, 2, 1, 0.1, 3.0)  # good so far, which says little
    assert [point[0] for point in history.points] == list(range(1, 2 * EPOCHS + 2))
    taken = [point[2] for point in history.points]
    assert taken[: 2 * EPOCHS - 1] == [trainings.error(bad)] * (2 * EPOCHS - 1)
    assert taken[2 * EPOCHS - 1 :] == [trainings.error(good)] * 2


def test_a_study_that_learns_begins_with_the_best_of_the_earlier_one(
    trainings: Trainings, task: Task
) -> None:
    history = replay_learning(trainings, task, {}, seed=1, epochs=400, workers=1)
    best = trainings.ranked()[0][0]
    assert history.points[0][2] < best * 1.3, "the first configuration is a good one"
    assert history.points == replay_learning(trainings, task, {}, 1, 400, 1).points


def test_a_study_that_ends_for_lack_of_gain_spends_less(trainings: Trainings, task: Task) -> None:
    changes = {"pruner": {"kind": "none"}, "limits": {"until_no_gain": True}}
    history = replay_ours(trainings, task, changes, 0, trainings.epochs, 1)
    assert 20 * EPOCHS <= history.epochs < trainings.epochs
