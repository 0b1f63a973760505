"""The training loop: epochs, checkpoints, rungs and reasons to stop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from trainer.config import TrainConfig
from trainer.errors import TrainingFailed
from trainer.files import remove_leftovers
from trainer.fitting.checkpoints import CHECKPOINT, Checkpoint, damaged, load_checkpoint, save_checkpoint
from trainer.fitting.devices import (
    current_device,
    device_errors_explained,
    find_device,
    memory_errors_explained,
    resolve_precision,
)
from trainer.fitting.pack import LONG_EPOCH, EpochLeft, Leave
from trainer.fitting.scheduler import PackScheduler
from trainer.fitting.training import Training, best_of, training_identity
from trainer.networks.model import ElementNetworks
from trainer.progress import Progress, no_progress
from trainer.reporting import EpochRecord, Reporter
from trainer.task import Task

Outcome = Literal["finished", "pruned", "stopped"]


@dataclass(frozen=True, eq=False)
class FitResult:
    """The result of a training with its best network, the initial one if it stopped in its first epoch.

    Attributes
    ----------
    outcome : finished, pruned at a rung, or stopped by the reporter (then it may be resumed)
    history : every epoch
    model : the network with the weights of the best epoch (their average if it is on), in evaluation mode;
        None: it was stopped while it waited for memory of the device
    """

    outcome: Outcome
    history: tuple[EpochRecord, ...]
    model: ElementNetworks | None

    @property
    def best(self) -> EpochRecord:
        """The first epoch with the least validation MAE; the history must not be empty."""
        return best_of(self.history)


def fit(
    task: Task,
    config: TrainConfig,
    folder: Path,
    reporter: Reporter,
    *,
    rungs: tuple[int, ...] = (),
    warm_start: Path | None = None,
    scheduler: PackScheduler | None = None,
    progress: Progress = no_progress,
) -> FitResult:
    """Train on the training set, and choose the epoch by the validation set. The test set is not touched.

    A checkpoint of this training in ``folder`` is resumed; on the CPU the numbers are then those of a
    training that was never interrupted, bit for bit.

    When the reporter asks it to stop, it stops after the epoch. On the CPU it also stops within an epoch that
    takes more than :data:`~trainer.fitting.pack.LONG_EPOCH` seconds, if the epoch before did too. The
    checkpoint is then that of the last whole epoch, of which a copy was kept, so no whole epoch is repeated.
    A stop within the first epoch leaves no checkpoint. The reporter is not asked during evaluation and within
    a batch.

    If the memory of a GPU does not suffice for all trainings of the scheduler, the training continues from
    its checkpoint, with fewer beside it.

    Parameters
    ----------
    folder : where the checkpoint is written; only one training may use it at a time
    rungs : epochs after which the reporter may prune; a rung at which the training finishes does not prune
    warm_start : a model file whose weights are the initial weights
    scheduler : shares batches with the trainings of other threads; None: no sharing
    progress : called with the number of finished epochs

    Raises
    ------
    ConfigError
        if the device does not exist, or the warm start has other layers.
    CheckpointError
        if the checkpoint is of another training, or damaged.
    TrainingFailed
        if the loss is not finite, or this training alone does not fit into memory.
    DeviceError
        if the GPU has failed: this process can train nothing more.
    OutputError
        if the checkpoint cannot be written.
    """
    remove_leftovers(folder)
    config = resolve_precision(config)
    device = find_device(config.device)
    scheduler = scheduler or PackScheduler()
    checkpoint = folder / CHECKPOINT
    work = partial(_fit, task, config, checkpoint, reporter, rungs, warm_start, scheduler, progress)
    with memory_errors_explained(config), device_errors_explained(device), current_device(device):
        result = scheduler.with_room(device, work, reporter.should_stop)
    if result is not None:
        return result
    saved = load_checkpoint(checkpoint, training_identity(task, config, warm_start))
    return FitResult("stopped", saved.history if saved is not None else (), None)


def _fit(
    task: Task,
    config: TrainConfig,
    checkpoint: Path,
    reporter: Reporter,
    rungs: tuple[int, ...],
    warm_start: Path | None,
    scheduler: PackScheduler,
    progress: Progress,
) -> FitResult:
    training = Training(task, config, warm_start)
    if saved := load_checkpoint(checkpoint, training.identity, training.checkpoint_tensors()):
        # A valid digest does not prove that the file is genuine.
        if not 0 < len(saved.history) <= config.epochs:
            raise damaged(checkpoint, f"it has {len(saved.history)} epochs of {config.epochs}")
        training.restore(saved)
    with scheduler.joined(training):
        outcome = _run(training, scheduler, checkpoint, reporter, rungs, progress)
    return FitResult(outcome, training.history, training.best_model())


def _run(
    training: Training,
    scheduler: PackScheduler,
    checkpoint: Path,
    reporter: Reporter,
    rungs: tuple[int, ...],
    progress: Progress,
) -> Outcome:
    config = training.config
    reported = 0
    saved_at = time.monotonic()
    while True:
        progress("training", training.epoch, config.epochs)
        # A resumed training comes here before its next epoch: the rung it stopped at may be undecided, and it
        # is not known which of its epochs were reported, so all are reported again.
        if training.epoch > 0:
            finished = training.finished
            at_rung = training.epoch in rungs and not finished
            stopping = reporter.should_stop()
            due = time.monotonic() - saved_at >= config.checkpoint_seconds
            if finished or at_rung or stopping or due:
                save_checkpoint(checkpoint, training.snapshot())
                saved_at = time.monotonic()
                fresh, reported = training.history[reported:], training.epoch
                if at_rung and reporter.rung(training.epoch, training.best.val_mae, fresh):
                    return "pruned"
                if not at_rung:
                    reporter.records(fresh)
                if finished:
                    return "finished"
                if stopping:
                    return "stopped"
        kept, leave = _before_a_long_epoch(training, reporter)
        try:
            scheduler.train_epoch(training, leave)
        except TrainingFailed:
            reporter.records(training.history[reported:])
            raise
        except EpochLeft:
            if kept is not None:
                save_checkpoint(checkpoint, kept)
                reporter.records(training.history[reported:])
            return "stopped"


def _before_a_long_epoch(training: Training, reporter: Reporter) -> tuple[Checkpoint | None, Leave | None]:
    """Prepare to leave the next epoch, if it may be a long one on the CPU.

    Returns
    -------
    The state to go back to, None before the first epoch; and a function that says whether to leave, None if
    the epoch is not left.
    """
    if training.device.type != "cpu":
        return None, None
    if training.epoch == 0:
        return None, reporter.should_stop
    if training.history[-1].seconds < LONG_EPOCH:
        return None, None  # copying the weights might take a noticeable part of its time
    return training.snapshot().copy(), reporter.should_stop
