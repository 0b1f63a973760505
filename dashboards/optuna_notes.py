"""Keeps our part of the Optuna dashboard up to date: notes of a study and its trials, and a figure."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from optuna.artifacts import get_all_artifact_meta

from dashboards.notes import OptunaImage, optuna_study_note, optuna_trial_note
from dashboards.record import StudyRecord
from storage.studies import Study, summarize_study
from storage.trials.views import TrialRow, trial_rows

logger = logging.getLogger("anitune")

FIGURE = "error-against-parameters"
"""Id of our figure on the page of a study."""

BORDER = "\n---\n*Anitune rewrites everything above this line. Write your own notes below it.*\n"

EARLIER_BORDER = (
    "\n---\n*What is above this line is rewritten by anitune. Below it there is room for notes of yours.*\n"
)
"""The border in notes that earlier versions wrote."""


@cache
def _part(name: str) -> ModuleType:
    """Import a module of the Optuna dashboard without its package, which takes seconds (scikit-learn)."""
    package = find_spec("optuna_dashboard")
    assert package is not None
    assert package.origin is not None
    spec = spec_from_file_location(f"_optuna{name}", Path(package.origin).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _notes() -> ModuleType:
    """The dashboard's module for notes.

    Its ``save_note`` is not used: for each note that it compares or writes, it reads all notes of a study.
    """
    return _part("_note")


def write_optuna_figures(study: Study, record: StudyRecord) -> None:
    """Put the figure of error against cost on the study's page, if it changed."""
    from dashboards.figures import cost  # plotly takes a second to import

    if not record.complete:
        return
    figure = cost([record]).figure
    figure.update_layout(title={"text": "Error against parameters", "font": {"size": 16}}, margin={"t": 76})
    part, storage = _part("_custom_plot_data"), study.database.optuna
    key, text = f"{part.SYSTEM_ATTR_PLOT_DATA}{FIGURE}:", figure.to_json()
    with study.database.plain_errors():
        try:
            attributes = storage.get_study_system_attrs(study.optuna_study_id)
        except KeyError:
            return  # the study was deleted in the dashboard; write_optuna_notes logs a warning
        if part.get_plotly_graph_objects(attributes).get(FIGURE) != text:
            part.save_graph_object_json(storage, study.optuna_study_id, key, text)


def write_optuna_notes(study: Study) -> None:
    """Write the notes of the study and of its ended trials, if they changed.

    What a person wrote below :data:`BORDER`, or before our first note, is kept.
    """
    storage = study.database.optuna
    summary, trials = summarize_study(study.database, study), trial_rows(study.database, study)
    experiment, study_id = summary.mlflow_experiment_id, study.optuna_study_id
    with study.database.plain_errors():
        try:
            attributes = storage.get_study_system_attrs(study_id)
            frozen = {trial._trial_id: trial for trial in storage.get_all_trials(study_id, deepcopy=False)}
        except KeyError:
            logger.warning("study %s was deleted in the Optuna dashboard: it has no notes", study.name)
            return

        known = _by_trial(attributes)

        def save(trial_id: int | None, note: str) -> None:
            mine, part = known.get(trial_id, {}), _notes()
            old = part.get_note_from_system_attrs(mine, trial_id)
            body = with_own_text(note, old["body"])
            if body == old["body"]:
                return
            pieces: dict[str, str] = part.split_body(body, trial_id)
            start = part.note_str_key_prefix(trial_id)
            left = dict.fromkeys((key for key in mine if key.startswith(start)), "")
            version = {part.note_ver_key(trial_id): old["version"] + 1}
            for key, value in {**version, **left, **pieces}.items():
                storage.set_study_system_attr(study_id, key, value)

        def images(trial: TrialRow) -> list[OptunaImage]:
            found = get_all_artifact_meta(frozen[trial.optuna_trial_id], storage=storage)
            return [OptunaImage(image.filename, image.artifact_id) for image in found]

        for trial in trials:
            if trial.ended is not None and trial.optuna_trial_id in frozen:
                save(
                    trial.optuna_trial_id,
                    optuna_trial_note(study_id, experiment, trial, images(trial)),
                )
        save(None, optuna_study_note(study_id, summary, trials))


def _by_trial(attributes: Mapping[str, Any]) -> dict[int | None, dict[str, Any]]:
    """Attributes that belong to the note of each trial, by its Optuna id, and of the study (None)."""
    found: defaultdict[int | None, dict[str, Any]] = defaultdict(dict)
    for key, value in attributes.items():
        whose = key.removeprefix("dashboard:").partition(":")[0]
        found[int(whose) if whose.isdigit() else None][key] = value
    return found


def with_own_text(note: str, old: str) -> str:
    """``note``, followed by what a person added to the ``old`` one."""
    _, border, own = old.replace(EARLIER_BORDER, BORDER).rpartition(BORDER)
    return note + BORDER + (own if border else f"\n{old}" if old else "")
