"""``anitune study run``: create or continue a study, and train all its trials in this process."""

from __future__ import annotations

import shlex

from search.cli.interrupted import exit_if_stopped
from search.cli.options import File, Pack
from search.study import read_study
from search.work.forkserver import start_forkserver


def run(file: File, pack: Pack = None) -> None:
    """Create or continue a study, train all its trials in this process, and report the results."""
    given = read_study(file)
    if pack != 1:
        start_forkserver()
    with exit_if_stopped(shlex.join(["anitune", "study", "run", str(file)])):
        # Imported only now, so that this process and the fork server import torch at the same time.
        from search.cli.work import run_and_report

        run_and_report(given, pack)
