"""What a training reports to its caller while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Protocol

from pydantic import ConfigDict, Field

from trainer.evaluation.metrics import MAE

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Measured = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]

#: The first second after the year 9999, which Python's dates cannot represent.
LAST_SECOND: Final = 253402300800.0


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch. Epochs count from 1.

    ``order`` is the number of the permutation in which the epoch went through the training set; with it, the
    settings and the data, the epoch can be reproduced. Losses are in hartree^2 (of the configured loss).
    ``val_errors`` are the metrics of the validation set by their names in ``METRICS``, in kcal/mol, of the
    weights that would be exported; an epoch that an earlier version trained may lack some.
    """

    epoch: Count
    order: Count
    train_loss: Measured
    val_loss: Measured
    val_errors: Mapping[str, Measured]
    learning_rate: Measured
    seconds: Measured
    finished_at: Annotated[Measured, Field(lt=LAST_SECOND)]
    """Seconds since 1970-01-01 UTC: the time stamp that trackers show."""

    # Checked when a record is read from a file, not when it is measured.
    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def val_mae(self) -> float:
        """MAE of the validation set, kcal/mol."""
        return self.val_errors[MAE]


class Reporter(Protocol):
    """Receives the progress of one training. It is called from the training's own thread.

    A resumed training reports all of its epochs again, and asks again about the rung where it stopped.
    """

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        """Record the epochs since the last call; return whether to stop here (pruned).

        Called at each rung, after its checkpoint is on disk.
        """

    def records(self, records: tuple[EpochRecord, ...]) -> None:
        """Record the epochs since the last call, at a checkpoint or the end of the training."""

    def should_stop(self) -> bool:
        """Return whether to checkpoint and return (a signal, a stopped study).

        Called at the end of each epoch, and on the CPU a few times a second within a long epoch. An epoch
        that is interrupted is discarded: the training continues from the end of the epoch before.
        An exception raised here ends the training, and nothing is written.
        """


class SilentReporter:
    """Reporter that records nothing and never stops a training."""

    def rung(self, epoch: int, best_val_mae: float, records: tuple[EpochRecord, ...]) -> bool:
        return False

    def records(self, records: tuple[EpochRecord, ...]) -> None:
        pass

    def should_stop(self) -> bool:
        return False


def epoch_metrics(record: EpochRecord) -> dict[str, float]:
    """Return the numbers of an epoch by the names that files and trackers use; the step is the epoch."""
    return {
        "train/loss": record.train_loss,
        "val/loss": record.val_loss,
        **{f"val/{name}": value for name, value in record.val_errors.items()},
        "train/learning_rate": record.learning_rate,
        "train/epoch_seconds": record.seconds,
    }
