"""All uses of the trainer's internals by the GPU proof, so that only this module must follow its changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from trainer.config import DataConfig, Precision, TaskConfig, TrainConfig
from trainer.features import source
from trainer.features.streaming import Streamed
from trainer.fitting.device_epochs import DeviceEpochs
from trainer.fitting.devices import find_device, release_memory
from trainer.fitting.pack import Pack
from trainer.fitting.training import Training
from trainer.progress import no_progress
from trainer.task import Task, prepare_task


def is_emulated() -> bool:
    """Whether the GPU that torch sees is emulated: this build of torch supports no real one."""
    return torch.version.cuda is None and torch.version.hip is None


def open_task(folder: Path, file: Path | None) -> Task:
    """The task of a file, or of the shipped sample, with its features in ``folder / "features"``."""
    data = DataConfig() if file is None else DataConfig(files=(str(file),))
    return prepare_task(TaskConfig(data), folder / "features", no_progress)


class Epochs:
    """Trainings side by side, run one epoch at a time without checkpoints.

    Parameters
    ----------
    configs : all with the same batch size, loss, precision and threads
    """

    def __init__(self, task: Task, configs: Sequence[TrainConfig]) -> None:
        self.trainings = [Training(task, config, None) for config in configs]
        self._pack = Pack(self.trainings)
        self._alone: DeviceEpochs | None = None
        self._next = 0

    def train(self) -> None:
        """Train for one epoch and evaluate; the host waits for the device.

        Raises
        ------
        TrainingFailed
            if a loss is not finite.
        """
        for failure in self._pack.train_epoch(self._next):
            if failure is not None:
                raise failure
        self._next += 1
        torch.cuda.synchronize(find_device("cuda"))

    def evaluate(self) -> None:
        """Run the evaluation of an epoch alone; the host waits for the device."""
        if self._alone is None:
            self._alone = DeviceEpochs(self.trainings)
        self._alone.evaluate()

    @property
    def structures(self) -> int:
        """Structures of the training subset."""
        return len(self.trainings[0].train)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.structures // self.trainings[0].config.batch_size)

    @property
    def streamed(self) -> bool:
        """Whether the features of the training subset are not on the device."""
        return isinstance(self.trainings[0].train.device_features, Streamed)


@contextmanager
def matrix_products(precision: Precision) -> Iterator[None]:
    """Set the precision of torch's float32 matrix products for the block."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


@contextmanager
def capped_memory(gib: float | None) -> Iterator[None]:
    """Leave this much of the device's memory to the process; None: act as if none were left for features."""
    device = find_device("cuda")
    release_memory(device)
    if gib is None:
        share, source.GPU_SHARE = source.GPU_SHARE, 0.0  # type: ignore[misc]
        try:
            yield
        finally:
            source.GPU_SHARE = share  # type: ignore[misc]
        return
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
