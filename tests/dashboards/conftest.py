"""Studies as workers record them, without a training: what dashboards and reports show is made of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from dashboards.record import StudyRecord
from search.study import study_from_values
from storage.database import Database, open_database
from storage.evaluations import record_evaluation, record_test_error
from storage.promotions import (
    begin_promotion,
    end_promotion,
    record_choice,
    record_test,
)
from storage.records.tables import trials
from storage.settings import Settings
from storage.studies import Budget, Study, StudySummary, create_study
from storage.tracking.outbox import MetricRow
from storage.trainings import RecordedTraining, record_training
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import TrialRow
from trainer.config import TrainConfig, dump_config

WORKER = WorkerInfo(
    "node7-17", "node7", 17, "cpu", {"python": "3.13.1", "torch": "2.13.0", "commit": "abc-dirty"}
)
HOSTILE = "loss </script><script>alert(1)</script> & | was *not* finite"

SPACE = {
    "name": "widths",
    "space": {
        "layers": {"low": 1, "high": 2},
        "width": {"low": 8, "high": 64, "step": 8},
        "activation": {"choices": ["celu", "silu"]},
    },
    "training": {"epochs": 9},
    "pruner": {"kind": "asha", "min_epochs": 3},
    "limits": {"trials": 8},
    "repeats": "replicate",
}
ROWS = {
    "name": "widths-rows",
    "training": {"epochs": 9},
    "rows": [
        {"label": "1", "training": {"hidden": [128]}, "reported_mae": 1.3},
        {"label": "2", "training": {"hidden": [200]}},
    ],
}
CONFIG = dump_config(study_from_values({**SPACE, "reference": ROWS}, "here"))

MakeTrial = Callable[..., TrialRow]
MakeRecord = Callable[..., StudyRecord]


def arch(hidden: tuple[int, ...], activation: str = "silu") -> str:
    return f"{'-'.join(map(str, (384, *hidden, 1)))} {activation}"


def summary_of(value: float, hidden: tuple[int, ...]) -> dict[str, float]:
    return {
        "val/mae_kcalmol": value,
        "val/rmse_kcalmol": value * 1.5,
        "val/mae_kcalmol_heavy_1": value * 0.8,
        "val/mae_kcalmol_heavy_2": value * 1.1,
        "val/mae_kcalmol_elements_CH": value * 0.9,
        "val/mae_kcalmol_elements_CHO": value * 1.2,
        "parameters": 1540.0 * sum(hidden),
        "structures_per_second": 1000.0,  # of 2,000 structures
        "seconds": 18.0,
    }


@pytest.fixture
def make_trial() -> MakeTrial:
    """A trial as it is read from the records."""

    def make(number: int, value: float | None, hidden: tuple[int, ...] = (64,), **changed: Any) -> TrialRow:
        config = dump_config(TrainConfig(hidden=hidden, activation="silu", epochs=9, seed=number))
        state = changed.get("state", "complete")
        trial = TrialRow(
            number=number,
            optuna_trial_id=number + 40,
            state=state,
            value=value,
            config=config,
            params={},
            tags={"arch": arch(hidden)},
            summary=summary_of(value, hidden) if value is not None else {},
            reason=None,
            attempt=1,
            worker=WORKER,
            started=100.0 * number,
            ended=100.0 * number + 50 if state in ("complete", "pruned", "failed") else None,
            seconds=20.0,
            epochs=9 if state == "complete" else 3,
            trained_epochs=9 if state == "complete" else 3,
            planned_epochs=9,
            mlflow_run_id=f"run{number}",
            artifacts=(),
        )
        return replace(trial, **changed)

    return make


@pytest.fixture
def make_record() -> MakeRecord:
    """A study as it is read from the records."""

    def make(
        *trials: TrialRow,
        name: str = "widths",
        reference: StudyRecord | None = None,
        by: str = "structure",
        members: tuple[RecordedTraining, ...] = (),
    ) -> StudyRecord:
        counts = dict.fromkeys(("running", "interrupted", "paused", "complete", "pruned", "failed"), 0)
        for trial in trials:
            counts[trial.state] += 1
        complete = [(t.value, t.number) for t in trials if t.state == "complete" and t.value is not None]
        best = min(complete, default=None)
        return StudyRecord(
            name=name,
            optuna_id=3,
            config={**CONFIG, "split": {**CONFIG["split"], "by": by}},
            facts={"split": "beef"},
            summary=StudySummary(
                name=name,
                state="open",
                created_at=0.0,
                budget=Budget(trials=8),
                trials=counts,
                best_number=best[1] if best else None,
                best_value=best[0] if best else None,
                seconds=20.0 * len(trials),
                epochs=sum(trial.epochs for trial in trials),
                epochs_saved=6 * counts["pruned"],
                mlflow_experiment_id="7",
                mlflow_run_id="parent",
            ),
            trials=tuple(trials),
            promotions=(),
            evaluations=(),
            members=members,
            reference=reference,
        )

    return make


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_home: Callable[[Path], Settings]) -> Settings:
    """A home without a study, which the environment names, too."""
    settings = make_home(tmp_path / "home")
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture
def database(home: Settings) -> Iterator[Database]:
    with open_database(home) as opened:
        yield opened


@pytest.fixture
def study(database: Database, tmp_path: Path) -> Study:
    """Seven trials of eight, and two rows beside them, of which row 2 would have the second place.

    Four are complete, of which 1 is the best and 2 and 3 are equal but for the seed; 4 was pruned, 5 failed,
    6 runs.
    """
    rows = create_study(database, "widths-rows", dump_config(study_from_values(ROWS, "here")), Budget())
    for label, hidden, value in (("1", (128,), 1.6), ("2", (200,), 0.9)):
        _end(_begin(database, rows, hidden, row=label), value, hidden, tmp_path)
    study = create_study(database, "widths", CONFIG, Budget(trials=8))
    study.set_facts({"split": "beef"})
    for hidden, value in (((64,), 1.5), ((64, 32), 0.8), ((32,), 1.0), ((32,), 1.02)):
        _end(_begin(database, study, hidden), value, hidden, tmp_path)
    pruned = _begin(database, study, (8,), epochs=3)
    pruned.finish("pruned", 3.0, reason="others were better after 3 epochs", summary=summary_of(3.0, (8,)))
    _begin(database, study, (16,), epochs=1).finish("failed", reason=HOSTILE)
    _begin(database, study, (24,), epochs=2)
    return study


@pytest.fixture
def promoted(database: Database, study: Study) -> Study:
    """The study, whose trial 2 was promoted to an ensemble of two."""
    promotion = begin_promotion(database, study, {"ensemble": 2}, WORKER).id
    folds = {"values": [0.9, 1.1], "mean": 1.0, "spread": 0.141, "difference": None, "told_apart": False}
    result = {
        "trial": 2,
        "architecture": arch((32,)),
        "val_mae": 1.0,
        "parameters": 49_280,
        "structures_per_second": 1e4,
        "folds": {"structure": folds},
        "failed": None,
    }
    record_choice(database, promotion, [result], 2, "it is the only candidate")
    for run, value in enumerate((1.01, 1.03)):
        training = RecordedTraining(f"member {run}", 2, "member", run, value, {})
        record_training(database, study, training)
    record_training(database, study, RecordedTraining("fold", 2, "structure", 0, 9.0, {}))
    study.set_facts({"data": "da7a"})
    record_evaluation(database, study, promotion, 2, {}, "e1", again=False)
    record_test_error(database, study, promotion, 0.95)
    test = {"mae_kcalmol": 0.95, "rmse_kcalmol": 1.4, "mean_member_mae_kcalmol": 1.0, "structures": 541}
    record_test(database, promotion, test)
    end_promotion(database, promotion, "widths", "1")
    return study


@pytest.fixture
def kinked(database: Database, study: Study) -> Study:
    """The study, whose best trial has an activation with a kink."""
    config = dump_config(TrainConfig(hidden=(64, 32), activation="relu", epochs=9))
    this = (trials.c.study_id == study.id, trials.c.number == 1)
    with database.writing() as connection:
        connection.execute(update(trials).where(*this).values(config=config))
    return study


def _begin(
    database: Database, study: Study, hidden: tuple[int, ...], epochs: int = 9, row: str | None = None
) -> Attempt:
    claim = claim_trial(database, study, WORKER)
    assert claim is not None
    attempt = Attempt(database, study, claim)
    config = dump_config(TrainConfig(hidden=hidden, activation="silu", epochs=9, seed=claim.number))
    tags = {"arch": arch(hidden)} | ({"row": row} if row is not None else {})
    attempt.record_config(config, {"layers": len(hidden)}, planned_epochs=9, tags=tags)
    attempt.record_metrics(
        [MetricRow("val/mae_kcalmol", step, 10.0 / step, 1_000 * step) for step in range(1, epochs + 1)]
    )
    return attempt


def _end(attempt: Attempt, value: float, hidden: tuple[int, ...], folder: Path) -> None:
    model = folder / "model.safetensors"
    model.write_bytes(b"weights of " + str(attempt.claim.number).encode())
    attempt.record_artifacts({"model.safetensors": model})
    attempt.finish("complete", value, summary=summary_of(value, hidden))
