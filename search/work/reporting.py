"""Writes the reports of a training to the records: the adapter between the trainer and the storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from optuna.trial import FrozenTrial

from search.work.trial_log import TrialLog
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.checkpoints import SavedCheckpoint
from trainer.fitting.checkpoints import saved_epoch
from trainer.reporting import EpochRecord, epoch_metrics


class AttemptReporter:
    """Writes the reports of a training to an attempt, in one transaction per rung or checkpoint.

    Parameters
    ----------
    recorded : time stamp (ms) of each epoch that an earlier attempt recorded. A resumed training, also one
        within an attempt, reports these epochs again, and they must not be counted twice
    decide : asks the pruner whether to stop the trial, given as Optuna stores it
    stopping : whether the training must stop
    log : log of epochs and rungs
    checkpoint : file of the checkpoint, to store for workers on other machines; None: they share its folder
    """

    def __init__(
        self,
        attempt: Attempt,
        recorded: Mapping[int, int],
        decide: Callable[[FrozenTrial], bool],
        stopping: Callable[[], bool],
        log: TrialLog,
        checkpoint: Path | None = None,
    ) -> None:
        self._attempt = attempt
        self._recorded = dict(recorded)
        self._decide = decide
        self._stopping = stopping
        self._log = log
        self._checkpoint = checkpoint
        self._kept = 0  # last epoch of the checkpoint that was stored

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        saved = self._saved()
        stop = self._attempt.rung(epoch, best_val_mae, self._rows(records), self._decide, saved)
        self._kept = saved.epoch if saved is not None else self._kept
        self._log.say(f"rung at epoch {epoch}: {'stops' if stop else 'continues'}")
        return stop

    def records(self, records: tuple[EpochRecord, ...]) -> None:
        rows, saved = self._rows(records), self._saved()
        if rows or saved is not None:
            self._attempt.record_metrics(rows, saved)
            self._kept = saved.epoch if saved is not None else self._kept

    def should_stop(self) -> bool:
        return self._stopping()

    def _saved(self) -> SavedCheckpoint | None:
        """Return the checkpoint if it is to be stored and was not stored yet."""
        if self._checkpoint is None:
            return None
        epoch = saved_epoch(self._checkpoint)  # a failing training also reports later epochs
        return SavedCheckpoint(self._checkpoint, epoch) if epoch not in (0, self._kept) else None

    def _rows(self, records: tuple[EpochRecord, ...]) -> list[MetricRow]:
        new = [r for r in records if self._recorded.get(r.epoch) != round(r.finished_at * 1000)]
        self._recorded |= {record.epoch: round(record.finished_at * 1000) for record in new}
        self._log.epochs(new)
        return [
            MetricRow(key, record.epoch, value, round(record.finished_at * 1000))
            for record in new
            for key, value in epoch_metrics(record).items()
        ]
