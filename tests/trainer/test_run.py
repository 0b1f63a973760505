from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from trainer.config import DataConfig, RunConfig, SplitConfig, TaskConfig, TrainConfig, load_config
from trainer.errors import DataError
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.inference_time import inference_time
from trainer.evaluation.metrics import METRICS, measure
from trainer.fitting.devices import resolve_precision
from trainer.networks.files import load_model
from trainer.networks.model import ElementNetworks
from trainer.progress import no_progress
from trainer.reporting import EpochRecord, SilentReporter
from trainer.run import TrainingResult, run_training
from trainer.task import Task, prepare_task

CONFIG = TrainConfig(hidden=(16,), batch_size=16, epochs=5, learning_rate=5e-3, device="cpu")
FILES = {
    "config.json",
    "metrics.json",
    "history.csv",
    "model.safetensors",
    "plots/loss.png",
    "plots/parity.png",
    "plots/errors.png",
}


class Stops(SilentReporter):
    """Asks to stop after the first epoch."""

    def should_stop(self) -> bool:
        return True


class Prunes(SilentReporter):
    """Prunes at the first rung."""

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        return True


def files_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(task: Task, folder: Path) -> TrainingResult:
    return run_training(task, CONFIG, folder, SilentReporter())


def test_all_artifacts_are_written(result: TrainingResult, folder: Path) -> None:
    assert result.outcome == "finished"
    assert {file.relative_to(folder).as_posix() for file in result.artifacts} == FILES
    assert files_in(folder) == FILES | {"checkpoint.safetensors"}


def test_the_model_file_gives_the_metrics(task: Task, result: TrainingResult, folder: Path) -> None:
    saved = load_model(folder / "model.safetensors")
    assert saved.self_energies == task.self_energies
    measured = measure(evaluate(saved.model, task, task.split.validation), "val")
    assert measured == {name: value for name, value in result.metrics.items() if name.startswith("val/")}
    assert measured["val/mae_kcalmol"] == pytest.approx(result.best_val_mae, rel=1e-5)


def test_metrics_are_by_kind_of_molecule_and_of_the_run(result: TrainingResult, folder: Path) -> None:
    # Water, methane, methanol.
    groups = ("", "_heavy_1", "_heavy_2", "_elements_HO", "_elements_CH", "_elements_CHO")
    of_run = {
        "parameters",
        "inference_us_per_atom",
        "structures_per_second",
        "seconds",
        "peak_memory_mib",
        "threads",
    }
    assert set(result.metrics) == {f"val/{name}{group}" for name in METRICS for group in groups} | of_run
    assert result.metrics["parameters"] == 4 * (384 * 16 + 16 + 16 + 1)
    assert result.metrics["seconds"] == pytest.approx(sum(record.seconds for record in result.history))
    assert result.metrics["structures_per_second"] == pytest.approx(96 * 5 / result.metrics["seconds"])
    assert 50 < result.metrics["peak_memory_mib"] < 20_000
    assert 0.01 < result.metrics["inference_us_per_atom"] < 1000
    written = json.loads((folder / "metrics.json").read_text())
    assert written["metrics"] == result.metrics
    assert written["best_val_mae_kcalmol"] == result.best_val_mae


def test_the_history_is_a_table_with_a_row_an_epoch(result: TrainingResult, folder: Path) -> None:
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5]
    assert [float(row["val/mae_kcalmol"]) for row in rows] == [record.val_mae for record in result.history]
    assert min(float(row["val/mae_kcalmol"]) for row in rows) == result.best_val_mae


def test_the_written_settings_are_those_of_the_run(
    data_file: Path, result: TrainingResult, folder: Path
) -> None:
    run = load_config(RunConfig, json.loads((folder / "config.json").read_text()), "config.json")
    # The precision that ``auto`` meant here is part of the record.
    assert run == RunConfig(data=DataConfig(files=(str(data_file),)), training=resolve_precision(CONFIG))


def test_run_again_it_gives_the_same_without_training(
    task: Task, result: TrainingResult, folder: Path
) -> None:
    again = run_training(task, CONFIG, folder, SilentReporter())
    assert again.history == result.history  # the times of the epochs included
    assert again.best_val_mae == result.best_val_mae


