"""A study outlives a newer version, which has more settings, methods and metrics, and other defaults.

The newer version is a copy of this one, with changes as a developer would make them. It continues a home
folder that this version writes, and one that the code of 0.1.0 wrote: with this file as a program, and with
``anitune promote older --top 1 --seeds 1 --folds 2 --ensemble 1``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from search.cli.create import create_studies
from search.study import load_study
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.database import Database, open_database
from storage.records.tables import studies, trials
from storage.settings import Settings
from storage.studies import open_study
from storage.trials.views import TrialRow, metric_history, trial_rows
from trainer.fingerprints import digest_of
from trainer.progress import no_progress
from trainer.task import prepare_task

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EARLIER = ROOT / "tests" / "data" / "home-0.1.0.tar.xz"

#: It leaves open whatever it can: sampler, pruner, and most settings of the trainings.
STUDY = """
name: older
data: {files: [data.h5]}
features: {aev: {elements: [H, C, O], radial_shifts: [0.9, 1.7], angular_shifts: [1.2], angle_sections: 2}}
training: {epochs: 5, device: cpu}
space: {hidden: {choices: [[8], [8, 8]]}}
pruner: {min_epochs: 2}
limits: {trials: 8}
"""
PAUSED, INTERRUPTED, TRIALS = 4, 4, 8

#: What stands in which file, and what the newer version has there. One more setting of a training, sampler,
#: and metric of epochs and trials, and other defaults.
CHANGES: Mapping[str, Sequence[tuple[str, str]]] = {
    "trainer/config.py": (
        (
            "    patience: Annotated[\n",
            "    label_noise: Annotated[\n"
            '        float, Field(ge=0, description="noise of the energies"), Range(0.0, 0.1)\n'
            "    ] = 0.0\n"
            "    patience: Annotated[\n",
        ),
        ('] = "cosine"\n', '] = "constant"\n'),
    ),
    "trainer/evaluation/metrics.py": (
        (
            '    "max_error_kcalmol": Metric(max_error, lambda errors: errors.abs().amax(0)),\n',
            '    "max_error_kcalmol": Metric(max_error, lambda errors: errors.abs().amax(0)),\n'
            '    "median_error_kcalmol": Metric(\n'
            "        lambda errors: float(np.median(np.abs(errors))),\n"
            "        lambda errors: errors.abs().median(0).values,\n"
            "    ),\n",
        ),
    ),
    "search/study.py": (
        ('(SAMPLERS))] = "tpe"\n', '(SAMPLERS))] = "random"\n'),
        ("    ] = 4\n", "    ] = 3\n"),
    ),
    "search/methods.py": (
        (
            '    "random": Sampler(lambda config, seed: optuna.samplers.RandomSampler(seed=seed)),\n',
            '    "random": Sampler(lambda config, seed: optuna.samplers.RandomSampler(seed=seed)),\n'
            '    "sobol": Sampler(lambda config, seed: optuna.samplers.RandomSampler(seed=seed + 1)),\n',
        ),
    ),
}

#: Runs commands, and prints what each of them said.
RUN_COMMANDS = """
import json, sys
from typer.testing import CliRunner
from search.cli.main import app
answers = [CliRunner().invoke(app, command) for command in json.loads(sys.argv[1])]
print(json.dumps([(answer.exit_code, answer.output) for answer in answers]))
"""


@dataclass(frozen=True)
class NewerVersion:
    """A copy of the program with the changes of :data:`CHANGES`, which works on a home folder."""

    program: Path
    home: Path

    def run(self, *commands: Sequence[str]) -> list[tuple[int, str]]:
        """Run commands in one process, and return the exit code and the output of each."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANITUNE_")}
        ended = subprocess.run(
            [sys.executable, "-c", RUN_COMMANDS, json.dumps(commands)],
            env={**kept, "ANITUNE_HOME": str(self.home), "PYTHONPATH": str(self.program)},
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return [(code, output) for code, output in json.loads(ended.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newer")
    for package in ("trainer", "storage", "search", "dashboards"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in CHANGES.items():
        file = folder / name
        text = file.read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{name} has {text.count(old)} times: {old}"
            text = text.replace(old, new)
        file.write_text(text)
    return folder


class StopWithin(SilentWatcher):
    """Asks a worker to stop after the first epoch of a trial."""

    def __init__(self, stop: StopRequest, number: int) -> None:
        self._stop = stop
        self._number = number

    def epoch(self, number: int, done: int) -> None:
        if number == self._number and done == 1:
            self._stop.ask(signal.SIGINT)


def opened(home: Path) -> Database:
    return open_database(Settings(home, f"sqlite:///{home}/anitune.db", f"sqlite:///{home}/mlflow.db"))


def write_home(folder: Path, data: Path) -> None:
    """Begin a study in ``folder/home``: paused trials, a complete one, and one that was interrupted."""
    shutil.copy(data, folder / "data.h5")
    (folder / "study.yaml").write_text(STUDY)
    with opened(folder / "home") as database:
        ((study, config),), _ = create_studies(database, load_study(folder / "study.yaml"))
        features = database.settings.features
        task = prepare_task(config.task, features, no_progress)
        study.set_facts(task.fingerprints)
        stop = StopRequest()
        watcher = StopWithin(stop, INTERRUPTED)
        Worker(database, study, config, task, watcher, stop, start_relay=lambda _: None).work()


def read_home(home: Path) -> tuple[dict[str, Any], list[TrialRow], dict[int, dict[str, list[int]]]]:
    """Return the record of the study, its trials, and the epochs of each trial by metric."""
    with opened(home) as database:
        study = open_study(database, "older")
        rows = trial_rows(database, study)
        measured = {
            trial.number: {
                metric: [value.step for value in values]
                for metric, values in metric_history(database, study, trial.number).items()
            }
            for trial in rows
        }
        with database.reading() as connection:
            named = select(studies.c.config).where(studies.c.name == "older")
            return connection.execute(named).scalar_one(), rows, measured


def digests(home: Path) -> dict[int, str]:
    """Return what is compared to find a trial with the same settings, by the number of the trial."""
    with opened(home) as database, database.reading() as connection:
        rows = connection.execute(
            select(trials.c.number, trials.c.settings)
            .join(studies, studies.c.id == trials.c.study_id)
            .where(studies.c.name == "older")
        )
        return {row.number: row.settings for row in rows}


def digest_without_new_settings(trial: TrialRow, record: Mapping[str, Any]) -> str:
    new = {"label_noise", "features"} - record["training"].keys()  # the first version had no features either
    unlike = {*new, "checkpoint_seconds", "seed"}
    compared = {name: value for name, value in (trial.config or {}).items() if name not in unlike}
    return digest_of(compared | {"start_from": None})


def test_a_newer_version_continues_a_study(program: Path, tmp_path: Path, data_file: Path) -> None:
    write_home(tmp_path, data_file)
    record, before, _ = read_home(tmp_path / "home")
    _is_half_done(before)
    newer = NewerVersion(program, tmp_path / "home")
    complete = next(trial.number for trial in before if trial.state == "complete")
    _goes_on(newer, record, before)
    reproduced = newer.run(*(["reproduce", "older", str(number)] for number in (complete, INTERRUPTED)))
    for code, output in reproduced:
        assert code == 0, output
        assert "the network is identical\nreproduced, bit for bit" in output


def test_a_home_that_the_first_version_wrote_goes_on(program: Path, tmp_path: Path) -> None:
    with tarfile.open(EARLIER) as archive:
        archive.extractall(tmp_path, filter="data")
    newer = NewerVersion(program, tmp_path / "home")
    ((code, output),) = newer.run(["migrate"])
    assert code == 0, output
    record, before, _ = read_home(tmp_path / "home")
    _is_half_done(before)
    complete = next(trial.number for trial in before if trial.state == "complete")
    _goes_on(newer, record, before)
    # Another processor rounds differently.
    ((code, output),) = newer.run(["reproduce", "older", str(complete), "--tolerance", "0.1"])
    assert code == 0, output
    report = (tmp_path / "home" / "reports" / "older.html").read_text()
    assert "promoted" in report
    ((code, output),) = newer.run(["promote", "older"])
    assert code != 0
    assert "was already evaluated" in output


def _is_half_done(trials: Sequence[TrialRow]) -> None:
    states = [trial.state for trial in trials]
    assert states.count("paused") == PAUSED - 1
    assert states.count("complete") == 1
    assert states[INTERRUPTED] == "interrupted"


def _goes_on(newer: NewerVersion, record: Mapping[str, Any], before: Sequence[TrialRow]) -> None:
    """Let the newer version finish the study, and check that it is still the same study."""
    (newer.home.parent / "new.yaml").write_text(STUDY.replace("older", "newer") + "sampler: {kind: sobol}\n")
    ran, synced, verified, reported, created, shown = newer.run(
        ["study", "run", "study.yaml", "--pack", "1"],
        ["sync", "older"],
        ["study", "verify", "older"],
        ["report", "older"],
        ["study", "create", "new.yaml"],
        ["study", "show", "older", "--json"],
    )
    assert ran[0] == 0, ran[1]
    assert "older exists, and keeps what its file leaves open: " in ran[1]
    assert 'pruner.reduction_factor: 4, sampler.kind: "tpe", ' in ran[1]
    assert 'training.schedule: "cosine"' in ran[1]
    assert synced[0] == 0, synced[1]
    assert verified[0] == 0, verified[1]
    assert f"SQL, Optuna and MLflow agree; {TRIALS} of {TRIALS} trials" in verified[1]
    assert reported[0] == 0, reported[1]
    assert created[0] == 0, created[1]
    assert shown[0] == 0, shown[1]

    with opened(newer.home) as database:
        searched = open_study(database, "newer").config["space"]
        optuna = open_study(database, "older").optuna.get_trials()
    assert "label_noise" in searched, "the newer version searches the new setting in a new study"
    now, ended, measured = read_home(newer.home)
    assert now == record
    assert not any("label_noise" in trial.params for trial in optuna)
    assert all((trial.config or {}).get("label_noise", 0.0) == 0.0 for trial in ended)
    assert {(trial.config or {})["schedule"] for trial in ended} == {"cosine"}
    assert {trial.state for trial in ended} == {"complete", "pruned"}
    # So a new trial takes the result of an older one with the same settings.
    assert digests(newer.home) == {
        trial.number: digest_without_new_settings(trial, record) for trial in ended
    }
    # With a rejected checkpoint, a trial would be trained again from the start.
    assert all(trial.trained_epochs == trial.epochs for trial in ended)
    assert measured[INTERRUPTED]["val/mae_kcalmol"][0] == 1
    assert measured[INTERRUPTED]["val/median_error_kcalmol"][0] == before[INTERRUPTED].epochs + 1 == 2


if __name__ == "__main__":
    _, data = map(Path, sys.argv)
    write_home(Path.cwd(), data)
