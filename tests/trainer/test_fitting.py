from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch

from trainer.config import Precision, TrainConfig, dump_config, load_config
from trainer.data.splits import TEST, Split
from trainer.errors import CheckpointError, ConfigError, TrainingFailed
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.metrics import mean_absolute_error
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.features.batches import AtomBatch
from trainer.features.micro_batches import Load, SubsetFeatures
from trainer.features.source import FeatureSource
from trainer.features.static_batches import DeviceFeatures
from trainer.fitting import loop, pack
from trainer.fitting.averages import new_share
from trainer.fitting.checkpoints import (
    CHECKPOINT,
    Checkpoint,
    _digest,
    load_checkpoint,
    save_checkpoint,
    saved_epoch,
)
from trainer.fitting.devices import memory_errors_explained
from trainer.fitting.loop import FitResult, fit
from trainer.fitting.optimizers import make_optimizer
from trainer.fitting.randomness import data_permutation, dropout_seed, first_permutation
from trainer.fitting.training import training_identity
from trainer.networks.files import save_model
from trainer.reporting import EpochRecord, SilentReporter
from trainer.task import Task

#: Small and quick, with everything on that has a state of its own.
CONFIG = TrainConfig(
    hidden=(16, 8),
    activation="gelu",
    dropout=0.05,
    learning_rate=5e-3,
    batch_size=16,
    weight_decay=1e-5,
    optimizer="adam",
    schedule="plateau",
    epochs=6,
    ema_decay=0.9,
    seed=3,
    device="cpu",
)


class Recorder(SilentReporter):
    """Keeps what it is told; prunes at one epoch, asks to stop after another."""

    def __init__(self, prune_at: int | None = None, stop_after: int | None = None) -> None:
        self.rungs: list[tuple[int, float]] = []
        self.told: list[EpochRecord] = []
        self.epochs = 0
        self._prune_at = prune_at
        self._stop_after = stop_after

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        self.rungs.append((epoch, best_val_mae))
        self.told.extend(records)
        return epoch == self._prune_at

    def records(self, records: tuple[EpochRecord, ...]) -> None:
        self.told.extend(records)

    def should_stop(self) -> bool:
        self.epochs += 1
        return self.epochs == self._stop_after


def numbers(result: FitResult) -> list[tuple[object, ...]]:
    """What must be the same to the last bit if a training is repeated: all but the times."""
    return [(r.train_loss, r.val_loss, r.val_errors, r.learning_rate) for r in result.history]


def weights(result: FitResult) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


