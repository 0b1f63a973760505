"""The log of an attempt at a trial: a file next to its checkpoint, and an artifact of the MLflow run.

The next attempt takes over the folder and thereby the logs of earlier attempts, even if their worker died.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.addresses import without_secrets
from storage.settings import attempt_log
from trainer.reporting import EpochRecord


class TrialLog:
    """Writes the log of an attempt. If the log cannot be written, the training continues without it.

    The file is opened by name for each line, so that a worker that wakes up after its trial was taken over
    does not write into the renamed folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file = attempt_log(folder)

    def say(self, *lines: str) -> None:
        """Add lines."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError), self._file.open("a") as log:
            log.writelines(f"{time} {without_secrets(line)}\n" for line in lines)

    def begin(
        self, attempt: int, worker: Mapping[str, Any], settings: Mapping[str, Any], epochs: int
    ) -> None:
        """Log the worker, the settings and the epochs of earlier attempts at the beginning of an attempt."""
        self.say(f"attempt {attempt} by {json.dumps(worker)}", f"settings {json.dumps(settings)}")
        if epochs:
            self.say(f"continues after epoch {epochs}, or the last checkpoint before it")

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Log the traceback if the block raises."""
        try:
            yield
        except BaseException as error:
            self.say("ends with an error", *"".join(traceback.format_exception(error)).splitlines())
            raise

    def epochs(self, records: Iterable[EpochRecord]) -> None:
        """Log the results of epochs, one line each."""
        self.say(
            *(
                f"epoch {record.epoch}: training loss {record.train_loss:.6g},"
                f" validation MAE {record.val_mae:.6g} kcal/mol, learning rate {record.learning_rate:.3g},"
                f" {record.seconds:.3g} s"
                for record in records
            )
        )
