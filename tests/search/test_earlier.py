"""Studies that learn from earlier ones, on real databases and with real trainings."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import update

from search.cli.create import create_studies
from search.propose.earlier import FIRST, KEPT, NOTHING, copy_of, joined, learned, normal_score
from search.propose.enqueued import enqueued
from search.propose.history import _rank
from search.propose.samplers import propose
from search.propose.space import distributions
from search.study import StudyConfig, study_from_values
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.database import Database, open_database
from storage.deletion import delete_study
from storage.earlier_studies import EarlierStudy, earlier_studies
from storage.records.tables import attempts
from storage.records.tables import trials as trial_table
from storage.settings import Settings
from storage.studies import Study, list_studies, open_study
from storage.trials.views import TrialRow, complete_trials, trial_rows
from tests.search.stopped_work import StopAt
from trainer.errors import ConfigError
from trainer.task import Task

SPACE = {
    "hidden": {"choices": [[4], [8], [8, 4]]},
    "activation": {"choices": ["celu", "silu"]},
    "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    "batch_size": 16,
    "dropout": 0.0,
    "weight_decay": 0.0,
}


def study(name: str, data_file: Path | str = "x.h5", **values: Any) -> StudyConfig:
    given = {
        "name": name,
        "data": {"files": [str(data_file)]},
        "training": {"epochs": 3, "device": "cpu", "checkpoint_seconds": 0},
        "space": SPACE,
        "pruner": {"kind": "none"},
        "limits": {"trials": 6},
    }
    return study_from_values(given | values, "test")


def create(database: Database, config: StudyConfig) -> Study:
    ((made, _),), _ = create_studies(database, config)
    return made


def work(
    database: Database, config: StudyConfig, task: Task, stop: StopRequest | None = None, watcher: Any = None
) -> list[TrialRow]:
    made = create(database, config)
    Worker(
        database,
        made,
        config,
        task,
        watcher or SilentWatcher(),
        stop or StopRequest(),
        start_relay=lambda study: None,
    ).work()
    return trial_rows(database, made)


def open_home(folder: Path) -> Any:
    return open_database(Settings(folder, f"sqlite:///{folder}/a.db", f"sqlite:///{folder}/m.db"))


def result(
    number: int, value: float, hidden: list[int], state: str = "complete", **settings: Any
) -> dict[str, Any]:
    chosen = {
        "hidden": hidden,
        "activation": "celu",
        "learning_rate": 5e-3,
        "batch_size": 16,
        "dropout": 0.0,
        "weight_decay": 0.0,
    }
    return {
        "trial": number,
        "state": state,
        "value": value,
        "epochs": 3,
        "quantile": (number + 0.5) / 20,
        "settings": chosen | settings,
    }


def copied(*results: dict[str, Any], name: str = "water") -> EarlierStudy:
    return EarlierStudy(name, 20, {}, results, "0" * 64)


def test_the_best_of_an_earlier_study_are_tried_first(
    database: Database, data_file: Path, task: Task
) -> None:
    best = complete_trials(work(database, study("water", data_file), task))
    config = study("methanol", data_file, learn_from=["water"], seed=5)
    trials = work(database, config, task)
    tried = [trial for trial in trials if "learned_from" in trial.tags]
    assert [trial.number for trial in tried] == [*range(FIRST)]
    assert tried[0].tags["learned_from"] == f"trial {best[0].number} of water"
    assert tried[0].config is not None
    assert best[0].config is not None
    assert {**tried[0].config, "seed": 0} == {**best[0].config, "seed": 0}
    assert tried[0].config["seed"] != best[0].config["seed"], "trained, not copied"
    networks = list(dict.fromkeys(trial.tags["arch"] for trial in best))
    assert [trial.tags["arch"] for trial in tried][: len(networks)] == networks[:FIRST]
    (copy,) = earlier_studies(database, open_study(database, "methanol"))
    assert (copy.name, copy.trials, len(copy.results)) == ("water", 6, 6)


def test_what_becomes_of_the_earlier_study_changes_nothing(
    tmp_path: Path, data_file: Path, task: Task
) -> None:
    """Neither do an interruption and a continuation: with one worker the proposals are the same."""
    config = study("methanol", data_file, learn_from=["water"], limits={"trials": 8})
    found = []
    for change in (False, True):
        with open_home(tmp_path / f"home-{change}") as database:
            work(database, study("water", data_file), task)
            watcher = StopAt(6) if change else None
            trials = work(database, config, task, watcher and watcher.stop, watcher)
            if change:
                assert trials[-1].state == "interrupted"
                with database.writing() as connection:
                    connection.execute(
                        update(trial_table)
                        .where(trial_table.c.study_id == open_study(database, "water").id)
                        .values(value=0.0)
                    )
                delete_study(database, open_study(database, "water"))
                trials = work(database, config, task)
            (copy,) = earlier_studies(database, open_study(database, "methanol"))
            found.append([[(t.number, t.config, t.value, t.tags) for t in trials], copy])
    assert found[0] == found[1]


def test_the_copy_goes_with_its_study(database: Database, data_file: Path, task: Task) -> None:
    work(database, study("water", data_file, limits={"trials": 2}), task)
    made = create(database, study("methanol", data_file, learn_from=["water"]))
    delete_study(database, made)
    assert [each.name for each in list_studies(database)] == ["water"]
    assert earlier_studies(database, made) == []


@pytest.mark.parametrize(
    ("learn_from", "said"),
    [
        (["ammonia"], "methanol: learn_from: there is no study 'ammonia' in "),
        (["empty"], "methanol: learn_from: study 'empty' has no trial with a result yet"),
        (["water"], "methanol: learn_from: none of the 2 trials of study 'water' lies in the space of this"),
    ],
)
def test_a_study_that_cannot_be_learned_from_is_an_error_and_nothing_is_recorded(
    database: Database, data_file: Path, task: Task, learn_from: list[str], said: str
) -> None:
    work(database, study("water", data_file, limits={"trials": 2}), task)
    create(database, study("empty", data_file))
    space = SPACE | {"hidden": {"choices": [[64], [32]]}}
    config = study("methanol", data_file, learn_from=learn_from, space=space)
    with pytest.raises(ConfigError) as error:
        create_studies(database, config)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert {each.name for each in list_studies(database)} == {"water", "empty"}


def test_only_configurations_in_the_space_are_tried_first() -> None:
    config = study("methanol", learn_from=["water"])
    copy = copied(
        result(0, 0.1, [64]),
        result(1, 0.2, [8], learning_rate=0.5),
        result(2, 0.3, [8], dropout=0.2),
        result(3, 0.4, [8], state="pruned"),
        result(4, 0.5, [8]),
        result(5, 0.6, [8], learning_rate=2e-3),
        result(6, 0.7, [8, 4]),
    )
    inside = dataclasses.replace(copy, results=copy.results[2:])
    found = learned(config, [inside])
    assert [first.source for first in found.first] == [f"trial {n} of water" for n in (4, 6, 5)], (
        "distinct architectures first, and none that the study cannot have"
    )
    assert len(found.trials) == 5, "another dropout, which is not searched, does not matter to the sampler"
    assert found.trials[-1].params["hidden"] == "8"
    assert found.trials[-1].value == normal_score(2.5 / 20)


def test_the_best_of_several_studies_are_tried_in_turn_and_no_more_than_a_few() -> None:
    config = study("methanol", learn_from=["a", "b"])
    rates = [1e-3 * 1.1**n for n in range(12)]
    one = copied(*(result(n, n, [8], learning_rate=rate) for n, rate in enumerate(rates)), name="a")
    other = copied(*(result(n, n, [4], learning_rate=rate) for n, rate in enumerate(rates)), name="b")
    sources = [first.source for first in learned(config, [one, other]).first]
    assert sources == ["trial 0 of a", "trial 0 of b", "trial 1 of a", "trial 1 of b", "trial 2 of a"]


def test_a_space_of_layers_and_widths_takes_architectures_that_were_listed() -> None:
    space = {**SPACE, "layers": {"low": 1, "high": 2}, "width": {"low": 4, "high": 8, "step": 4}}
    del space["hidden"]
    found = learned(study("methanol", space=space), [copied(result(0, 1, [8]), result(1, 2, [8, 4]))])
    assert [first.params["layers"] for first in found.first] == [1, 2]
    assert {frozenset(trial.params) for trial in found.trials} == {
        frozenset(distributions(study("methanol", space=space)))
    }


def test_enqueued_configurations_do_not_replace_those_of_earlier_studies(
    database: Database, data_file: Path, task: Task
) -> None:
    work(database, study("water", data_file, limits={"trials": 2}), task)
    config = study("methanol", data_file, learn_from=["water"], limits={"trials": 4})
    enqueued(create(database, config), {"hidden": "8", "activation": "silu", "learning_rate": 1e-3})
    trials = work(database, config, task)
    assert [trial.number for trial in trials if "learned_from" in trial.tags] == [1, 2]


def own(number: int, state: TrialState, value: float | None, **given: Any) -> FrozenTrial:
    trial = create_trial(state=state, value=value, **given)
    trial.number = number
    return trial


def test_errors_of_studies_are_compared_by_rank() -> None:
    """A study with errors a hundred times smaller does not make all its trials better."""
    earlier = learned(study("methanol"), [copied(*(result(n, n / 100, [8]) for n in range(20)))]).trials
    trials = [
        own(0, TrialState.COMPLETE, 70.0),
        own(1, TrialState.COMPLETE, 50.0),
        own(2, TrialState.PRUNED, None, intermediate_values={1: 90.0}),
        own(3, TrialState.RUNNING, None),
    ]
    found = joined(earlier, trials, _rank)
    assert [trial.number for trial in found] == [*range(24)], "samplers tell trials apart by their numbers"
    assert [trial.value for trial in found[20:23]] == [0.0, normal_score(1 / 6), normal_score(5 / 6)]
    assert [trial.state for trial in found[20:]] == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    assert min(found, key=lambda trial: trial.value or 0.0).params == earlier[-1].params
    assert trials[0].value == 70.0, "the trials themselves stay as they are"
    assert joined((), trials, _rank) is trials


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_the_sampler_knows_from_the_beginning_what_was_good(kind: str) -> None:
    config = study("methanol", sampler={"kind": kind})
    rates = [10 ** (-3 + n / 20) for n in range(20)]
    copy = copied(*(result(n, n, [8], learning_rate=rate) for n, rate in enumerate(rates)))
    earlier = dataclasses.replace(learned(config, [copy]), first=())
    storage = InMemoryStorage()
    optuna.create_study(study_name=config.name, storage=storage)
    rates_of = {
        known is earlier: [
            propose(storage, config, number, earlier=known).params["learning_rate"] for number in range(12)
        ]
        for known in (earlier, NOTHING)
    }
    below = {known: sum(rate < 10**-2.6 for rate in found) for known, found in rates_of.items()}
    assert below[True] > 2 * below[False], rates_of


def test_what_was_tried_first_is_not_drawn_again_by_the_seed_of_the_earlier_study() -> None:
    config = study("methanol", sampler={"kind": "random"})
    storage = InMemoryStorage()
    made = optuna.create_study(study_name=config.name, storage=storage)
    drawn = propose(storage, config, 1).params  # as in an earlier study with the same space and seed
    hidden = [int(width) for width in drawn["hidden"].split("-")]
    settings = {name: drawn[name] for name in ("activation", "learning_rate")}
    known = learned(config, [copied(result(1, 0.5, hidden, **settings))])
    first = propose(storage, config, 0, earlier=known)
    assert first.params == drawn
    made.add_trial(create_trial(value=1.0, params=dict(drawn), distributions=dict(distributions(config))))
    assert propose(storage, config, 1, earlier=known).params["learning_rate"] != drawn["learning_rate"]


def test_a_large_study_is_copied_in_part(database: Database) -> None:
    """The best are all kept, and the others keep their quantiles."""
    earlier = study("water", "sample", limits={"trials": 500})
    ((made, _),), _ = create_studies(database, earlier)
    rows = [
        {
            "study_id": made.id,
            "number": n,
            "optuna_trial_id": n + 1,
            "state": "complete",
            "attempt": 1,
            "config": {"hidden": [8], "activation": "celu", "learning_rate": 2e-3, "batch_size": 16},
            "value": float(n),
            "summary": {},
            "tags": {},
            "created_at": 0.0,
            "told": True,
        }
        for n in range(300)
    ]
    attempt = {"attempt": 1, "started_at": 0.0, "renewed_at": 0.0, "lease_until": 1.0, "ended_at": 1.0}
    worker = {"name": "w", "host": "h", "pid": 1, "device": "cpu", "versions": {}}
    with database.writing() as connection:
        connection.execute(trial_table.insert(), rows)
        connection.execute(
            attempts.insert(),
            [
                {**attempt, "study_id": made.id, "number": n, "token": str(n), "worker": worker}
                | {"epochs": 3, "last_epoch": 3}
                for n in range(300)
            ],
        )
    copy = copy_of(study("methanol", "sample", learn_from=["water"]), made)
    numbers = [each["trial"] for each in copy.results]
    assert (copy.trials, len(numbers), numbers[:20], numbers[-1]) == (300, KEPT, [*range(20)], 299)
    steps = {after - before for before, after in itertools.pairwise(numbers[20:])}
    assert steps <= {3, 4}
    assert all(each["quantile"] == (each["trial"] + 0.5) / 300 for each in copy.results)