@pytest.fixture(scope="module")
def undisturbed(task: Task, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """``CONFIG``, trained in one go."""
    return fit(task, CONFIG, tmp_path_factory.mktemp("undisturbed"), SilentReporter())


def test_a_network_learns(task: Task, tmp_path: Path) -> None:
    config = TrainConfig(hidden=(32,), batch_size=8, learning_rate=3e-3, epochs=30, device="cpu")
    result = fit(task, config, tmp_path, SilentReporter())
    assert result.outcome == "finished"
    assert [record.epoch for record in result.history] == list(range(1, 31))
    # A network that knows the molecule only would do as well as their mean energies.
    molecule = task.dataset.molecule_of(np.arange(task.dataset.structures))
    means = np.bincount(molecule, task.energies) / np.bincount(molecule)
    of_means = np.abs(task.energies - means[molecule])[task.split.validation].mean() * HARTREE_TO_KCALMOL
    assert result.best.val_mae < of_means / 2


def test_the_same_settings_give_the_same_numbers(task: Task, undisturbed: FitResult, tmp_path: Path) -> None:
    again = fit(task, CONFIG, tmp_path, SilentReporter())
    assert numbers(again) == numbers(undisturbed)
    assert torch.equal(weights(again), weights(undisturbed))
    other = fit(task, dataclasses.replace(CONFIG, seed=4), tmp_path / "other", SilentReporter())
    assert numbers(other)[0] != numbers(undisturbed)[0]


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_model_has_the_weights_of_the_best_epoch(
    task: Task, tmp_path: Path, ema_decay: float | None
) -> None:
    # So large a rate that the last epoch is not the best; dropout would show if it were on in evaluation.
    config = TrainConfig(
        hidden=(32,),
        dropout=0.2,
        learning_rate=0.1,
        batch_size=8,
        ema_decay=ema_decay,
        epochs=12,
        device="cpu",
    )
    result = fit(task, config, tmp_path, SilentReporter())
    assert result.best.epoch < 12
    assert result.best.val_mae == min(record.val_mae for record in result.history)
    errors = evaluate(result.model, task, task.split.validation).errors
    assert mean_absolute_error(errors) == pytest.approx(result.best.val_mae, rel=1e-5)
    assert not result.model.training


def test_an_average_leaves_the_training_as_it_is_and_follows_it(task: Task, tmp_path: Path) -> None:
    plain_config = dataclasses.replace(CONFIG, ema_decay=None, schedule="constant")
    plain = fit(task, plain_config, tmp_path / "plain", SilentReporter())
    averaged = fit(task, dataclasses.replace(plain_config, ema_decay=0.9), tmp_path, SilentReporter())
    assert [r.train_loss for r in averaged.history] == [r.train_loss for r in plain.history]
    assert [r.val_loss for r in averaged.history] != [r.val_loss for r in plain.history]


def test_the_average_of_the_weights_forgets_the_first_ones() -> None:
    average, decay = 0.0, 0.5
    on_device = new_share(decay, torch.arange(1, 40, dtype=torch.float64))
    expected = 0.0
    for step in range(1, 40):
        share = new_share(decay, step)
        assert on_device[step - 1].item() == pytest.approx(share)
        average += share * (10.0 - average)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * 10.0
        assert average == pytest.approx(expected)
    assert expected == pytest.approx(10.0)


class WatchedFeatures:
    """Hands out features, and remembers of which structures, in the order in which they were asked for."""

    def __init__(self, source: FeatureSource) -> None:
        self._source = source
        self.elements = source.elements
        self.length = source.length
        self.structures: list[int] = []

    def subset(
        self, structures: npt.NDArray[np.int64], dtype: torch.dtype, batch_size: int
    ) -> SubsetFeatures:
        subset = self._source.subset(structures, dtype, batch_size)
        return WatchedSubset(subset, structures, self.structures)

    def device_subset(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> DeviceFeatures:
        raise AssertionError("a training on the CPU")


class WatchedSubset:
    def __init__(self, subset: SubsetFeatures, structures: npt.NDArray[np.int64], seen: list[int]) -> None:
        self._subset = subset
        self._structures = structures
        self._seen = seen

    def steps(self, order: torch.Tensor, batch_size: int) -> Iterator[list[Load]]:
        for micro_batches in self._subset.steps(order, batch_size):
            yield [partial(self._load, load) for load in micro_batches]

    def _load(self, load: Load) -> AtomBatch:
        batch = load()
        self._seen += self._structures[batch.positions.numpy()].tolist()
        return batch


def test_the_test_set_is_not_touched(task: Task, undisturbed: FitResult, tmp_path: Path) -> None:
    features = WatchedFeatures(task.features)
    spoilt = np.where(task.split.labels == TEST, np.nan, task.energies)
    result = fit(
        dataclasses.replace(task, features=features, energies=spoilt), CONFIG, tmp_path, SilentReporter()
    )
    assert numbers(result) == numbers(undisturbed)
    assert set(features.structures) == {*task.split.train.tolist(), *task.split.validation.tolist()}


def test_every_epoch_goes_through_the_training_set_once_in_a_permutation_of_its_own(
    task: Task, tmp_path: Path
) -> None:
    features = WatchedFeatures(task.features)
    fit(dataclasses.replace(task, features=features), CONFIG, tmp_path, SilentReporter())
    training = set(task.split.train.tolist())
    trained = [structure for structure in features.structures if structure in training]
    epochs = [tuple(trained[n : n + len(training)]) for n in range(0, len(trained), len(training))]
    assert len(epochs) == len(set(epochs)) == CONFIG.epochs
    assert all(set(epoch) == training for epoch in epochs)


def test_every_epoch_drops_other_neurons(task: Task, tmp_path: Path) -> None:
    # A single structure and so small a rate that nothing else changes the loss of an epoch.
    parts = task.split.labels.copy()
    parts[task.split.train[1:]] = TEST
    config = TrainConfig(hidden=(16,), dropout=0.3, learning_rate=1e-12, epochs=4, device="cpu")
    result = fit(dataclasses.replace(task, split=Split(parts)), config, tmp_path, SilentReporter())
    losses = sorted(record.train_loss for record in result.history)
    assert all(later > earlier * 1.0001 for earlier, later in itertools.pairwise(losses))


def test_each_epoch_has_a_permutation_of_its_own_that_seeds_and_epoch_decide() -> None:
    numbers = [first_permutation(seed) + epoch for seed in (0, 1) for epoch in (0, 1, 2)]
    permutations = {number: data_permutation(1000, 7, number) for number in numbers}
    for order in permutations.values():
        assert sorted(order) == list(range(1000))
    assert len({order.tobytes() for order in permutations.values()}) == 6
    assert np.array_equal(data_permutation(1000, 7, numbers[4]), permutations[numbers[4]])
    assert not np.array_equal(data_permutation(1000, 8, numbers[4]), permutations[numbers[4]])
    assert len({dropout_seed(seed, epoch) for seed in (0, 1) for epoch in (1, 2, 3)}) == 6


def test_the_loss_over_the_square_root_of_the_number_of_atoms(task: Task, tmp_path: Path) -> None:
    config = TrainConfig(hidden=(8,), loss="mse_per_sqrt_atoms", epochs=1, device="cpu")
    result = fit(task, config, tmp_path, SilentReporter())
    errors = evaluate(result.model, task, task.split.validation).errors / HARTREE_TO_KCALMOL
    atoms = np.array([m.atoms for m in task.dataset.molecules])[
        task.dataset.molecule_of(task.split.validation)
    ]
    assert result.history[0].val_loss == pytest.approx(float((errors**2 / np.sqrt(atoms)).mean()), rel=1e-5)


def test_weight_decay_is_coupled_in_adam_and_decoupled_in_adamw() -> None:
    def after_a_step_without_gradient(optimizer: str) -> float:
        weight = torch.nn.Parameter(torch.tensor([2.0]))
        settings = {"optimizer": optimizer, "learning_rate": 0.01, "weight_decay": 0.1}
        config = load_config(TrainConfig, settings, "the test")
        weight.grad = torch.zeros(1)
        make_optimizer(config, weight).step()
        return weight.item()

    # L2 becomes a gradient, which Adam scales to a step of the learning rate; AdamW shrinks the weight.
    assert after_a_step_without_gradient("adam") == pytest.approx(2.0 - 0.01)
    assert after_a_step_without_gradient("adamw") == pytest.approx(2.0 * (1 - 0.01 * 0.1))


def test_patience_ends_a_training_that_gets_no_better(task: Task, tmp_path: Path) -> None:
    config = TrainConfig(
        hidden=(8,), learning_rate=0.5, epochs=200, patience=4, device="cpu", schedule="constant"
    )
    result = fit(task, config, tmp_path, SilentReporter())
    assert result.outcome == "finished"
    assert len(result.history) == result.best.epoch + 4 < 200


def test_a_batch_may_be_larger_than_the_training_set(task: Task, tmp_path: Path) -> None:
    config = TrainConfig(hidden=(8,), batch_size=8192, epochs=2, device="cpu")
    assert len(fit(task, config, tmp_path, SilentReporter()).history) == 2


def test_double_precision(task: Task, tmp_path: Path) -> None:
    config = TrainConfig(hidden=(8,), epochs=1, device="cpu", precision="float64")
    result = fit(task, config, tmp_path / "double", SilentReporter())
    assert weights(result).dtype == torch.float64
    single = fit(task, dataclasses.replace(config, precision="float32"), tmp_path, SilentReporter())
    assert result.history[0].val_mae == pytest.approx(single.history[0].val_mae, rel=1e-4)
    assert result.history[0].val_mae != single.history[0].val_mae


# What the reporter is told.


def test_every_epoch_is_reported_once_and_in_order(task: Task, tmp_path: Path) -> None:
    reporter = Recorder()
    result = fit(task, CONFIG, tmp_path, reporter, rungs=(2, 4))
    assert reporter.told == list(result.history)
    assert [epoch for epoch, _ in reporter.rungs] == [2, 4]
    for epoch, best in reporter.rungs:
        assert best == min(record.val_mae for record in result.history[:epoch])


def test_between_rungs_nothing_is_written_or_reported_before_the_time_has_passed(
    task: Task, tmp_path: Path
) -> None:
    class Watcher(Recorder):
        def should_stop(self) -> bool:
            seen.append(((tmp_path / CHECKPOINT).exists(), len(self.told)))
            return False

    seen: list[tuple[bool, int]] = []
    fit(task, CONFIG, tmp_path, Watcher(), rungs=(4,))
    assert seen == [(False, 0)] * 4 + [(True, 4)] * 2
    seen.clear()
    (tmp_path / CHECKPOINT).unlink()
    fit(task, dataclasses.replace(CONFIG, checkpoint_seconds=0), tmp_path, Watcher())
    assert seen == [(n > 0, n) for n in range(6)]


def test_a_pruned_training_ends_at_its_rung(task: Task, undisturbed: FitResult, tmp_path: Path) -> None:
    result = fit(task, CONFIG, tmp_path, Recorder(prune_at=2), rungs=(2, 4))
    assert result.outcome == "pruned"
    assert numbers(result) == numbers(undisturbed)[:2]


def test_the_end_of_a_training_is_no_rung(task: Task, tmp_path: Path) -> None:
    reporter = Recorder(prune_at=6)
    assert fit(task, CONFIG, tmp_path, reporter, rungs=(3, 6)).outcome == "finished"
    assert [epoch for epoch, _ in reporter.rungs] == [3]
    assert len(reporter.told) == 6


# Interruptions.


@pytest.mark.parametrize("stop_after", [1, 2, 5])
@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_a_stopped_training_goes_on_as_if_nothing_had_been(
    task: Task, tmp_path: Path, stop_after: int, schedule: str
) -> None:
    config = dataclasses.replace(CONFIG, schedule=schedule)
    stopped = fit(task, config, tmp_path, Recorder(stop_after=stop_after))
    assert stopped.outcome == "stopped"
    assert len(stopped.history) == stop_after
    reporter = Recorder()
    resumed = fit(task, config, tmp_path, reporter)
    in_one_go = fit(task, config, tmp_path / "in-one-go", SilentReporter())
    assert resumed.outcome == "finished"
    assert numbers(resumed) == numbers(in_one_go)
    assert torch.equal(weights(resumed), weights(in_one_go))
    # Which epochs were recorded before the interruption nobody knows: all are told again.
    assert reporter.told == list(resumed.history)
    assert resumed.history[:stop_after] == stopped.history


BATCHES = 6
"""Of an epoch of ``CONFIG``. Where all epochs are long it asks before each, and once at its end."""


@pytest.fixture
def all_epochs_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LONG_EPOCH", 0.0)
    monkeypatch.setattr(pack, "LONG_EPOCH", 0.0)
    monkeypatch.setattr(pack, "ASKED_EVERY", 0.0)


@pytest.mark.usefixtures("all_epochs_are_long")
@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (0, 6), (1, 1), (1, 4), (4, 3)])
def test_a_training_that_leaves_a_long_epoch_goes_on_at_its_beginning(
    task: Task, undisturbed: FitResult, tmp_path: Path, epoch: int, batch: int
) -> None:
    before = Recorder(stop_after=epoch * (BATCHES + 1) + batch)
    stopped = fit(task, CONFIG, tmp_path, before)
    assert (stopped.outcome, len(stopped.history)) == ("stopped", epoch)
    assert before.told == list(stopped.history)
    assert saved_epoch(tmp_path / CHECKPOINT) == epoch
    resumed = fit(task, CONFIG, tmp_path, SilentReporter())
    assert resumed.history[:epoch] == stopped.history
    assert numbers(resumed) == numbers(undisturbed)
    assert torch.equal(weights(resumed), weights(undisturbed))


