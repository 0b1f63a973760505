"""The private parts of the Optuna dashboard that anitune relies on, as they are in optuna-dashboard 0.21.0.

Notes and figures are system attributes of a study, and the dashboard's own modules know their format. Its
public functions are not used: ``save_note`` reads all notes of a study for each note that it writes, and
importing the package takes seconds (scikit-learn). ``tests/dashboards/test_private_parts.py`` fails first
when they change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from optuna.storages import BaseStorage

_PREFIX = "dashboard:"


@cache
def part(name: str) -> ModuleType:
    """Import a module of the Optuna dashboard without its package."""
    package = find_spec("optuna_dashboard")
    assert package is not None
    assert package.origin is not None
    spec = spec_from_file_location(f"_optuna{name}", Path(package.origin).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def note_attributes(attributes: Mapping[str, Any]) -> dict[int | None, dict[str, Any]]:
    """Attributes that belong to the note of each trial, by its Optuna id, and of the study (None)."""
    found: defaultdict[int | None, dict[str, Any]] = defaultdict(dict)
    for key, value in attributes.items():
        whose = key.removeprefix(_PREFIX).partition(":")[0]
        found[int(whose) if whose.isdigit() else None][key] = value
    return found


def note_body(attributes: Mapping[str, Any], trial_id: int | None) -> str:
    """The text of a note, from its attributes."""
    return str(part("_note").get_note_from_system_attrs(attributes, trial_id)["body"])


def changed_note(attributes: Mapping[str, Any], trial_id: int | None, body: str) -> dict[str, Any]:
    """The attributes to set so that a note has another text."""
    notes = part("_note")
    version: int = notes.get_note_from_system_attrs(attributes, trial_id)["version"] + 1
    start = notes.note_str_key_prefix(trial_id)
    left = dict.fromkeys((key for key in attributes if key.startswith(start)), "")
    return {notes.note_ver_key(trial_id): version, **left, **notes.split_body(body, trial_id)}


def figure_json(attributes: Mapping[str, Any], figure: str) -> str | None:
    """The figure of this id on the page of a study, as JSON."""
    found: dict[str, str] = part("_custom_plot_data").get_plotly_graph_objects(attributes)
    return found.get(figure)


def save_figure(storage: BaseStorage, study_id: int, figure: str, text: str) -> None:
    """Put a figure on the page of a study."""
    plots = part("_custom_plot_data")
    plots.save_graph_object_json(storage, study_id, f"{plots.SYSTEM_ATTR_PLOT_DATA}{figure}:", text)
