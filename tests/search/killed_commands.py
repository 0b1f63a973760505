"""Commands on the study ``tiny`` of a home folder, here or in a process that is killed and begun again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from search.cli.main import app
from storage.database import open_database
from storage.settings import STORAGE_VARIABLE, TRACKING_VARIABLE, embedded
from storage.studies import open_study
from storage.trainings import trainings

LONGEST = 300.0  # seconds


@dataclass(frozen=True)
class Continued:
    """What was recorded when a command was killed, and its output once it had continued to its end."""

    before: frozenset[str]
    values: dict[str, Any]
    stderr: str


@dataclass(frozen=True)
class Place:
    """A home folder with the study ``tiny``, and its data file."""

    home: Path
    data: Path

    def run(self, *arguments: str) -> Any:
        """Run a command in this process."""
        places = dict.fromkeys((STORAGE_VARIABLE, TRACKING_VARIABLE))
        return CliRunner(env={**places, "ANITUNE_HOME": str(self.home)}).invoke(app, list(arguments))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "search.cli.main", *arguments],
            env={**os.environ, "ANITUNE_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill_and_continue(self, *arguments: str, trainings_of_all: int) -> Continued:
        """Kill a command after its third training, and run it again to its end."""
        with self.start(*arguments) as process:
            assert process.stderr is not None
            watchdog = threading.Timer(LONGEST, process.kill)
            watchdog.start()
            try:
                while not (line := process.stderr.readline()).startswith(f"tiny 3/{trainings_of_all}"):
                    assert line, f"it ended too early, or did not train three networks within {LONGEST} s"
            finally:
                watchdog.cancel()
                process.kill()
        with open_database(embedded(self.home)) as database:
            before = frozenset(trainings(database, open_study(database, "tiny")))
        with self.start(*arguments, "--json") as again:
            try:
                stdout, stderr = again.communicate(timeout=LONGEST)
            finally:
                again.kill()
        assert again.returncode == 0, stderr
        return Continued(before, json.loads(stdout), stderr)