@pytest.mark.usefixtures("all_epochs_are_long")
def test_what_the_reporter_raises_in_a_long_epoch_ends_the_training_with_nothing_written(
    task: Task, tmp_path: Path
) -> None:
    class Loses(Recorder):
        def should_stop(self) -> bool:
            if super().should_stop():
                raise ConnectionError
            return False

    reporter = Loses(stop_after=BATCHES + 3)
    with pytest.raises(ConnectionError):
        fit(task, CONFIG, tmp_path, reporter)
    assert list(tmp_path.iterdir()) == []
    assert reporter.told == []


def test_a_short_epoch_is_not_left(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "LONG_EPOCH", 60.0)
    monkeypatch.setattr(pack, "ASKED_EVERY", 0.0)
    reporter = Recorder()
    assert fit(task, CONFIG, tmp_path, reporter).outcome == "finished"
    assert reporter.epochs == CONFIG.epochs


def test_a_rung_that_nobody_decided_is_asked_about_again(task: Task, tmp_path: Path) -> None:
    class Dies(SilentReporter):
        def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fit(task, CONFIG, tmp_path, Dies(), rungs=(3,))
    reporter = Recorder(prune_at=3)
    result = fit(task, CONFIG, tmp_path, reporter, rungs=(3,))
    assert result.outcome == "pruned"
    assert [epoch for epoch, _ in reporter.rungs] == [3]
    assert [record.epoch for record in reporter.told] == [1, 2, 3]


