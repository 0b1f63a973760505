"""A study of networks with widths by element and of two descriptors, from its file to dynamics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from sqlalchemy import select
from typer.testing import CliRunner

from search.cli.main import app
from storage.database import open_database
from storage.records.tables import relays
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, embedded
from storage.tracking import process
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.inference.ase_calculator import AnituneCalculator
from trainer.networks.files import load_model

STUDY = """
name: wide
features:
  aev: {radial_shifts: [0.9, 1.6, 2.3, 3.0], radial_eta: 4.0, angular_shifts: [0.9, 2.2], angle_sections: 4}
  choices:
    near: {radial_cutoff: 4.0, angular_cutoff: 3.1}
    sharp: {radial_eta: 8.0}
space:
  layers: 2
  width: {choices: [4, 6, 8], per_element: true}
  activation: {choices: [celu, gelu]}
  dropout: 0.0
  weight_decay: 0.0
  learning_rate: 3.0e-3
  batch_size: 256
training: {epochs: 1, device: cpu}
sampler: {kind: random}
pruner: {kind: none}
limits: {trials: 3}
"""


@dataclass(frozen=True)
class Home:
    folder: Path

    def run(self, *arguments: str) -> Any:
        """Run a command in this process, and return what it prints as JSON, if it does."""
        places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))
        done = CliRunner(env={**places, "ANITUNE_HOME": str(self.folder)}).invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    def promote(self, *options: str) -> None:
        """Promote the study in another process, because MLflow warns when it registers a model."""
        done = subprocess.run(
            [sys.executable, "-m", "search.cli.main", "promote", "wide", *options],
            env={**os.environ, "ANITUNE_HOME": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "study.yaml").write_text(STUDY)
    home = Home(folder / "home")
    home.run("study", "run", str(folder / "study.yaml"), "--pack", "1")
    yield home
    end_relays(home)


def end_relays(home: Home) -> None:
    """End the relays of this process, and the one that the promotion started."""
    for relay in process._started:
        relay.kill()
        relay.wait(60)
    with open_database(embedded(home.folder)) as database, database.reading() as connection:
        pids = connection.execute(select(relays.c.pid)).scalars().all()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def trials(home: Home) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = home.run("study", "show", "wide", "--json")["rows"]
    return found


def test_each_trial_says_its_widths_and_descriptor(trials: list[dict[str, Any]]) -> None:
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    for trial in trials:
        params = trial["parameters"]
        widths = [f"{e} {params[f'width_{e}_1']}-{params[f'width_{e}_2']}" for e in ("H", "C", "N", "O")]
        text = f"{' | '.join(widths)} {params['activation']}, features {params['features']}"
        assert trial["architecture"] == text
    assert {trial["parameters"]["features"] for trial in trials} == {"near", "sharp"}


def test_it_has_one_store_for_each_descriptor(home: Home, trials: list[dict[str, Any]]) -> None:
    stores = [path for path in (home.folder / "features").iterdir() if path.is_dir()]
    assert len(stores) == 2


def test_a_trial_is_reproduced_and_its_promotion_goes_to_torchani_and_ase(
    home: Home, trials: list[dict[str, Any]], tmp_path: Path
) -> None:
    best = min(trials, key=lambda trial: trial["val_mae_kcalmol"])
    assert home.run("reproduce", "wide", str(best["trial"]), "--json")["differences"] == []
    home.promote("--top", "1", "--folds", "2", "--seeds", "1", "--ensemble", "2")
    ensemble = next((home.folder / "promotions").rglob("ensemble.json")).parent
    member = load_model(ensemble / "member-00.safetensors")
    assert member.model.config.features == best["parameters"]["features"]
    assert member.aev.radial_cutoff == {"near": 4.0, "sharp": 5.2}[best["parameters"]["features"]]

    home.run("export", str(ensemble), "--to", "torchani", "--out", str(tmp_path / "model.safetensors"))
    atoms = molecule("CH3OH")
    atoms.calc = AnituneCalculator(ensemble)
    program = (
        "import json, sys, torch; from load_torchani import load_model\n"
        "numbers, coordinates = json.loads(sys.argv[1])\n"
        "print(load_model('model.safetensors')((torch.tensor([numbers]), torch.tensor([coordinates],"
        " dtype=torch.float64))).energies.item())"
    )
    given = json.dumps([[ATOMIC_NUMBERS[s] for s in atoms.symbols], atoms.positions.tolist()])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, given],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) * 27.211386245988 == pytest.approx(atoms.get_potential_energy(), abs=1e-6)

    VelocityVerlet(atoms, timestep=0.01).run(5)
    assert np.isfinite(atoms.get_forces()).all()
