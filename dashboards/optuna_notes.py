"""Keeps our part of the Optuna dashboard up to date: notes of a study and its trials, and a figure."""

from __future__ import annotations

import logging

from optuna.artifacts import get_all_artifact_meta

from dashboards.figures import cost
from dashboards.notes import OptunaImage, optuna_study_note, optuna_trial_note
from dashboards.optuna_dashboard_private import (
    changed_note,
    figure_json,
    note_attributes,
    note_body,
    save_figure,
)
from dashboards.record import StudyRecord
from storage.optuna_private import trial_id
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


def write_optuna_figures(study: Study, record: StudyRecord) -> None:
    """Put the figure of error against cost on the study's page, if it changed."""
    if not record.complete:
        return
    figure = cost([record]).figure
    figure.update_layout(title={"text": "Error against parameters", "font": {"size": 16}}, margin={"t": 76})
    storage, text = study.database.optuna, figure.to_json()
    with study.database.plain_errors():
        try:
            attributes = storage.get_study_system_attrs(study.optuna_study_id)
        except KeyError:
            return  # the study was deleted in the dashboard; write_optuna_notes logs a warning
        if figure_json(attributes, FIGURE) != text:
            save_figure(storage, study.optuna_study_id, FIGURE, text)


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
            frozen = {trial_id(trial): trial for trial in storage.get_all_trials(study_id, deepcopy=False)}
        except KeyError:
            logger.warning("study %s was deleted in the Optuna dashboard: it has no notes", study.name)
            return

        known = note_attributes(attributes)

        def save(optuna_trial_id: int | None, note: str) -> None:
            mine = known.get(optuna_trial_id, {})
            old = note_body(mine, optuna_trial_id)
            body = with_own_text(note, old)
            if body != old:
                for key, value in changed_note(mine, optuna_trial_id, body).items():
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


def with_own_text(note: str, old: str) -> str:
    """``note``, followed by what a person added to the ``old`` one."""
    _, border, own = old.replace(EARLIER_BORDER, BORDER).rpartition(BORDER)
    return note + BORDER + (own if border else f"\n{old}" if old else "")
