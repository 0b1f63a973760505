"""Chaos notices what differs from what a study file asks for."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from search.study import study_from_values
from storage.database import Database
from storage.records.tables import studies, trials
from storage.studies import Budget, Study, create_study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, add_replicates, claim_trial
from tests.chaos.rules import broken_records, ended_study
from tests.chaos.study_files import study_file
from trainer.config import dump_config

WORKER = WorkerInfo("w", "alpha", 1, "cpu", {})


def train(study: Study, *errors: float) -> None:
    """Record complete trials with these errors, kcal/mol."""
    for error in errors:
        claim = claim_trial(study.database, study, WORKER)
        assert claim is not None
        attempt = Attempt(study.database, study, claim)
        attempt.record_config({"seed": claim.number}, {}, planned_epochs=2)
        for epoch, value in enumerate((2 * error, error), start=1):
            attempt.record_metrics([MetricRow("val/mae_kcalmol", epoch, value, epoch)])
        attempt.finish("complete", value=error)


@pytest.fixture
def study(database: Database) -> Study:
    """Three trials, the best two of which have another seed each; the second is better by the mean."""
    values = study_file("finalists", trials=3, epochs=20, seeds=2) | {"learn_from": None}
    config = dump_config(study_from_values(values, "test"))
    study = create_study(database, "chaos", config, Budget(trials=3, until_no_gain=True))
    train(study, 3.0, 2.9, 9.0)
    assert add_replicates(database, study, WORKER, [0, 1], among=3)
    train(study, 2.0, 2.8)
    return study


def found(study: Study, trials_asked: int = 3) -> str:
    return "\n".join(broken_records(ended_study(study, trials_asked, [])))


def change(study: Study, number: int, **values: object) -> None:
    with study.database.writing() as connection:
        connection.execute(update(trials).where(trials.c.number == number).values(**values))


def test_a_sound_study_breaks_no_rule(study: Study) -> None:
    assert found(study) == ""


def test_a_finalist_without_a_seed_is_found(study: Study) -> None:
    change(study, 3, replicate_of=2)
    assert "trials [0] are among the best two, and not among the finalists" in found(study)


def test_a_seed_that_was_trained_twice_is_found(study: Study) -> None:
    change(study, 4, config={"seed": 1})
    assert "finalist 1 has 2 trainings with 1 seeds" in found(study)


def test_a_replicate_with_other_settings_is_found(study: Study) -> None:
    change(study, 4, config={"seed": 4, "dropout": 0.1})
    assert "the trainings of finalist 1 have different settings" in found(study)


def test_a_replicate_that_does_not_count_is_found(study: Study) -> None:
    change(study, 3, value=4.0)  # its epochs say 2.0
    assert "trial 0 is the best by the mean over seeds; leaderboard and summary name trials (1, 1)" in found(
        study
    )


def test_an_end_without_a_reason_is_found(study: Study) -> None:
    assert "it ended after 3 trials, and no reason is recorded" in found(study, trials_asked=4)
    with study.database.writing() as connection:
        connection.execute(update(studies).values(gain={"results": 20, "gain": 0.0, "margin": 0.1}))
    assert "what is left to gain comes from 20 results, of 5" in found(study, trials_asked=4)


def test_a_trial_beyond_the_limit_is_found(study: Study) -> None:
    with study.database.writing() as connection:
        connection.execute(update(studies).values(budget_trials=4))
    assert "its limit is 4 trials, and it has 5" in found(study)


def test_a_changed_copy_of_earlier_results_is_found(study: Study) -> None:
    assert "have changed" not in found(study)
    copies = [object()]
    (said, *_) = broken_records(ended_study(study, 3, copies))  # type: ignore[arg-type]
    assert said == "the copies of earlier results have changed"
