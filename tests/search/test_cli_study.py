"""The commands of ``anitune study`` on a small study that a real process has run, reference included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from search.cli.main import app
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, Settings
from trainer.networks.files import load_model

STUDY = """
name: tiny
data: {{files: [{data}]}}
training: {{epochs: 3, hidden: [8], device: cpu}}
space: {{batch_size: {{choices: [16, 32]}}, activation: {{choices: [silu, celu]}}}}
pruner: {{kind: none}}
limits: {{trials: 3}}
reference: rows.yaml
"""
ROWS = """
name: rows
training: {epochs: 2, hidden: [8], batch_size: 960}
scale_batch_from: 1000
rows:
  - {label: first, reported_mae: 3.99, note: Reported on a training batch.}
  - {label: second, start_from: first, training: {learning_rate: 1e-5}, reported_mae: 1.3}
"""


@dataclass(frozen=True)
class Ran:
    """A study that was run, and what the command said."""

    folder: Path
    stdout: str
    stderr: str

    @property
    def file(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def environment(self) -> dict[str, str]:
        return {"ANITUNE_HOME": str(self.folder / "home")}


def anitune(ran: Ran, *arguments: str, **environment: str) -> Any:
    """Run a command in this process; what it sets in the environment does not outlast it."""
    places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))
    return CliRunner(env={**places, **ran.environment, **environment}).invoke(app, list(arguments))


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, data_file: Path, make_home: Callable[[Path], Settings]
) -> Ran:
    folder = tmp_path_factory.mktemp("study")
    make_home(folder / "home")
    (folder / "rows.yaml").write_text(ROWS)
    ran = Ran(folder, "", "")
    ran.file.write_text(STUDY.format(data=data_file))
    answer = subprocess.run(
        [sys.executable, "-m", "search.cli.main", "study", "run", str(ran.file)],
        env={**os.environ, **ran.environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    return Ran(folder, answer.stdout, answer.stderr)


def test_run_tells_its_course_and_what_to_look_at(ran: Ran) -> None:
    assert "batch sizes scaled to 96 training structures from 1,000" in ran.stderr
    assert "tiny 3/3  trial " in ran.stderr
    assert ran.stdout.count("complete") == 5
    assert "row first" in ran.stdout
    assert "3.99" in ran.stdout
    assert "Reported on a training batch." in ran.stdout
    assert str(ran.folder / "home" / "trials" / "tiny") in ran.stdout
    assert "anitune dashboards --study tiny" in ran.stdout
    report = ran.folder / "home" / "reports" / "tiny.html"
    assert str(report) in ran.stdout
    assert "the best of 3 complete trials" in report.read_text()
    assert "\x1b" not in ran.stdout + ran.stderr  # no colours into files


def test_the_leaderboard_is_in_order(ran: Ran) -> None:
    lines = [line.split() for line in ran.stdout.splitlines() if " 384-8-1 " in line and "complete" in line]
    maes = [float(line[line.index("384-8-1") + 2]) for line in lines]
    assert len(maes) == 5
    assert maes == sorted(maes)
    assert [line[0] for line in lines if line[0] != "row"] == ["1", "2", "3"]


def test_best_gives_what_a_program_needs(ran: Ran) -> None:
    best = json.loads(anitune(ran, "study", "best", "tiny", "--json").stdout)
    shown = json.loads(anitune(ran, "study", "show", "tiny", "--json").stdout)
    assert best["val_mae_kcalmol"] == min(row["val_mae_kcalmol"] for row in shown["rows"])
    assert best["trial"] == shown["best_trial"]
    assert best["parameters"]["batch_size"] in (16, 32)
    assert load_model(Path(best["weights"])).model.config.hidden == (8,)
    assert {file.name for file in Path(best["plots"]).iterdir()} == {"loss.png", "parity.png", "errors.png"}
    assert best["mlflow_run_id"]


def test_show_counts(ran: Ran) -> None:
    shown = json.loads(anitune(ran, "study", "show", "tiny", "--json").stdout)
    assert shown["trials"] == {
        "running": 0,
        "interrupted": 0,
        "paused": 0,
        "complete": 3,
        "pruned": 0,
        "failed": 0,
    }
    assert (shown["epochs"], shown["epochs_saved_by_pruning"]) == (9, 0)
    assert shown["seconds"] > 0
    text = anitune(ran, "study", "show", "tiny").stdout
    assert "3 complete; limit: 3 trials" in text
    assert "saved 0 epochs" in text


def test_list_has_the_study_and_its_reference(ran: Ran) -> None:
    listed = json.loads(anitune(ran, "study", "list", "--json").stdout)
    assert [study["name"] for study in listed] == ["tiny-rows", "tiny"]
    assert "tiny-rows" in anitune(ran, "study", "list").stdout


def test_no_such_study(ran: Ran) -> None:
    for command in (["study", "show"], ["study", "best"], ["worker"]):
        answer = anitune(ran, *command, "nosuch")
        assert answer.exit_code == 2
        assert answer.stderr.startswith("anitune: there is no study 'nosuch'")
        assert answer.stderr.count("\n") == 1


def test_the_name_is_taken_by_another_configuration(ran: Ran) -> None:
    other = ran.folder / "other.yaml"
    other.write_text(ran.file.read_text().replace("epochs: 3", "epochs: 4"))
    answer = anitune(ran, "study", "create", str(other))
    assert answer.exit_code == 2
    assert "study 'tiny' exists with other settings (training.epochs: 3 there, 4 here)" in answer.stderr


def test_create_again_changes_nothing_but_limits(ran: Ran) -> None:
    raised = ran.folder / "raised.yaml"
    raised.write_text(ran.file.read_text().replace("trials: 3", "trials: 8"))
    assert anitune(ran, "study", "create", str(raised)).exit_code == 0
    shown = json.loads(anitune(ran, "study", "show", "tiny", "--json").stdout)
    assert shown["limits"]["trials"] == 8
    assert shown["trials"]["complete"] == 3
    assert anitune(ran, "study", "create", str(ran.file)).exit_code == 0


def test_best_before_any_trial(ran: Ran) -> None:
    new = ran.folder / "new.yaml"
    new.write_text("name: new\nlimits: {trials: 1}\n")
    assert (
        anitune(ran, "study", "create", str(new)).stdout
        == "new: ready; start a worker with: anitune worker new\n"
    )
    answer = anitune(ran, "study", "best", "new")
    assert answer.exit_code == 1
    assert "no trial is complete yet" in answer.stderr


def test_a_data_file_that_is_not_there(ran: Ran) -> None:
    missing = ran.folder / "missing.yaml"
    missing.write_text("name: missing\ndata: {files: [nosuch.h5]}\nlimits: {trials: 1}\n")
    answer = anitune(ran, "study", "run", str(missing))
    assert answer.exit_code == 2
    place = f"{ran.folder}/nosuch.h5"
    assert answer.stderr == f"anitune: {place}: no such file; correct its name, or put it there\n"


def test_a_database_that_does_not_answer(ran: Ran) -> None:
    elsewhere = "postgresql://me:secret@127.0.0.1:9/none"
    answer = anitune(ran, "study", "list", ANITUNE_STORAGE_URL=elsewhere)
    assert answer.exit_code == 1
    assert "127.0.0.1" in answer.stderr
    assert "secret" not in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--storage", "--tracking"])
def test_an_argument_is_no_place_for_a_password(ran: Ran, option: str) -> None:
    for url in ("postgresql://me:secret@127.0.0.1:9/none", "postgresql://127.0.0.1:9/none?password=secret"):
        answer = anitune(ran, option, url, "study", "list")
        assert answer.exit_code == 2
        assert option in answer.stderr
        assert "do not pass a password" in answer.stderr
        assert "secret" not in answer.stderr


def test_places_of_the_study_file_come_after_the_environment(ran: Ran) -> None:
    file = ran.folder / "placed.yaml"
    file.write_text(f"name: placed\nstorage: sqlite:///{ran.folder}/placed.db\nlimits: {{trials: 1}}\n")
    answer = anitune(ran, "study", "create", str(file))
    # Other commands do not read the study file: they are told where to look.
    assert answer.stdout.endswith(f"anitune --storage sqlite:///{ran.folder}/placed.db worker placed\n")
    elsewhere = f"sqlite:///{ran.folder}/elsewhere.db"
    answer = anitune(ran, "study", "create", str(file), ANITUNE_STORAGE_URL=elsewhere)
    assert answer.stdout.endswith("with: anitune worker placed\n")
    assert (ran.folder / "elsewhere.db").exists()


@pytest.mark.parametrize("pack", ["0", "-1", "two", ""])
def test_trials_at_once_are_a_number_or_auto(ran: Ran, pack: str) -> None:
    for command in (["study", "run", str(ran.file)], ["worker", "tiny"]):
        answer = anitune(ran, *command, "--pack", pack)
        assert answer.exit_code == 2
        assert "--pack" in answer.stderr
        assert "give auto, or a number of at least 1" in answer.stderr
    assert anitune(ran, "worker", "tiny", "--pack", "auto").exit_code == 0
