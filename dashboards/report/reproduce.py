"""How to run a study again: its file as it can be given to ``anitune study run``, and the commands."""

from __future__ import annotations

from typing import Any

from dashboards.record import StudyRecord
from search.documents import write_document


def study_file(record: StudyRecord) -> str:
    """The study as a study file, with all that was filled in."""
    budget = record.summary.budget
    limits: dict[str, Any] = {
        "trials": budget.trials if record.config.get("rows") is None else None,
        "hours": budget.seconds / 3600 if budget.seconds is not None else None,
        "epochs": budget.epochs,
    }
    given = {name: value for name, value in limits.items() if value is not None}
    values = _said(record.config) | ({"limits": given} if given else {})
    return write_document(values)


def commands(record: StudyRecord) -> str:
    """The commands that install the code, check the data, and run the study."""
    versions = record.complete[0].worker.versions if record.complete else {}
    files = " ".join(record.config["data"]["files"])
    lines = []
    if (commit := versions.get("commit")) is not None:
        lines.append(f"git checkout {commit.removesuffix('-dirty')}")
    lines += [
        f"anitune data info {files}  # fingerprint {record.facts.get('data', 'not known')[:16]}",
        f"anitune study run {record.name}.yaml",
    ]
    if record.complete:
        best = record.complete[0].number
        lines.append(f"anitune reproduce {record.name} {best}  # the best trial once more, from its record")
    return "\n".join(lines)


def _said(config: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that are null, which a file leaves out."""
    return {
        name: _said(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if value is not None
    }