def test_a_pruned_training_leaves_its_artifacts_too(task: Task, tmp_path: Path) -> None:
    pruned = run_training(task, CONFIG, tmp_path, Prunes(), rungs=(2,))
    assert (pruned.outcome, pruned.epochs) == ("pruned", 2)
    assert files_in(tmp_path) == FILES | {"checkpoint.safetensors"}


def test_a_stopped_training_leaves_its_checkpoint_only(task: Task, tmp_path: Path) -> None:
    stopped = run_training(task, CONFIG, tmp_path, Stops())
    assert (stopped.outcome, stopped.epochs, stopped.artifacts, stopped.metrics) == ("stopped", 1, (), {})
    assert files_in(tmp_path) == {"checkpoint.safetensors"}


def test_progress_counts_epochs(task: Task, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    run_training(task, CONFIG, tmp_path, SilentReporter(), progress=lambda *step: told.append(step))
    assert told == [("training", n, 5) for n in range(6)]


# What all trainings of a study share.


def test_given_self_energies_are_used_and_are_part_of_the_identity(
    task: Task, data_file: Path, feature_root: Path
) -> None:
    given = {"H": -0.5, "C": -37.8, "N": -54.5, "O": -75.0}
    data = DataConfig(files=(str(data_file),), self_energies=given)
    with_given = prepare_task(TaskConfig(data), feature_root, no_progress)
    assert with_given.self_energies == given
    water = task.dataset.molecules[0]
    np.testing.assert_allclose(with_given.energies[:40], water.energies - (-75.0 + 2 * -0.5))
    differing = {k for k, v in with_given.fingerprints.items() if v != task.fingerprints[k]}
    assert differing == {"self_energies"}


def one_structure(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("water")
        group["species"] = np.array([b"O", b"H", b"H"])
        group["coordinates"] = np.array([[[0, 0, 0], [0.96, 0, 0], [-0.2, 0.93, 0]]], dtype=np.float32)
        group["energies"] = np.array([-76.4])
    return path


def test_one_structure_is_too_few(tmp_path: Path) -> None:
    data = DataConfig(files=(str(one_structure(tmp_path / "one.h5")),))
    with pytest.raises(DataError, match=r"one\.h5: one structure only"):
        prepare_task(TaskConfig(data), tmp_path, no_progress)


def test_without_a_validation_set_nothing_can_be_chosen(data_file: Path, tmp_path: Path) -> None:
    data, split = DataConfig(files=(str(data_file),)), SplitConfig(fractions=(0.9, 0.0, 0.1))
    with pytest.raises(DataError, match=r"validation set .* is empty: change split\.fractions"):
        prepare_task(TaskConfig(data, split), tmp_path, no_progress)


REAL = Path(__file__).parents[3] / "shared" / "data" / "ani_gdb_s01.h5"


@pytest.mark.skipif(not REAL.exists(), reason=f"the first file of the ANI-1 release is not at {REAL}")
def test_the_first_file_of_the_release_is_trained_on(tmp_path: Path) -> None:
    data, split = DataConfig((str(REAL),)), SplitConfig(fractions=(0.2, 0.05, 0.75))
    task = prepare_task(TaskConfig(data, split), tmp_path / "features", no_progress)
    assert task.dataset.structures == 10_800
    config = TrainConfig(hidden=(32,), batch_size=32, epochs=6, learning_rate=3e-3, device="cpu")
    result = run_training(task, config, tmp_path, SilentReporter())
    untrained = np.abs(task.energies[task.split.validation]).mean() * 627.5094738898777
    assert result.best_val_mae < 0.5 * untrained


def test_a_large_network_takes_longer_to_predict_than_a_small_one(task: Task) -> None:
    def measured(*hidden: int) -> float:
        config = TrainConfig(hidden=hidden, precision="float32")
        return inference_time(ElementNetworks(config, task.aev.elements, task.features.length), task)

    # Sixty times the operations, so that a loaded machine does not matter.
    assert measured(8) < measured(512, 512, 512)
