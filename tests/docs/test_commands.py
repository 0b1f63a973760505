"""Every command that README.md and docs/ show is run on a small study, or names the test that runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import ase
import ase.io
import h5py
import numpy as np
import psutil
import pytest
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from search.cli.main import app
from storage.settings import Settings
from tools.pages import ROOT, Block, Command, commands, pages
from trainer.data.shipped import sample_file

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")]

ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    ".ci/run": (
        "git clone <this repository>",
        "cd anitune",
        "source .venv/bin/activate",
        "make test",
    ),
    "tests/compose/test_compose.py::test_a_study_survives_a_killed_worker_and_a_restart_of_the_database": (
        "cp .env.example .env",
        "make secrets",
        "docker compose *",
    ),
    "tests/test_repository.py::test_lock_pins_every_dependency": ("pip install .[[]postgres]",),
    "tests/integration/test_up_and_backup.py::test_the_servers_of_a_home": (
        "anitune up",
        "anitune down",
        "export MLFLOW_TRACKING_URI=*",
    ),
    # Addresses of example.org.
    "tests/search/test_cli_help.py::test_options_of_places_win_over_the_environment": (
        "export ANITUNE_STORAGE_URL=*",
    ),
    "tests/dashboards/test_servers.py::test_a_server_elsewhere_is_linked_to_without_its_password": (
        "export ANITUNE_TRACKING_URI=*",
    ),
    "tests/integration/test_secrets.py::test_an_mlflow_with_sign_in_and_artifacts_on_s3_has_all_of_a_study": (
        "export MLFLOW_TRACKING_USERNAME=*",
        "export AWS_ACCESS_KEY_ID=*",
        "export MLFLOW_AUTH_ADMIN_PASSWORD=*",
        "mlflow server --app-name basic-auth *",
    ),
    # Runs until it is stopped.
    "tests/dashboards/test_servers.py::test_both_answer_other_machines_and_refuse_other_sites": (
        "anitune dashboards *",
    ),
    "tests/search/test_cli_data.py::test_fetch_of_what_is_already_there": (
        "anitune data fetch ani1 --to data/",
    ),
    "tests/launch/test_local.py::test_two_pinned_workers_finish_a_study_and_end": (
        "anitune launch my-study --on local *",
    ),
    "tests/launch/test_slurm.py::test_two_pinned_workers_of_a_job_finish_a_study": (
        "anitune launch my-study --on slurm *",
    ),
    "tests/launch/test_places.py::test_a_pod_has_gpus_secrets_volumes_and_time_to_end": (
        "anitune launch my-study --on kubernetes *",
    ),
    "tests/e2e/test_two_homes.py::test_a_machine_without_a_shared_folder_goes_on_where_the_lost_one_was": (
        "export ANITUNE_HOME=*",
    ),
    # Many trainings, and what takes their model.
    "tests/search/test_promote.py::test_the_choice_is_recorded_with_its_reasons": (
        "anitune promote quickstart --*",
    ),
    "tests/search/test_promote.py::test_a_trial_is_reproduced_from_its_record": ("anitune reproduce *",),
    "tests/search/test_learning_curve.py::test_the_values_are_those_of_the_trainings": (
        "anitune learning-curve * --*",
    ),
    "tests/search/test_docs_using_the_model.py::test_what_the_page_says_works": (
        "anitune predict champion *",
        "anitune export champion *",
        "python examples/md.py *",
    ),
    "tests/search/test_cli_predict.py::test_the_champion_of_the_registry_is_a_model": (
        "mlflow artifacts download *",
        "mv downloaded/artifacts/ensemble champion",
    ),
    # They need a GPU.
    "tests/benchmarks/test_gpu_proof.py::test_make_takes_arguments_and_needs_a_torch_with_cuda": (
        "make gpu-proof*",
    ),
    "tests/benchmarks/test_gpu_proof.py::test_all_parts_run_on_an_emulated_device": (
        "python -m benchmarks.gpu_proof *",
    ),
    "tests/dashboards/test_report.py::test_studies_are_compared_and_told_apart": (
        "anitune report quickstart other-study",
    ),
}
"""What cannot be run here, as patterns, by the test that runs it. Nothing else is left out."""

TRAINING = (
    "anitune study run",
    "anitune worker",
    "anitune train",
    "anitune promote",
    "anitune learning-curve",
)
"""What is run in a process of its own, as people do, and once only."""

SMALLER = {
    "anitune promote": ("--top", "1", "--folds", "2", "--seeds", "1", "--ensemble", "2"),
    "anitune learning-curve": ("--top", "1", "--seeds", "2"),
}
"""Options that are added to what would take minutes."""

BEFORE: Mapping[str, tuple[str, ...]] = {
    # The README leaves its study in the archive, and with more trials than are worth training here.
    "docs/from-laptop-to-cluster.md": ("study", "delete", "my-study", "--yes"),
}
"""What takes away what an earlier page left."""


def shown() -> list[Command]:
    """The commands of all pages, in the order of the pages."""
    return [
        command
        for page in pages()
        for block in page.blocks
        if block.kind == "commands"
        for command in commands(block)
    ]


def elsewhere(command: Command) -> list[str]:
    """The patterns of what cannot be run here that fit."""
    patterns = [pattern for each in ELSEWHERE.values() for pattern in each]
    return [pattern for pattern in patterns if fnmatchcase(command.bare, pattern)]


def test_every_exemption_is_needed_and_names_what_is_there() -> None:
    used = {pattern for command in shown() for pattern in elsewhere(command)}
    for place, patterns in ELSEWHERE.items():
        assert set(patterns) <= used, "no page shows it any more"
        file, _, name = place.partition("::")
        assert (ROOT / file).exists(), place
        assert not name or f"\ndef {name}(" in (ROOT / file).read_text(), place


def test_every_other_command_can_be_run_here() -> None:
    programs = ("anitune", "python", "make run")
    unknown = [
        f"{command.block.place}: {command.line}"
        for command in shown()
        if not elsewhere(command) and not command.bare.startswith(programs)
    ]
    assert unknown == [], "name in ELSEWHERE the test that tries them"


def test_make_run_is_what_is_run_for_it() -> None:
    first, *others = recipe_of_run()
    assert first == ["anitune", "study", "run", "examples/quickstart.yaml"]
    assert all(words[0] == "anitune" for words in others)


def recipe_of_run() -> list[list[str]]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("run:")) + 1
    end = next(n for n, line in enumerate(lines[start:], start) if not line.startswith("\t"))
    return [line.strip().removeprefix("$(BIN)/").split() for line in lines[start:end]]


class Desk:
    """Where a person follows the pages: a folder with data and a home, and what was typed there so far."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.trained: set[str] = set()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANITUNE_")},
            "ANITUNE_HOME": str(home),
            "PYTHONPATH": str(ROOT),
        }

    def write(self, block: Block) -> None:
        """A file of the page: a program as it stands, settings of a study made small."""
        if block.kind == "python":
            if block.title:  # others are lines for a notebook
                (self.folder / block.title).write_text(block.text)
            return
        values = yaml.safe_load(block.text)
        if "name" in values:
            (self.folder / f"{values['name']}.yaml").write_text(yaml.safe_dump(small(values)))

    def run(self, command: Command) -> tuple[int, str]:
        """Exit code and all output."""
        if command.bare == "make run":
            answers = [self._run(words, {}) for words in recipe_of_run()]
            return max(code for code, _ in answers), "".join(text for _, text in answers)
        return self._run(list(command.words), command.variables)

    def _run(self, words: list[str], variables: dict[str, str]) -> tuple[int, str]:
        text = " ".join(words)
        if words[0] == "anitune" and not text.startswith(TRAINING):
            places = dict.fromkeys(("ANITUNE_STORAGE_URL", "ANITUNE_TRACKING_URI"))
            home = {"ANITUNE_HOME": self.environment["ANITUNE_HOME"]}
            answer = CliRunner(env={**places, **home, **variables}).invoke(app, words[1:])
            return answer.exit_code, answer.output
        if text in self.trained:
            return 0, ""
        self.trained.add(text)
        program = ["-m", "search.cli.main"] if words[0] == "anitune" else []
        smaller = SMALLER.get(" ".join(words[:2]), ())
        ended = subprocess.run(
            [sys.executable, *program, *words[1:], *smaller],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return ended.returncode, ended.stdout

    def clear(self) -> None:
        """End what still runs there: relays."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("ANITUNE_HOME") == self.environment["ANITUNE_HOME"]:
                    process.kill()


def small(values: dict[str, Any]) -> dict[str, Any]:
    """The same study on a tenth of the shipped data, with two trials of two epochs, or its first two rows."""
    values = {**values, "training": {**values.get("training", {}), "epochs": 2, "device": "cpu"}}
    if values.get("data") == {"files": ["sample"]}:
        values["data"] = {"files": [str(Path("my_molecules.h5").resolve())]}
    if "rows" in values:
        return {**values, "rows": values["rows"][:2]}
    values["limits"] = {"trials": 2}
    if "min_epochs" in values.get("pruner", {}):
        values["pruner"] = {**values["pruner"], "min_epochs": 1}
    return values


@pytest.fixture
def desk(tmp_path: Path, empty_home: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """The examples made small, data files by the names that the pages use, and one that is damaged."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    for file in (ROOT / "examples").glob("*.yaml"):
        values = small(yaml.safe_load(file.read_text()))
        (tmp_path / "examples" / file.name).write_text(yaml.safe_dump(values))
    shutil.copy(ROOT / "examples" / "small-molecules.extxyz", tmp_path / "examples")
    copy_tenth(sample_file(), tmp_path / "my_molecules.h5")
    for name, symbols in (("water", "OHH"), ("methane", "CHHHH")):
        ase.io.write(tmp_path / f"{name}.xyz", [structure(symbols, seed) for seed in range(3)])
    shutil.copy(tmp_path / "water.xyz", tmp_path / "molecules.xyz")
    with h5py.File(tmp_path / "broken.h5", "w") as broken:
        broken["methane/species"] = np.array(list("CHHHH"), dtype="S1")
        broken["methane/coordinates"] = np.zeros((40, 5, 3), dtype=np.float32)
        broken["methane/energies"] = np.where(np.arange(40) == 7, np.nan, -40.0)
    desk = Desk(tmp_path, empty_home.home)
    yield desk
    desk.clear()


def copy_tenth(source: Path, target: Path) -> None:
    """Copy every tenth structure of each molecule of a file in the ANI-1 layout."""

    def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if name.endswith(("/coordinates", "/energies")):
            few[name] = item[::10]
        elif name.endswith(("/species", "/smiles")):
            few[name] = item[()]

    with h5py.File(source) as all_of_it, h5py.File(target, "w") as few:
        all_of_it.visititems(copy)


def structure(symbols: str, seed: int) -> ase.Atoms:
    atoms = ase.Atoms(symbols, np.random.default_rng(seed).normal(size=(len(symbols), 3)))
    energy = {"OHH": -2080.0, "CHHHH": -1102.0}[symbols] - seed  # eV
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def test_the_pages_can_be_followed(desk: Desk) -> None:
    for page in pages():
        if page.path in BEFORE:
            assert CliRunner(env=desk.environment).invoke(app, BEFORE[page.path]).exit_code == 0
        output = ""
        for block in page.blocks:
            if block.kind in ("yaml", "python"):
                desk.write(block)
            elif block.info == "text output":
                assert " ".join(block.text.split()) in " ".join(output.split()), block.place
            elif block.kind == "commands":
                for command in commands(block):
                    if not elsewhere(command):
                        code, output = desk.run(command)
                        wanted = 2 if block.info == "sh fails" else 0
                        assert code == wanted, f"{block.place}: {command.line}\n{output}"
