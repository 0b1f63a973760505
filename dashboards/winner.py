"""Statements about the winner of a study: the promoted model, or the best trial."""

from __future__ import annotations

import time

from dashboards.record import StudyRecord, architecture_of, name_of
from trainer.networks.smoothness import kink_warning


def smoothness_warning(record: StudyRecord) -> str | None:
    """A warning if the winner is unsuitable for molecular dynamics, else None."""
    winner = record.winner
    if winner is None or winner.config is None:
        return None
    kinks = kink_warning([winner.config["activation"]])
    return f"Not for molecular dynamics: {name_of(winner)} has {kinks}." if kinks is not None else None


def format_promoted(record: StudyRecord) -> str | None:
    """The registered model of a study and its error on the test set; None if nothing was promoted."""
    promotion, trial = record.promoted, record.winner
    if promotion is None or trial is None:
        return None
    words = (
        f"{architecture_of(trial)} ({name_of(trial)}), promoted: an ensemble of {promotion.plan['ensemble']},"
        f" registered as {promotion.model_name}, version {promotion.model_version}"
    )
    if (test := promotion.test) is None:
        return words
    opened = next(evaluation for evaluation in record.evaluations if evaluation.promotion == promotion.id)
    again = "" if opened == record.evaluations[0] else ", not for the first time"
    day = time.strftime("%Y-%m-%d", time.gmtime(opened.opened_at))
    return f"{words}. On the test set, evaluated on {day}{again}: MAE {test['mae_kcalmol']:.3f} kcal/mol"
