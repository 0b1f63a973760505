"""One of each that ARCHITECTURE.md says is added in one place, added in a temporary module, works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ADDITIONS = """
import numpy as np
import optuna
import torch

from search.methods import PRUNERS, SAMPLERS, Pruner, Sampler
from trainer.evaluation.metrics import METRICS, Metric
from trainer.fitting.losses import LOSSES, LossFunction
from trainer.fitting.optimizers import OPTIMIZERS
from trainer.fitting.schedules import SCHEDULES, Schedule
from trainer.networks.activations import ACTIVATIONS, ActivationFunction

ACTIVATIONS["softsign"] = ActivationFunction(
    lambda x: x / (1 + x.abs()), lambda g, x, y: g / (1 + x.abs()).square()
)
OPTIMIZERS["nadam"] = lambda weights, **settings: torch.optim.NAdam(weights, **settings)
SCHEDULES["linear"] = Schedule(
    "linear to zero", lambda config, maes: config.learning_rate * (1 - len(maes) / config.epochs)
)
LOSSES["mse_per_atom"] = LossFunction("squared error per atom", lambda atoms: 1 / atoms)
METRICS["median_kcalmol"] = Metric(
    lambda errors: float(np.median(np.abs(errors))), lambda errors: errors.abs().median(0).values
)
SAMPLERS["dice"] = Sampler(lambda config, seed: optuna.samplers.RandomSampler(seed=seed))
PRUNERS["percentile"] = Pruner(
    lambda config, pruner: optuna.pruners.PercentilePruner(50.0, n_startup_trials=pruner.startup_trials)
)
"""

#: It prints as JSON what the test looks at.
USE = """
import csv, json, sys
from pathlib import Path

import additions
from search.dimensions import default_dimensions
from search.study import study_from_values
from search.work.reproduce import recorded_trial, reproduce_trial
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.blobs.place import open_blobs
from storage.database import open_database
from storage.settings import Settings
from storage.studies import Budget, create_study
from storage.trials.views import trial_rows
from trainer.config import dump_config
from trainer.errors import TrainerError
from trainer.inference.ensemble import Ensemble
from trainer.inference.export import export_model, sample_structures
from trainer.progress import no_progress
from trainer.task import prepare_task

data, home = sys.argv[1], Path(sys.argv[2])
fixed = {"epochs": 3, "hidden": [8], "batch_size": 16, "optimizer": "nadam", "schedule": "linear",
         "loss": "mse_per_atom", "learning_rate": 1e-3, "weight_decay": 0.0, "dropout": 0.0, "device": "cpu"}
values = {"name": "added", "data": {"files": [data]}, "training": fixed,
          "space": {"activation": {"choices": ["softsign", "celu"]}}, "sampler": {"kind": "dice"},
          "pruner": {"kind": "percentile"}, "limits": {"trials": 2}}
config = study_from_values(values, "test")
task = prepare_task(config.task, home / "features", no_progress)
settings = Settings(home, f"sqlite:///{home}/a.db", f"sqlite:///{home}/m.db")
with open_database(settings) as database:
    study = create_study(database, config.name, dump_config(config), Budget(trials=2))
    Worker(database, study, config, task, SilentWatcher(), StopRequest(), start_relay=lambda _: None,
           concurrent_trials=1).work()
    trials = {trial.config["activation"]: trial for trial in trial_rows(database, study)}
    trial = trials["softsign"]
    files = {file.path: open_blobs(database).path(file.digest) for file in trial.artifacts}
    with files["history.csv"].open() as rows:
        history = list(csv.DictReader(rows))
    reproduction = reproduce_trial(task, recorded_trial(database, study, [*trials.values()], trial.number))

folder = home / "model"
folder.mkdir()
(folder / "model.safetensors").write_bytes(files["model.safetensors"].read_bytes())
ensemble = Ensemble.open(folder / "model.safetensors")
structures = sample_structures(ensemble)[:4]
export_model(ensemble, "torch-export", folder / "model.pt2", structures)
refused = []
for attempt in (
    lambda: export_model(ensemble, "torchani", folder / "torchani.safetensors", structures),
    lambda: study_from_values(values | {"sampler": {"kind": "dices"}}, "test"),
):
    try:
        attempt()
    except TrainerError as error:
        refused.append(str(error))
print(json.dumps({
    "states": [trial.state for trial in trials.values()], "activations": [*trials], "history": history,
    "metrics": trial.summary, "differences": len(reproduction.differences), "compared": reproduction.compared,
    "searched": default_dimensions()["activation"].choices, "refused": refused,
}))
"""


@pytest.mark.slow
def test_what_is_added_in_one_place_can_be_used_everywhere(tmp_path: Path, data_file: Path) -> None:
    (tmp_path / "additions.py").write_text(ADDITIONS)
    (tmp_path / "use.py").write_text(USE)
    answer = subprocess.run(
        [sys.executable, "use.py", str(data_file), str(tmp_path / "home")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert (found["states"], sorted(found["activations"])) == (["complete"] * 2, ["celu", "softsign"])
    assert found["searched"][-1] == "softsign"
    history = found["history"]
    rates = [float(epoch["train/learning_rate"]) for epoch in history]
    assert rates == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    best = min(history, key=lambda epoch: float(epoch["val/mae_kcalmol"]))
    # Of an even number of errors, torch takes the lower of the two in the middle, and numpy their mean.
    median = found["metrics"]["val/median_kcalmol"]
    assert 0 < float(best["val/median_kcalmol"]) <= median < float(best["val/max_error_kcalmol"])
    assert (found["differences"], found["compared"] > 0) == (0, True)
    no_loader, no_sampler = found["refused"]
    assert no_loader == "load_torchani.py has no activation softsign: use --to torch-export"
    assert "input should be 'tpe', 'gp', 'nsgaii', 'random', 'qmc', 'grid' or 'dice'" in no_sampler
