"""What a person sees of several trials that are trained at once."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from search.cli.output import make_console, studies_table, summary_lines
from search.cli.progress import _Bars, _Lines
from search.cli.promote import results_table
from search.promote.plan import FoldKind, Options, PromotionPlan
from search.work.worker import TrialNews
from storage.promotions import Promotion
from storage.studies import Budget, StudySummary
from storage.trials.queue import WorkerInfo


def news(number: int, **changes: object) -> TrialNews:
    values = {"state": "running", "planned_epochs": 9, "label": None, "architecture": "384-8-1 silu"}
    return TrialNews(study="tiny", number=number, **{**values, **changes})  # type: ignore[arg-type]


def summary(complete: int) -> StudySummary:
    trials = dict.fromkeys(("running", "interrupted", "paused", "complete", "pruned", "failed"), 0)
    return StudySummary(
        name="tiny",
        state="open",
        created_at=0.0,
        budget=Budget(trials=3),
        trials=trials | {"complete": complete},
        best_number=None,
        best_value=None,
        seconds=0.0,
        epochs=0,
        epochs_saved=0,
        mlflow_experiment_id=None,
        mlflow_run_id=None,
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "waiting for workers"),
        ({"trials": {"complete": 2, "pruned": 1}}, "finished"),
        ({"trials": {"complete": 2, "failed": 1, "running": 1}}, "running"),
        ({"trials": {"complete": 2, "interrupted": 1}}, "waiting for workers"),
        ({"trials": {"complete": 2, "paused": 1}}, "waiting for workers"),
        ({"budget": Budget(epochs=9), "epochs": 9}, "finished"),
        ({"budget": Budget(seconds=60.0), "seconds": 59.0}, "waiting for workers"),
        ({"trials": {"complete": 3}, "state": "paused"}, "paused"),
    ],
)
def test_a_study_whose_limit_is_reached_is_not_called_open(changes: dict[str, Any], said: str) -> None:
    study = summary(0)
    changes = changes | {"trials": study.trials | changes.get("trials", {})}
    study = replace(study, **changes)
    assert f"state        {said}" in summary_lines(study)
    console = Console(file=io.StringIO(), width=200)
    console.print(studies_table([study]))
    assert isinstance(console.file, io.StringIO)
    assert said in console.file.getvalue()


def test_the_best_error_over_several_seeds_is_called_a_mean() -> None:
    one = replace(summary(3), best_number=1, best_value=2.07)
    assert "best         2.070 kcal/mol (validation MAE of trial 1)" in summary_lines(one)
    best = "best         2.070 kcal/mol (validation MAE of trial 1, mean over 3 seeds)"
    assert best in summary_lines(replace(one, best_seeds=3))


def test_no_number_of_a_promotion_is_cut_off_where_architectures_are_long() -> None:
    def folds(mean: float, difference: dict[str, float] | None) -> dict[str, Any]:
        one = {"mean": mean, "spread": 0.25, "difference": difference, "told_apart": False}
        return {"structure": one, "molecule": {**one, "mean": 10 * mean}}

    long = "H 160-128-96 | C 144-112-96 | N 128-112-96 | O 128-112-96 celu, features near"
    values = {"architecture": long, "parameters": 1_234_567, "val_mae": 2.125, "failed": None}
    interval = {"mean": 1.875, "low": -30.5, "high": 34.25}
    promotion = Promotion(
        id=1,
        plan={},
        worker=WorkerInfo("w", "host", 1, "cpu", {}),
        started=0.0,
        ended=None,
        results=[
            {"trial": 31, "folds": folds(3.125, None), **values},
            {"trial": 32, "folds": folds(5.375, interval), **values},
        ],
        choice=32,
        reason=None,
        test=None,
        model_name=None,
        model_version=None,
    )
    kinds: dict[FoldKind, int] = {"structure": 2, "molecule": 2}
    plan = PromotionPlan(Options(), (), kinds, kinds, {}, ())
    file = io.StringIO()
    make_console(file=file).print(results_table(promotion, plan, "structure"))
    shown = file.getvalue()
    assert "…" not in shown
    for number in ("31", "32", "2.125", "3.125 ± 0.250", "53.750 ± 0.250", "+1.875", "1,234,567", "chosen"):
        assert number in shown


def test_each_trial_that_is_trained_has_a_bar() -> None:
    console = Console(file=io.StringIO())
    progress = Progress(console=console)

    def bars() -> dict[str, float]:
        return {task.description: task.completed for task in progress.tasks}

    shown = _Bars(console, progress)
    shown.begun(news(0), summary(0))
    shown.begun(news(1), summary(0))
    shown.epoch(1, 5)
    shown.epoch(0, 2)
    assert bars() == {"tiny": 0, "trial 0: 384-8-1 silu": 2, "trial 1: 384-8-1 silu": 5}
    shown.ended(news(1, state="complete", epochs=9, value=1.5), summary(1))
    shown.ended(news(2, state="failed", reason="no such device"), summary(1))
    assert bars() == {"tiny": 1, "trial 0: 384-8-1 silu": 2}


def test_where_nobody_looks_on_a_trial_is_a_line_when_it_ends() -> None:
    console = Console(file=io.StringIO(), width=200)
    lines = _Lines(console)
    for number in (0, 1):
        lines.begun(news(number), summary(0))
        lines.epoch(number, 3)
    lines.ended(news(1, state="complete", epochs=9, value=1.5), summary(1))
    lines.ended(news(0, state="lost", reason="another worker has it"), summary(1))
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "tiny 1/3  trial 1: 384-8-1 silu  complete after 9 of 9 epochs, val MAE 1.500 kcal/mol",
        "tiny 1/3  trial 0: 384-8-1 silu  lost: another worker has it",
    ]