def test_a_finished_training_is_not_trained_again(task: Task, tmp_path: Path) -> None:
    first = fit(task, CONFIG, tmp_path, SilentReporter())
    second = fit(task, CONFIG, tmp_path, SilentReporter())
    assert second.outcome == "finished"
    assert second.history == first.history  # times included
    assert torch.equal(weights(second), weights(first))


def test_other_settings_or_data_do_not_take_up_a_checkpoint(task: Task, tmp_path: Path) -> None:
    fit(task, CONFIG, tmp_path, Recorder(stop_after=1))
    with pytest.raises(CheckpointError, match=r"training\.learning_rate"):
        fit(task, dataclasses.replace(CONFIG, learning_rate=0.1), tmp_path, SilentReporter())
    other_data = dataclasses.replace(task, fingerprints={**task.fingerprints, "data": "other"})
    with pytest.raises(CheckpointError, match=r"task\.data"):
        fit(other_data, CONFIG, tmp_path, SilentReporter())
    # Sums over more threads have other last bits.
    with pytest.raises(CheckpointError, match=r"training\.threads"):
        fit(task, dataclasses.replace(CONFIG, threads=2), tmp_path, SilentReporter())
    # How often it is saved is no part of what is trained.
    often = dataclasses.replace(CONFIG, checkpoint_seconds=0)
    assert fit(task, often, tmp_path, SilentReporter()).outcome == "finished"


