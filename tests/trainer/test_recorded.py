"""Steps of fixed shape, as a GPU records them, run on the CPU by the same code."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import hypothesis
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.config import Activation, TrainConfig
from trainer.errors import TrainingFailed
from trainer.features import fixed_batches
from trainer.features.fixed_batches import FixedFeatures
from trainer.features.resident import Resident, StoredPart
from trainer.features.source import StoredFeatures
from trainer.features.streaming import Streamed
from trainer.fitting import recorded as recorded_module
from trainer.fitting.averages import WeightAverage
from trainer.fitting.devices import memory_errors_explained, products
from trainer.fitting.loop import fit
from trainer.fitting.pack import Pack
from trainer.fitting.randomness import data_order, order_keys
from trainer.fitting.recorded import Recorded, RecordedEpochs, Step
from trainer.fitting.training import Training
from trainer.reporting import EpochRecord, SilentReporter
from trainer.task import Task

Kind = Callable[..., FixedFeatures]

CONFIG = TrainConfig(
    hidden=(8, 4),
    batch_size=40,
    epochs=3,
    precision="float64",
    device="cpu",
    ema_decay=0.9,
    learning_rate=3e-3,
    schedule="constant",
)


class FixedSource:
    """Features whose parts are of a fixed shape, as on a GPU."""

    def __init__(self, features: StoredFeatures, kind: Kind) -> None:
        self.elements, self.length = features.elements, features.length
        self._features, self._kind = features, kind

    def part(
        self, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype, batch_size: int
    ) -> FixedFeatures:
        return self._kind(self._features.stored_part(structures), device, dtype)


def fixed(task: Task, kind: Kind = Resident) -> Task:
    assert isinstance(task.features, StoredFeatures)
    return dataclasses.replace(task, features=FixedSource(task.features, kind))


def train(task: Task, configs: list[TrainConfig], epochs: int) -> list[tuple[EpochRecord, ...]]:
    """The histories of trainings side by side."""
    trainings = [Training(task, config, None) for config in configs]
    pack = Pack(trainings)
    for order in range(epochs):
        assert not any(pack.train_epoch(order))
    return [training.history for training in trainings]


def losses(history: tuple[EpochRecord, ...]) -> list[tuple[float, float, float]]:
    return [(record.train_loss, record.val_loss, record.val_max_error) for record in history]


CONFIGS = st.builds(
    dataclasses.replace,
    st.just(CONFIG),
    hidden=st.lists(st.sampled_from([3, 5, 8]), min_size=1, max_size=3).map(tuple),
    activation=st.sampled_from(get_args(Activation)),
    activate_output=st.booleans(),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    optimizer=st.sampled_from(["adam", "adamw"]),
    ema_decay=st.sampled_from([None, 0.9]),
    loss=st.just("mse_per_sqrt_atoms"),
    seed=st.integers(0, 5),
)


@pytest.mark.parametrize("kind", [Resident, Streamed])
# Of the 96 structures: a smaller last batch, none, a single batch that is larger than the part.
@pytest.mark.parametrize("batch_size", [40, 16, 8192])
@hypothesis.given(configs=st.lists(CONFIGS, min_size=1, max_size=4))
@hypothesis.settings(max_examples=6, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_epochs_of_fixed_shape_have_the_losses_of_plain_ones(
    task: Task, kind: Kind, batch_size: int, configs: list[TrainConfig]
) -> None:
    configs = [dataclasses.replace(config, batch_size=batch_size) for config in configs]
    for found, wanted in zip(train(fixed(task, kind), configs, 2), train(task, configs, 2), strict=True):
        np.testing.assert_allclose(losses(found), losses(wanted), rtol=1e-9)


@pytest.mark.parametrize("batch_size", [40, 64])
def test_a_step_of_fixed_shape_has_the_gradient_of_a_plain_one(task: Task, batch_size: int) -> None:
    config = dataclasses.replace(CONFIG, activation="gelu", batch_size=batch_size)
    gradients: list[list[torch.Tensor]] = []
    for some in (task, fixed(task)):
        training, seen = Training(some, config, None), []

        def keep(gradient: torch.Tensor, number: object, seen: list[torch.Tensor] = seen) -> None:
            seen.append(gradient.clone())

        # Weights stay as they are, so that each step shows its own rounding only.
        training.step = keep  # type: ignore[method-assign]
        Pack([training]).train_epoch(7)
        gradients.append(seen)
    for plain, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-12, atol=1e-14)


def test_aevs_that_are_kept_rounded_are_those_that_are_rounded_in_each_step(task: Task) -> None:
    def keep_as_stored(part: StoredPart, device: torch.device, dtype: torch.dtype) -> FixedFeatures:
        asked.append(dtype)
        return Resident(part, device, torch.float32)

    asked: list[torch.dtype] = []
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    (found,), (wanted,) = (train(some, [config], 2) for some in (fixed(task), fixed(task, keep_as_stored)))
    assert asked == [torch.bfloat16, torch.float32]
    assert losses(found) == losses(wanted)


def test_the_order_on_the_device_is_that_of_the_record() -> None:
    keys = torch.from_numpy(order_keys(5000, 3, 70_000))
    assert keys.argsort(stable=True).tolist() == data_order(5000, 3, 70_000).tolist()


def test_an_epoch_with_a_batch_beyond_the_usual_has_place_for_it(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = train(task, [CONFIG], 2)
    monkeypatch.setattr(fixed_batches, "DEVIATIONS", -2)
    monkeypatch.setattr(fixed_batches, "ROWS", 1)
    task = fixed(task)
    training = Training(task, CONFIG, None)
    layouts = training.train.features.layouts  # type: ignore[attr-defined]
    assert layouts.capacities(40, sure=False) < layouts.capacities(40, sure=True)
    np.testing.assert_allclose(losses(train(task, [CONFIG], 2)[0]), losses(wanted[0]), rtol=1e-9)


DROPPING = dataclasses.replace(CONFIG, dropout=0.3, seed=4)


def test_what_a_training_drops_does_not_depend_on_its_companions(task: Task) -> None:
    task = fixed(task)
    others = [dataclasses.replace(CONFIG, seed=n, hidden=(8, n), dropout=0.2 * (n % 2)) for n in (3, 4, 5)]
    (alone,) = train(task, [DROPPING], 3)
    _, _, together, _ = train(task, [*others[:2], DROPPING, others[2]], 3)
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-9)
    (undropped,) = train(task, [dataclasses.replace(DROPPING, dropout=0.0)], 3)
    assert losses(alone) != losses(undropped)


def test_each_epoch_drops_something_else(task: Task) -> None:
    # The same data in the same order, with a rate of almost zero: only what is dropped differs.
    training = Training(fixed(task), dataclasses.replace(DROPPING, learning_rate=1e-12), None)
    pack = Pack([training])
    for _ in range(3):
        assert not any(pack.train_epoch(0))
    found = sorted(record.train_loss for record in training.history)
    assert min(np.diff(found)) > 1e-6 * found[0]


def test_each_step_drops_something_else(task: Task) -> None:
    training = Training(fixed(task), dataclasses.replace(DROPPING, learning_rate=1e-12), None)
    training.start_epoch()
    epochs = RecordedEpochs([training])
    step, _ = epochs._prepared_step(usual=False)
    step.begin(torch.arange(40).expand(3, 40))
    found = []
    for _ in range(3):
        step.run()
        found.append(step.losses.item() - sum(found))
    found.sort()
    assert found[0] > 0
    assert min(np.diff(found)) > 1e-6 * found[0]


def test_a_resumed_training_is_one_that_was_not_interrupted(task: Task, tmp_path: Path) -> None:
    class StopsAfter(SilentReporter):
        epochs = 0

        def should_stop(self) -> bool:
            self.epochs += 1
            return self.epochs == 2

    task, config = fixed(task), dataclasses.replace(DROPPING, epochs=5)
    whole = fit(task, config, tmp_path / "whole", SilentReporter())
    assert fit(task, config, tmp_path / "parts", StopsAfter()).outcome == "stopped"
    resumed = fit(task, config, tmp_path / "parts", SilentReporter())
    assert losses(resumed.history) == losses(whole.history)


class NothingToWaitFor(TorchDispatchMode):
    """Refuses operations whose result the host must know, or that bring something from the host."""

    REFUSED = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "unique",
        "is_nonzero",
        "equal.default",
        "repeat_interleave",
        "bincount",
        "lift_fresh",
    )

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        self.operations.append(name)
        assert not name.startswith(self.REFUSED), name
        if name.startswith("index"):
            indices = [t for t in torch.utils._pytree.tree_leaves(args[1:]) if isinstance(t, torch.Tensor)]
            assert not any(t.dtype == torch.bool for t in indices), "its result has as many rows as are true"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_a_step_asks_nothing_of_the_device(
    task: Task, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[NothingToWaitFor] = []
    run = Step.run

    def watched(step: Step) -> None:
        with NothingToWaitFor() as mode:
            run(step)
        modes.append(mode)

    monkeypatch.setattr(Step, "run", watched)
    configs = [
        dataclasses.replace(CONFIG, dropout=0.2, precision=precision),
        dataclasses.replace(CONFIG, hidden=(8, 3), activate_output=True, precision=precision),
        dataclasses.replace(CONFIG, ema_decay=None, hidden=(5,), precision=precision),
    ]
    train(fixed(task), configs, 2)
    assert len(modes) == 6
    assert len(modes[1].operations) > 50
    # The first step sets up the optimizers; from then on each does the same as the others.
    assert all(mode.operations == modes[1].operations for mode in modes[2:])


def test_the_watch_sees_what_it_refuses() -> None:
    numbers = torch.arange(3)
    for refused in (lambda: numbers.sum().item(), lambda: numbers[numbers > 1], lambda: torch.tensor([1.0])):
        with pytest.raises(AssertionError), NothingToWaitFor():
            refused()


def test_an_average_takes_the_number_of_the_step_from_the_device_too() -> None:
    averages = torch.zeros(2, 3)
    one, other = (WeightAverage(vector, 0.7) for vector in averages)
    for step in range(1, 30):
        weights = torch.full((3,), float(step))
        one.update(weights, step)
        other.update(weights, torch.tensor(float(step), dtype=torch.float64))
    assert torch.equal(*averages)


def test_a_function_is_recorded_at_its_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Graph:
        def register_generator_state(self, generator: object) -> None:
            told.append(f"knows {generator}")

        def replay(self) -> None:
            told.append("repeated")

    @contextlib.contextmanager
    def graph(made: Graph, *, stream: object, capture_error_mode: str) -> Iterator[None]:
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        told.append("begins")
        yield
        told.append("ends")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(recorded_module, "_recording_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_blas_handle", lambda: told.append("handle"))
    cuda = torch.device("cuda")
    recorded = Recorded(lambda: told.append("run"), cuda, "tf32", ["A"])  # type: ignore[list-item]
    recorded()
    assert told == ["run"]
    recorded()
    recorded()
    assert told == ["run", "handle", "knows A", "begins", "run", "ends", "repeated", "repeated"]


def test_too_little_memory_while_a_step_is_recorded_is_explained() -> None:
    def record() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(TrainingFailed, match="out of memory on cpu"), memory_errors_explained(CONFIG):
        record()


def test_products_on_a_gpu_have_the_precision_of_their_block() -> None:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction
    with products("tf32", torch.device("cuda")):
        assert settings.fp32_precision == "tf32"
        with products("float32", torch.device("cuda")):
            assert settings.fp32_precision == "ieee"
        assert settings.fp32_precision == "tf32"
        assert not settings.allow_bf16_reduced_precision_reduction
    assert (settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction) == before
    with products("tf32", torch.device("cpu")):
        assert settings.fp32_precision == before[0]


def test_epochs_of_another_kind_of_features_are_not_recorded(task: Task) -> None:
    assert not RecordedEpochs.possible(Training(task, CONFIG, None))
    assert RecordedEpochs.possible(Training(fixed(task), CONFIG, None))
