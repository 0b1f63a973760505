"""Machines and versions of the workers that trained the trials of a study."""

from __future__ import annotations

from collections import defaultdict

from dashboards.formatting import duration
from dashboards.record import StudyRecord
from storage.trials.views import TrialRow


def machines_table(record: StudyRecord) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], list[float]]:
    """Headings, rows and their seconds: one row for each kind of device of each machine."""
    found: defaultdict[tuple[str, str], list[TrialRow]] = defaultdict(list)
    for trial in record.trials:
        found[trial.worker.host, trial.worker.device].append(trial)
    kinds = sorted(found.items())
    seconds = [sum(trial.seconds for trial in trials) for _, trials in kinds]
    rows = tuple(
        (
            host,
            device,
            f"{len({trial.worker.name for trial in trials}):,}",
            f"{len(trials):,}",
            f"{sum(trial.trained_epochs for trial in trials):,}",
            duration(worked),
        )
        for ((host, device), trials), worked in zip(kinds, seconds, strict=True)
    )
    return ("machine", "device", "workers", "trials", "epochs", "time"), rows, seconds


def format_versions(record: StudyRecord) -> list[str]:
    """Versions of the programs that the workers had."""
    kinds = {tuple(sorted(trial.worker.versions.items())) for trial in record.trials}
    several = "" if len(kinds) < 2 else f"The workers had {len(kinds)} different sets of versions. "
    return [
        several + ", ".join(f"{name} {version}" for name, version in versions) + "."
        for versions in sorted(kinds)
        if versions
    ]
