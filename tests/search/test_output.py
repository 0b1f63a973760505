"""What a person sees of several trials that are trained at once."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from search.cli.output import studies_table, summary_lines
from search.cli.progress import _Bars, _Lines
from search.work.worker import TrialNews
from storage.studies import Budget, StudySummary


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
