"""What happened in an attempt at a trial, in words: a file beside its checkpoint, and an artifact of the run.

The next attempt takes over the folder, and so the logs of those before it: also of one whose worker died.
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
    """Writes the log of an attempt. Where it cannot be written, the training goes on without.

    Each line is written by the name of the file: a worker that wakes up after its trial was taken over
    writes nothing into what has another name now.
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
        """Say who begins what, after how many epochs of earlier attempts."""
        self.say(f"attempt {attempt} by {json.dumps(worker)}", f"settings {json.dumps(settings)}")
        if epochs:
            self.say(f"goes on after epoch {epochs}, or the last checkpoint before it")

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Say where it went wrong, if the block raises."""
        try:
            yield
        except BaseException as error:
            self.say("ends with an error", *"".join(traceback.format_exception(error)).splitlines())
            raise

    def epochs(self, records: Iterable[EpochRecord]) -> None:
        """Say what came of epochs, a line each."""
        self.say(
            *(
                f"epoch {record.epoch}: training loss {record.train_loss:.6g},"
                f" validation MAE {record.val_mae:.6g} kcal/mol, learning rate {record.learning_rate:.3g},"
                f" {record.seconds:.3g} s"
                for record in records
            )
        )
