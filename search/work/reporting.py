"""Brings what a training reports into the records: the adapter between the trainer and the storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optuna.trial import FrozenTrial

from search.work.trial_log import TrialLog
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from trainer.reporting import EpochRecord, epoch_metrics


class AttemptReporter:
    """Writes to an attempt: one transaction at a rung or checkpoint, none in between.

    Parameters
    ----------
    recorded : time stamp (ms) of each epoch that an earlier attempt recorded: a training that is resumed
        reports those again, and they must not be counted as trained twice
    decide : asks the pruner about the trial as Optuna has it
    stopping : whether the training must stop at the end of this epoch
    log : is told of each epoch and rung
    """

    def __init__(
        self,
        attempt: Attempt,
        recorded: Mapping[int, int],
        decide: Callable[[FrozenTrial], bool],
        stopping: Callable[[], bool],
        log: TrialLog,
    ) -> None:
        self._attempt = attempt
        self._recorded = recorded
        self._decide = decide
        self._stopping = stopping
        self._log = log

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        stop = self._attempt.rung(epoch, best_val_mae, self._rows(records), self._decide)
        self._log.say(f"rung at epoch {epoch}: {'pruned' if stop else 'goes on'}")
        return stop

    def records(self, records: tuple[EpochRecord, ...]) -> None:
        if rows := self._rows(records):
            self._attempt.record_metrics(rows)

    def should_stop(self) -> bool:
        return self._stopping()

    def _rows(self, records: tuple[EpochRecord, ...]) -> list[MetricRow]:
        new = [r for r in records if self._recorded.get(r.epoch) != round(r.finished_at * 1000)]
        self._log.epochs(new)
        return [
            MetricRow(key, record.epoch, value, round(record.finished_at * 1000))
            for record in new
            for key, value in epoch_metrics(record).items()
        ]
