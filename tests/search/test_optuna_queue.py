"""Trials that others put into Optuna's queue, or set by hand: none ends a worker or misleads a sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy import update

from search.propose.enqueued import params_from_queue
from search.propose.history import ShownStudy
from search.propose.samplers import make_sampler, propose, trial_limit
from search.propose.space import distributions
from search.study import StudyConfig, study_from_values
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.database import Database
from storage.optuna_private import SYSTEM_ATTRIBUTES, TRIALS
from storage.records.tables import studies
from storage.studies import Budget, Study, create_study
from storage.trials.queue import WorkerInfo, claim_trial
from storage.trials.views import TrialRow, trial_rows
from trainer.config import dump_config
from trainer.errors import ConfigError
from trainer.run import TrainingResult
from trainer.task import Task

SPACE = {
    "layers": {"low": 1, "high": 2},
    "width": {"low": 32, "high": 64, "step": 32},
    "activation": {"choices": ["silu", "celu"]},
    "dropout": {"choices": [0.0, 0.1]},
    "learning_rate": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
    "batch_size": {"choices": [16, 32]},
    "weight_decay": {"choices": [0.0]},
}


def study_config(data_file: Path, **changes: Any) -> StudyConfig:
    values = {
        "name": "tiny",
        "data": {"files": [str(data_file)]},
        "training": {"epochs": 1, "device": "cpu", "optimizer": "adam"},
        "space": SPACE,
        "sampler": {"kind": "random"},
        "pruner": {"kind": "none"},
        "limits": {"trials": 3},
    }
    return study_from_values(values | changes, "test")


@pytest.fixture
def config(data_file: Path) -> StudyConfig:
    return study_config(data_file)


class Untrained(Worker):
    """A worker whose trainings are over at once."""

    def _work_in_thread(self) -> None:
        self._train_claims(lambda *_, **__: TrainingResult("finished", 1.0, 1, 1, {}, (), ()))


def begin(database: Database, config: StudyConfig) -> Study:
    return create_study(database, config.name, dump_config(config), Budget(trials=trial_limit(config)))


def work(database: Database, study: Study, config: StudyConfig, task: Task) -> list[TrialRow]:
    Untrained(
        database, study, config, task, SilentWatcher(), StopRequest(), start_relay=lambda _: None
    ).work()
    return trial_rows(database, study)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 0.5}, "learning_rate: the study searches 0.0001 to 0.01 (got 0.5)"),
    ({"learning_rate": float("nan")}, "learning_rate: the study searches 0.0001 to 0.01 (got nan)"),
    ({"learning_rate": float("inf")}, "learning_rate: the study searches 0.0001 to 0.01 (got inf)"),
    ({"learning_rate": "0.001"}, "learning_rate: the study searches 0.0001 to 0.01 (got '0.001')"),
    ({"learning_rate": None}, "learning_rate: the study searches 0.0001 to 0.01 (got None)"),
    ({"learning_rate": [0.001]}, "learning_rate: the study searches 0.0001 to 0.01 (got [0.001])"),
    ({"layers": 3}, "layers: the study searches 1 to 2 (got 3)"),
    ({"layers": 10**400}, "layers: the study searches 1 to 2 (got "),
    ({"layers": True}, "layers: the study searches 1 to 2 (got True)"),
    ({"layers": 1.5}, "layers: the study searches 1 to 2 (got 1.5)"),
    ({"width_1": 33}, "width_1: the study searches 32 to 64 in steps of 32 (got 33)"),
    ({"width_3": 32}, "width_3: is not a parameter of study 'tiny'"),
    ({"activation": "tanh"}, "activation: the study searches silu, celu (got 'tanh')"),
    ({"dropout": False}, "dropout: the study searches 0.0, 0.1 (got False)"),
    ({"batch_size": "16"}, "batch_size: the study searches 16, 32 (got '16')"),
    ({"optimizer": "adamw"}, "optimizer: is 'adam' in all trials of study 'tiny' (got 'adamw')"),
    ({"epochs": 10_000}, "epochs: is 1 in all trials of study 'tiny' (got 10000)"),
    ({"seed": 1}, "seed: is not a parameter of study 'tiny'"),
    ({"x": 1}, "x: is not a parameter of study 'tiny'"),
    ({"hidden": [8]}, "hidden: is not a parameter of study 'tiny'"),
]


@pytest.mark.parametrize(("asked_for", "said"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_no_trial_can_be_is_refused_as_the_command_does(
    config: StudyConfig, asked_for: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        params_from_queue(config, asked_for)
    assert str(raised.value).startswith(f"Optuna's queue: {said}")
    assert len(str(raised.value)) < 300


def test_a_worker_goes_on_after_them_and_no_sampler_sees_them(
    database: Database, config: StudyConfig, task: Task
) -> None:
    study = begin(database, config)
    for asked_for, _ in REFUSED[:-1]:
        study.optuna.enqueue_trial(asked_for)
    study.optuna.enqueue_trial({"learning_rate": 0.002, "layers": 2})
    study.optuna.enqueue_trial({})
    config = study_config(Path(config.data.files[0]), limits={"trials": len(REFUSED) + 2})
    with database.writing() as connection:
        connection.execute(update(studies).values(budget_trials=len(REFUSED) + 2))
    trials = work(database, study, config, task)
    assert [t.state for t in trials] == ["failed"] * (len(REFUSED) - 1) + ["complete"] * 3
    for trial, (_, said) in zip(trials, REFUSED, strict=False):
        if trial.state == "failed":
            assert str(trial.reason).startswith(f"Optuna's queue: {said}")
    asked = trials[len(REFUSED) - 1].params
    assert asked is not None
    assert (asked["learning_rate"], asked["layers"]) == (0.002, 2)
    assert asked["activation"] in ("silu", "celu")  # what was left open was proposed
    in_optuna = study.optuna.get_trials()
    assert [t.state for t in in_optuna[: len(REFUSED) - 1]] == [TrialState.FAIL] * (len(REFUSED) - 1)
    assert all(not t.params for t in in_optuna[: len(REFUSED) - 1])


@pytest.mark.parametrize("text", ["[]", '"x"', "3", "null", "{", "[" * 100_000, ""])
def test_an_attribute_that_is_no_mapping_fails_its_trial_alone(
    database: Database, config: StudyConfig, task: Task, text: str
) -> None:
    study = begin(database, config)
    study.optuna.enqueue_trial({"layers": 1})
    attributes = SYSTEM_ATTRIBUTES
    with database.writing() as connection:
        connection.execute(
            update(attributes).where(attributes.c.key == "fixed_params").values(value_json=text)
        )
    trials = work(database, study, config, task)
    assert [t.state for t in trials] == ["failed", "complete", "complete"]
    assert "instead of parameters" in str(trials[0].reason)


def test_values_have_the_kinds_that_the_study_has(config: StudyConfig) -> None:
    found = params_from_queue(config, {"dropout": 0, "weight_decay": 0, "optimizer": "adam", "layers": 1})
    assert found == {"dropout": 0.0, "weight_decay": 0.0, "layers": 1}
    assert [type(found[name]) for name in found] == [float, float, int]


def test_a_trial_that_was_made_with_parameters_is_trained_with_them(
    database: Database, config: StudyConfig, task: Task
) -> None:
    study = begin(database, config)
    space = distributions(config)
    wide = {"learning_rate": FloatDistribution(1e-6, 1.0)}
    for value in (0.002, 0.9):
        study.optuna.add_trial(
            create_trial(state=TrialState.WAITING, params={"learning_rate": value}, distributions=wide)
        )
    first, second, _ = work(database, study, config, task)
    assert first.params is not None
    assert first.params["learning_rate"] == 0.002
    assert second.state == "failed"
    assert study.optuna.get_trials()[0].distributions == space


@pytest.mark.parametrize("kind", ["grid", "rows"])
def test_listed_trials_take_none(database: Database, data_file: Path, task: Task, kind: str) -> None:
    single = {name: {"choices": [SPACE[name]["choices"][0]]} for name in ("activation", "dropout")}
    rest = {"learning_rate": {"choices": [0.001]}, "weight_decay": {"choices": [0.0]}}
    config = (
        study_config(
            data_file,
            sampler={"kind": "grid"},
            training={"hidden": [8], "epochs": 1, "device": "cpu"},
            space={**single, **rest, "batch_size": {"choices": [16, 32, 64]}},
        )
        if kind == "grid"
        else study_from_values(
            {
                "name": "tiny",
                "training": {"epochs": 1, "device": "cpu"},
                "rows": [{"label": "a"}, {"label": "b"}, {"label": "c"}],
            },
            "test",
        )
    )
    study = begin(database, config)
    study.optuna.enqueue_trial({"batch_size": 16})
    study.optuna.enqueue_trial({})
    study.optuna.add_trial(create_trial(state=TrialState.COMPLETE, value=0.1))
    trials = work(database, study, config, task)
    assert [(t.number, t.state) for t in trials] == [(0, "failed"), (1, "complete"), (3, "failed")]
    assert "each of them once" in str(trials[0].reason)
    assert "has 3 trials, but trial 3 is not one of them" in str(trials[2].reason)


def test_a_trial_that_was_set_back_by_hand_is_not_begun_twice(
    database: Database, config: StudyConfig
) -> None:
    study = begin(database, config)
    worker = WorkerInfo("w1", "here", 1, "cpu", {})
    first = claim_trial(database, study, worker)
    assert first is not None
    rows = TRIALS
    with database.writing() as connection:
        connection.execute(update(rows).values(state=TrialState.WAITING))
    second = claim_trial(database, study, worker)
    assert second is not None
    assert (first.number, second.number) == (0, 1)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.FAIL])
def test_a_trial_that_is_ended_by_hand_before_it_begins_is_none_of_ours(
    database: Database, config: StudyConfig, task: Task, state: TrialState
) -> None:
    study = begin(database, config)
    study.optuna.enqueue_trial({"layers": 1})
    waiting = study.optuna.get_trials()[0]
    values = [0.1] if state == TrialState.COMPLETE else None
    database.optuna.set_trial_state_values(waiting._trial_id, state, values)
    trials = work(database, study, config, task)
    assert [(t.number, t.state) for t in trials] == [(1, "complete"), (2, "complete"), (3, "complete")]


def test_one_that_is_ended_while_it_is_trained_fails_alone(
    database: Database, config: StudyConfig, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begin(database, config)

    def choose(*args: Any) -> Any:
        proposal = propose(*args)
        if args[2] == 0:  # somebody presses a button of the dashboard
            trial = study.optuna.get_trials()[0]
            database.optuna.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.1])
        return proposal

    monkeypatch.setattr("search.work.worker.propose", choose)
    trials = work(database, study, config, task)
    assert [t.state for t in trials] == ["failed", "complete", "complete"]
    assert "was ended or deleted in the Optuna dashboard" in str(trials[0].reason)


def test_trials_of_another_space_do_not_mislead_the_sampler(
    database: Database, data_file: Path, task: Task
) -> None:
    config = study_config(data_file, sampler={"kind": "tpe", "startup_trials": 2}, limits={"trials": 6})
    study = begin(database, config)
    foreign = [
        create_trial(value=1e-9),
        create_trial(value=1e-9, params={"layers": 9}, distributions={"layers": IntDistribution(1, 9)}),
        create_trial(value=1e-9, params={"y": 9}, distributions={"y": IntDistribution(1, 9)}),
    ]
    study.optuna.add_trials(foreign)
    trials = work(database, study, config, task)
    assert [t.state for t in trials] == ["complete"] * 6
    sampler = make_sampler(config, 9)
    space = distributions(config)
    seen = ShownStudy(config.name, database.optuna, sampler, 9, space, study.optuna.get_trials)
    assert [t.number for t in seen.get_trials()] == [3, 4, 5, 6, 7, 8]
    joint = sampler.infer_relative_search_space(seen, seen.get_trials()[-1])
    assert set(joint) == {name for name, d in distributions(config).items() if not d.single()}
