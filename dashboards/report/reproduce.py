"""How to run a study again: its file in a form for ``anitune study run``, and the commands.

People paste both into a shell. The records may come from somebody else, so each of their words is quoted and
cannot run anything.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Any, Final

from dashboards.printable import printable
from dashboards.record import StudyRecord
from search.documents import write_document
from trainer.config import ISOLATED_ATOMS, DataConfig, dump_config

_HEXADECIMAL: Final = re.compile(r"[0-9a-f]{7,64}")


def study_file(record: StudyRecord) -> str:
    """The study as a study file, with defaults filled in."""
    budget = record.summary.budget
    limits: dict[str, Any] = {
        "trials": budget.trials if record.config.get("rows") is None else None,
        "hours": budget.seconds / 3600 if budget.seconds is not None else None,
        "epochs": budget.epochs,
        "until_no_gain": budget.until_no_gain or None,
    }
    given = {name: value for name, value in limits.items() if value is not None}
    values = _said(record.config) | ({"limits": given} if given else {})
    text = write_document(values)
    return text if printable(text) == text else write_document(values, ascii_only=True)


def commands(record: StudyRecord) -> str:
    """The commands that install the code, check the data, and run the study."""
    versions = record.complete[0].worker.versions if record.complete else {}
    files = " ".join(shell_word(file) for file in record.config["data"]["files"])
    name = shell_word(record.name)
    fingerprint = _hexadecimal(record.facts.get("data", ""))[:16] or "not known"
    lines = []
    if commit := _hexadecimal(versions.get("commit", "").removesuffix("-dirty")):
        lines.append(f"git checkout {commit}")
    lines += [
        f"anitune data describe {' '.join([files, *_options(record)])}  # fingerprint {fingerprint}",
        f"anitune study run {shell_word(f'{record.name}.yaml')}",
    ]
    if record.complete:
        best = record.complete[0].number
        lines.append(f"anitune reproduce {name} {best}  # trains the best trial again, from its record")
    return "\n".join(lines)


def _options(record: StudyRecord) -> list[str]:
    """Options to read the data files as the study did, where they differ from the defaults of the command."""
    data, usual, found = record.config["data"], dump_config(DataConfig()), list[str]()
    for name in ("energy", "unit", "length_unit", "molecule", "duplicates", "unusual"):
        if data.get(name, usual[name]) != usual[name]:
            found += [f"--{name.replace('_', '-')}", shell_word(str(data[name]))]
    if data.get("self_energies") == ISOLATED_ATOMS:
        found += ["--self-energies", ISOLATED_ATOMS]
    for kind in data.get("leave_out") or ():
        found += ["--leave-out", shell_word(str(kind))]
    return found + [
        f"--{name.replace('_', '-')}"
        for name in ("high_energy", "links_outside", "drop_outliers")
        if data.get(name)
    ]


def shell_word(text: str) -> str:
    """Quote a word for bash, without characters that a terminal would take for keys."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))


def _hexadecimal(text: str) -> str:
    return text if _HEXADECIMAL.fullmatch(text) else ""


def _said(config: dict[str, Any]) -> dict[str, Any]:
    """Settings without null values, which a study file leaves out."""
    return {
        name: _said(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if value is not None
    }
