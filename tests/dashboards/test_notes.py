"""Notes: the first lines say what matters, and what people add to them stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from dashboards.links import usual_address
from dashboards.notes import (
    OptunaImage,
    mlflow_study_note,
    mlflow_trial_note,
    optuna_study_note,
    optuna_trial_note,
)
from dashboards.optuna_notes import BORDER, EARLIER_BORDER, write_optuna_figures, write_optuna_notes
from dashboards.record import read_study
from dashboards.study_files import LEADERBOARD, PLOTS, study_files
from search.cli.relay import note_writer
from storage.database import open_database
from storage.settings import Settings
from storage.studies import Budget, Study, StudySummary, create_study
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import ArtifactRow, TrialRow

WORKER = WorkerInfo(name="node7-17", host="node7", pid=17, device="cuda:0 NVIDIA H100", versions={})
CONFIG = {"learning_rate": 0.00123456, "batch_size": 64, "dropout": 0.05, "weight_decay": 1e-6, "epochs": 81}

BEST = TrialRow(
    number=12,
    optuna_trial_id=40,
    state="complete",
    value=0.83216,
    config=CONFIG,
    params={},
    tags={"arch": "384-128-64-1 silu"},
    summary={
        "val/mae_kcalmol": 0.83216,
        "val/rmse_kcalmol": 1.25,
        "val/mae_kcalmol_heavy_2": 0.7,
        "val/rmse_kcalmol_heavy_2": 0.9,
        "parameters": 230_916.0,
    },
    reason=None,
    attempt=1,
    worker=WORKER,
    started=0.0,
    ended=34.0,
    seconds=34.2,
    epochs=81,
    trained_epochs=81,
    planned_epochs=81,
    mlflow_run_id="abc",
    artifacts=(ArtifactRow("plots/loss.png", "0" * 64, 10), ArtifactRow("model.safetensors", "1" * 64, 10)),
)
SECOND = replace(BEST, number=3, value=1.5, tags={"arch": "384-64-1 celu"}, mlflow_run_id="def")
PRUNED = replace(BEST, number=4, state="pruned", value=0.5, epochs=9)
FAILED = replace(
    BEST, number=5, state="failed", value=None, epochs=2, reason="loss | was\n*not* finite", summary={}
)
SUMMARY = StudySummary(
    name="my_study",
    state="open",
    created_at=0.0,
    budget=Budget(trials=20),
    trials={"running": 0, "interrupted": 0, "paused": 0, "complete": 2, "pruned": 1, "failed": 1},
    best_number=12,
    best_value=0.83216,
    seconds=100.0,
    epochs=1234,
    epochs_saved=72,
    mlflow_experiment_id="7",
    mlflow_run_id="parent",
)


def test_a_run_begins_with_architecture_and_error() -> None:
    first, *rest = mlflow_trial_note(BEST).splitlines()
    assert first == "`384-128-64-1 silu`: validation MAE **0.832 kcal/mol** after 81 of 81 epochs"
    note = "\n".join(rest)
    assert "230,916 parameters, 34 s, on cuda:0 NVIDIA H100, by node7-17" in note
    assert "| 2 | 0.700 | 0.900 |" in note
    assert "![plots/loss.png](get-artifact?run_uuid=abc&path=plots/loss.png)" in note
    assert "parity" not in note  # the trial has no such file


def test_the_first_line_of_a_run_leads_back(study: Study) -> None:
    back = "http://127.0.0.1:20001/dashboard/studies/3/trials?numbers=12"
    first = mlflow_trial_note(BEST, back).splitlines()[0]
    assert first.endswith(f"after 81 of 81 epochs · [trial 12 in Optuna]({back})")
    write = note_writer(study)
    server = usual_address(study.database.settings)
    assert (
        f"({server}/dashboard/studies/{study.optuna_study_id}/trials?numbers=0)" in write(0).splitlines()[0]
    )
    assert f"[leaderboard]({server}/anitune/studies/widths)" in write(None).splitlines()[0]


def test_a_failed_trial_says_why_and_a_pruned_one_when() -> None:
    assert "**failed** after 2 epochs: loss \\| was \\*not\\* finite" in mlflow_trial_note(FAILED)
    assert "validation MAE **0.500 kcal/mol** when pruned after 9 of 81 epochs" in mlflow_trial_note(PRUNED)


def test_an_optuna_trial_shows_its_plots_and_leads_to_its_run() -> None:
    images = [OptunaImage("parity.png", "02-1-12-beef"), OptunaImage("loss.png", "01-1-12-cafe")]
    note = optuna_trial_note(3, "7", BEST, images)
    assert note.startswith("### `384-128-64-1 silu`\n")
    assert "[Run in MLflow](/mlflow/#/experiments/7/runs/abc?workflowType=machine_learning)" in note
    loss, parity = note.index("(/artifacts/3/40/01-1-12-cafe)"), note.index("(/artifacts/3/40/02-1-12-beef)")
    assert loss < parity < note.index("| learning rate | 0.00123 |")
    assert "MLflow" not in optuna_trial_note(3, None, BEST, [])


def test_the_best_of_the_finalists_has_its_mean() -> None:
    note = optuna_study_note(3, replace(SUMMARY, best_value=0.9, best_seeds=3), [SECOND, BEST])
    assert "validation MAE **0.900 kcal/mol** (trial 12, mean over 3 seeds)" in note


def test_a_study_is_ranked_by_what_complete_trials_reached() -> None:
    note = optuna_study_note(3, SUMMARY, [SECOND, PRUNED, FAILED, BEST])
    assert "Best: `384-128-64-1 silu`, validation MAE **0.832 kcal/mol** (trial 12)" in note
    assert "4 of 20 trials started (2 complete, 1 pruned, 1 failed)" in note
    assert "1,234 epochs trained, 72 saved by pruning" in note
    rows = [line.split(" | ") for line in note.splitlines() if line.startswith("| ")][2:]
    assert [row[1] for row in rows] == [
        "[12](/dashboard/studies/3/trials?numbers=12)",
        "[3](/dashboard/studies/3/trials?numbers=3)",
    ]
    assert rows[0][2:] == (
        ["`384-128-64-1 silu`", "**0.832**", "230,916", "0.00123", "64", "0.05", "1e-06", "34 |"]
    )
    assert "With 2 complete trials only" in note


def test_a_study_in_mlflow_leads_to_its_runs() -> None:
    note = mlflow_study_note(SUMMARY, [SECOND, BEST])
    assert note.startswith("Best: `384-128-64-1 silu`, validation MAE **0.832 kcal/mol** (trial 12)\n")
    assert "| 1 | [12](#/experiments/7/runs/abc?workflowType=machine_learning) |" in note


def test_nothing_is_promised_of_a_study_without_complete_trials() -> None:
    empty = replace(SUMMARY, trials=dict.fromkeys(SUMMARY.trials, 0), best_number=None, best_value=None)
    assert mlflow_study_note(empty, []).startswith("No trial is complete yet.\n")
    assert "|" not in optuna_study_note(3, empty, [])


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """A study with one complete trial, recorded as a worker does."""
    home = tmp_path / "home"
    settings = Settings(home, f"sqlite:///{home / 'anitune.db'}", f"sqlite:///{home / 'mlflow.db'}")
    plot = tmp_path / "loss.png"
    plot.write_bytes(b"\x89PNG")
    with open_database(settings) as database:
        study = create_study(database, "widths", {}, Budget(trials=1))
        claim = claim_trial(database, study, WORKER)
        assert claim is not None
        attempt = Attempt(database, study, claim)
        attempt.record_config(CONFIG, {}, planned_epochs=81, tags={"arch": "384-8-1 silu"})
        attempt.record_artifacts({"plots/loss.png": plot})
        attempt.finish("complete", 2.5)
        yield study


def test_notes_of_a_trial_that_ended_are_in_optuna(study: Study) -> None:
    write_optuna_notes(study)
    (trial,) = study.optuna.get_trials()
    note = get_note(study.optuna_trial(trial._trial_id))
    assert "validation MAE **2.500 kcal/mol**" in note
    (image,) = (key.removeprefix("artifacts:") for key in trial.system_attrs if key.startswith("artifacts:"))
    assert f"![loss.png](/artifacts/{study.optuna_study_id}/{trial._trial_id}/{image})" in note
    assert "`384-8-1 silu`" in get_note(study.optuna)


def test_what_a_person_wrote_stays(study: Study) -> None:
    (trial,) = study.optuna.get_trials()
    save_note(study.optuna_trial(trial._trial_id), "Look at this one again.")
    write_optuna_notes(study)
    save_note(study.optuna, get_note(study.optuna) + "\nOur favourite study.")
    before = study.database.optuna.get_study_system_attrs(study.optuna_study_id)
    write_optuna_notes(study)

    assert get_note(study.optuna_trial(trial._trial_id)).endswith(f"{BORDER}\nLook at this one again.")
    assert get_note(study.optuna).endswith(f"{BORDER}\nOur favourite study.")
    # Nothing changed, and so nothing was written: a page that is open does not see another version.
    assert study.database.optuna.get_study_system_attrs(study.optuna_study_id) == before


def test_what_a_person_wrote_below_a_note_of_an_earlier_version_stays(study: Study) -> None:
    save_note(study.optuna, f"An old ranking.{EARLIER_BORDER}\nOur favourite study.")
    write_optuna_notes(study)
    note = get_note(study.optuna)
    assert note.endswith(f"{BORDER}\nOur favourite study.")
    assert "An old ranking." not in note


def test_a_study_that_was_deleted_in_the_dashboard_is_no_error(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    study.database.optuna.delete_study(study.optuna_study_id)
    write_optuna_notes(study)
    assert "study widths was deleted in the Optuna dashboard" in caplog.text


def test_error_against_cost_is_on_the_page_of_the_study_and_is_written_when_it_changed(study: Study) -> None:
    record = read_study(study.database, study.name)
    write_optuna_figures(study, record)
    attributes = study.database.optuna.get_study_system_attrs(study.optuna_study_id)
    (figure,) = get_plotly_graph_objects(attributes).values()
    named = {trace["name"] for trace in json.loads(figure)["data"]}
    assert named == {"complete", "Pareto front"}

    more = replace(record, trials=(*record.trials, replace(BEST, number=1)))
    write_optuna_figures(study, more)
    attributes = study.database.optuna.get_study_system_attrs(study.optuna_study_id)
    (changed,) = get_plotly_graph_objects(attributes).values()
    assert changed != figure


def test_the_studys_run_holds_leaderboard_and_plots(study: Study) -> None:
    files = study_files(read_study(study.database, study.name))
    assert set(files) == {LEADERBOARD, *PLOTS}
    assert files[LEADERBOARD].decode().splitlines()[1].startswith("widths,0,,1,complete,384-8-1 silu,2.5,")
    assert all(files[path].startswith(b"\x89PNG") for path in PLOTS)


def test_writing_notes_does_not_wait_for_the_dashboard_to_be_imported() -> None:
    look = "import sys; from dashboards.optuna_dashboard_private import part; part('_note')"
    look += "; print('sklearn' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=300
    )
    assert told.stdout == "False\n"
