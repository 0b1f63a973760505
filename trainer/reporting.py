"""What a training tells the one who asked for it, while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Protocol

from pydantic import ConfigDict, Field

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Measured = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]

#: The first second after the year 9999, which no date of Python's reaches.
LAST_SECOND: Final = 253402300800.0


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch. Epochs count from 1.

    ``order`` is the number of the order in which it went through the training part: with it, the settings
    and the data, the epoch can be repeated. Losses are in hartree^2 (of the configured loss), errors in
    kcal/mol, of the weights that would be exported.
    """

    epoch: Count
    order: Count
    train_loss: Measured
    val_loss: Measured
    val_mae: Measured
    val_rmse: Measured
    val_max_error: Measured
    learning_rate: Measured
    seconds: Measured
    finished_at: Annotated[Measured, Field(lt=LAST_SECOND)]
    """Seconds since 1970-01-01 UTC: the time stamp that trackers show."""

    # Obeyed where a record is read from a file; one that was measured is not checked.
    __pydantic_config__ = ConfigDict(extra="forbid")


class Reporter(Protocol):
    """Receives the course of one training. Called from the training's own thread.

    A resumed training tells all of its epochs again, and asks again about the rung that it stands at.
    """

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        """Take the epochs since the last call; answer whether to stop here (pruned).

        Called at each rung, after its checkpoint is on disk.
        """

    def records(self, records: tuple[EpochRecord, ...]) -> None:
        """Take the epochs since the last call, at a checkpoint or the end of the training."""

    def should_stop(self) -> bool:
        """Whether to checkpoint and return (a signal, a stopped study).

        Asked at the end of each epoch, and on the CPU a few times a second within a long one, which is then
        left: the training goes on at the end of the epoch before.
        What it raises ends the training with nothing written.
        """


class SilentReporter:
    """Asks for nothing and keeps nothing."""

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        return False

    def records(self, records: tuple[EpochRecord, ...]) -> None:
        pass

    def should_stop(self) -> bool:
        return False


def epoch_metrics(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch under the names that files and trackers use; the step is the epoch."""
    return {
        "train/loss": record.train_loss,
        "val/loss": record.val_loss,
        "val/mae_kcalmol": record.val_mae,
        "val/rmse_kcalmol": record.val_rmse,
        "val/max_error_kcalmol": record.val_max_error,
        "train/learning_rate": record.learning_rate,
        "train/epoch_seconds": record.seconds,
    }