@pytest.mark.parametrize(("before", "after"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_checkpoint_is_taken_up_in_another_precision_of_products(
    task: Task, tmp_path: Path, before: Precision, after: Precision
) -> None:
    """The device where a training goes on may have none of the precision in which it began."""
    fit(task, dataclasses.replace(CONFIG, precision=before), tmp_path, Recorder(stop_after=2))
    result = fit(task, dataclasses.replace(CONFIG, precision=after), tmp_path, SilentReporter())
    assert result.outcome == "finished"
    assert [record.epoch for record in result.history] == list(range(1, CONFIG.epochs + 1))


def test_weights_of_another_precision_are_not_taken_up(task: Task, tmp_path: Path) -> None:
    fit(task, dataclasses.replace(CONFIG, precision="float64"), tmp_path, Recorder(stop_after=1))
    with pytest.raises(CheckpointError, match=r"training\.precision"):
        fit(task, dataclasses.replace(CONFIG, precision="float32"), tmp_path, SilentReporter())


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_checkpoint_of_an_older_version_is_taken_up(task: Task, tmp_path: Path, precision: str) -> None:
    """Version 0.1.0 kept in it the precision of the products, as it was on the device of the training."""
    config = dataclasses.replace(CONFIG, precision="float32")
    fit(task, config, tmp_path, Recorder(stop_after=2))
    identity = training_identity(task, config, None)
    saved = load_checkpoint(tmp_path / CHECKPOINT, identity)
    assert saved is not None
    older = {**identity, "training": {**identity["training"], "precision": precision}}
    save_checkpoint(tmp_path / CHECKPOINT, Checkpoint(older, saved.history, saved.tensors))
    result = fit(task, config, tmp_path, SilentReporter())
    assert result.history[:2] == saved.history


def test_a_checkpoint_with_a_field_for_each_metric_is_taken_up(task: Task, tmp_path: Path) -> None:
    """As version 0.1.0 wrote it."""
    fit(task, CONFIG, tmp_path, Recorder(stop_after=2))
    identity = training_identity(task, dataclasses.replace(CONFIG, precision="float32"), None)
    saved = load_checkpoint(tmp_path / CHECKPOINT, identity)
    assert saved is not None
    record = {"identity": identity, "history": [dataclasses.asdict(epoch) for epoch in saved.history]}
    for epoch in record["history"]:
        errors = epoch.pop("val_errors")
        epoch |= {"val_mae": errors["mae_kcalmol"], "val_rmse": errors["rmse_kcalmol"]}
        epoch |= {"val_max_error": errors["max_error_kcalmol"]}
    tensors, text = dict(saved.tensors), json.dumps(record)
    header = {"record": text, "digest": _digest(text, tensors)}
    (tmp_path / CHECKPOINT).write_bytes(safetensors.torch.save(tensors, header))
    assert fit(task, CONFIG, tmp_path, SilentReporter()).history[:2] == saved.history


def test_a_checkpoint_is_known_by_the_settings_that_earlier_versions_recorded(task: Task) -> None:
    settings = dump_config(CONFIG)
    del settings["device"], settings["checkpoint_seconds"]
    assert training_identity(task, dataclasses.replace(CONFIG, precision="float32"), None) == {
        "checkpoint": {"format": 3},
        "training": settings | {"precision": "float32"},
        "task": task.fingerprints,
        "warm_start": {},
    }


def test_what_a_killed_process_left_half_written_is_removed(task: Task, tmp_path: Path) -> None:
    leftover = tmp_path / f".{CHECKPOINT}.12345.partial"
    leftover.write_bytes(b"half")
    fit(task, CONFIG, tmp_path, Recorder(stop_after=1))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


# Warm start.


def test_a_warm_start_begins_where_the_other_training_ended(
    task: Task, undisturbed: FitResult, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_model(file, undisturbed.model, task.aev, task.self_energies)
    # So small a rate that an epoch changes nothing worth mention.
    config = dataclasses.replace(CONFIG, learning_rate=1e-9, epochs=1)
    result = fit(task, config, tmp_path / "warm", SilentReporter(), warm_start=file)
    assert result.best.val_mae == pytest.approx(undisturbed.best.val_mae, rel=1e-4)
    # Its checkpoint belongs to it, and to no training that starts elsewhere.
    with pytest.raises(CheckpointError, match="warm_start"):
        fit(task, config, tmp_path / "warm", SilentReporter())


def test_a_warm_start_from_other_layers_is_refused(
    task: Task, undisturbed: FitResult, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_model(file, undisturbed.model, task.aev, task.self_energies)
    with pytest.raises(ConfigError, match=r"16-8.*training\.hidden"):
        fit(task, TrainConfig(hidden=(16,), device="cpu"), tmp_path, SilentReporter(), warm_start=file)
    with pytest.raises(ConfigError, match="nowhere"):
        fit(task, CONFIG, tmp_path, SilentReporter(), warm_start=tmp_path / "nowhere")


# What ends a training early.


@pytest.mark.parametrize(
    ("spoil", "which"),
    [(lambda task: task.split.train, "training"), (lambda task: task.split.validation, "validation")],
)
def test_a_loss_that_is_not_finite_ends_the_training_with_the_reason(
    task: Task, tmp_path: Path, spoil: Callable[[Task], npt.NDArray[np.int64]], which: str
) -> None:
    energies = task.energies.copy()
    energies[spoil(task)] = 1e300  # beyond single precision
    with pytest.raises(TrainingFailed, match=f"the {which} loss is (inf|nan) in epoch 1"):
        fit(dataclasses.replace(task, energies=energies), CONFIG, tmp_path, SilentReporter())


def test_epochs_before_a_failure_are_reported(task: Task, tmp_path: Path) -> None:
    fit(task, CONFIG, tmp_path, Recorder(stop_after=2))
    spoilt = dataclasses.replace(task, energies=np.full_like(task.energies, 1e30))
    reporter = Recorder()
    with pytest.raises(TrainingFailed, match="in epoch 3"):
        fit(spoilt, CONFIG, tmp_path, reporter)
    assert [record.epoch for record in reporter.told] == [1, 2]


def test_memory_that_does_not_suffice_names_batch_size_and_widths() -> None:
    config = TrainConfig(hidden=(512, 64), batch_size=4096, device="cpu")
    with (
        pytest.raises(TrainingFailed, match=r"out of memory.* batch size 4096 and widths 512-64"),
        memory_errors_explained(config),
    ):
        torch.empty(2**58)
    with pytest.raises(RuntimeError, match="size"), memory_errors_explained(config):
        torch.zeros(2) @ torch.zeros(3)


TRAINING_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from trainer.config import DataConfig, TaskConfig, TrainConfig
from trainer.errors import TrainingFailed
from trainer.fitting.loop import fit
from trainer.progress import no_progress
from trainer.reporting import SilentReporter
from trainer.task import prepare_task

data, features, folder = sys.argv[1:]
task = prepare_task(TaskConfig(DataConfig(files=(data,))), Path(features), no_progress)
config = TrainConfig(hidden=(4096,) * 8, batch_size=32, device="cpu")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
try:
    fit(task, config, Path(folder), SilentReporter())
except TrainingFailed as error:
    print(error)
"""


def test_a_training_that_the_system_gives_too_little_memory_says_so(
    data_file: Path, feature_root: Path, tmp_path: Path
) -> None:
    said = subprocess.run(
        [sys.executable, "-c", TRAINING_WITH_LITTLE_MEMORY, data_file, feature_root, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "out of memory on cpu with batch size 32 and widths 4096-4096" in said.stdout, said.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_no_device(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.device: cuda.*use cpu or auto"):
        fit(task, TrainConfig(device="cuda"), tmp_path, SilentReporter())
