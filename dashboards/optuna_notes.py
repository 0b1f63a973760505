"""Keeps the notes of a study and of its trials in the Optuna dashboard up to date."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from optuna.artifacts import get_all_artifact_meta

from dashboards.notes import OptunaImage, optuna_study_note, optuna_trial_note
from storage.studies import Study, summarize_study
from storage.trials.views import TrialRow, trial_rows

logger = logging.getLogger("anitune")

BORDER = (
    "\n---\n*What is above this line is rewritten by anitune. Below it there is room for notes of yours.*\n"
)


@cache
def _notes() -> ModuleType:
    """How the Optuna dashboard keeps notes, without the dashboard: its import takes seconds (scikit-learn).

    Not its ``save_note``, which reads all notes of a study again for each that is compared.
    """
    package = find_spec("optuna_dashboard")
    assert package is not None
    assert package.origin is not None
    spec = spec_from_file_location("_optuna_notes", Path(package.origin).with_name("_note.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_optuna_notes(study: Study) -> None:
    """Write the notes of the study and of its ended trials, where they changed.

    What a person wrote below :data:`BORDER`, or in the place of a note of ours, stays.
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

        def save(trial_id: int | None, note: str) -> None:
            old = _notes().get_note_from_system_attrs(attributes, trial_id)
            body = with_own_text(note, old["body"])
            if body != old["body"]:
                _notes().save_note_with_version(storage, study_id, trial_id, old["version"] + 1, body)

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


def with_own_text(note: str, old: str) -> str:
    """``note``, with what a person added to the ``old`` one."""
    _, border, own = old.rpartition(BORDER)
    return note + BORDER + (own if border else f"\n{old}" if old else "")
