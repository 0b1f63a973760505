"""Studies with several objectives and with constraints: proposals, results in Optuna, and bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage, InMemoryStorage

from search.methods import SAMPLERS
from search.propose import samplers as samplers_module
from search.propose.constraints import check_constraints, parameter_count
from search.propose.enqueued import params_from_queue, params_from_settings
from search.propose.history import shown
from search.propose.samplers import propose, trial_limit
from search.propose.space import train_config
from search.study import StudyConfig, study_from_record, study_from_values
from storage.database import Database
from trainer.config import TrainConfig, dump_config
from trainer.errors import ConfigError
from trainer.networks.model import ElementNetworks

LIMIT = 100_000

SPACE = {
    "layers": {"low": 1, "high": 3},
    "width": {"low": 32, "high": 256, "step": 32},
    "learning_rate": {"choices": [1e-3, 3e-3]},
    "activation": "silu",
    "dropout": 0.0,
    "batch_size": 64,
    "weight_decay": 0.0,
}


def make(kind: str = "tpe", **values: Any) -> StudyConfig:
    return study_from_values(
        {
            "name": "two",
            "objectives": ["val_mae", "parameters"],
            "sampler": {"kind": kind} | ({"startup_trials": 4} if SAMPLERS[kind].learns else {}),
            "pruner": {"kind": "none"},
            "space": SPACE,
            "limits": {"trials": 20},
            **values,
        },
        "test",
    )


def search(
    storage: BaseStorage, config: StudyConfig, trials: int, population: int | None = None
) -> list[TrainConfig]:
    """Settings of the trials of a study whose error falls with the size of the network."""
    directions = ["minimize"] * len(config.objectives)
    study = optuna.create_study(study_name=config.name, storage=storage, directions=directions)
    found = []
    for _ in range(trials):
        trial = study.ask()
        proposal = propose(storage, config, trial.number)
        for name, (value, distribution) in proposal.stored.items():
            storage.set_trial_param(trial._trial_id, name, value, json_to_distribution(distribution))
        for key, state in proposal.sampler_state.items():
            storage.set_trial_system_attr(trial._trial_id, key, state)
        trained = train_config(config, proposal.params, trial.number)
        found.append(trained)
        count = parameter_count(config, trained)
        error = 1e5 / count + abs(trained.learning_rate - 3e-3) * 1e3
        study.tell(trial, [error, float(count)][: len(config.objectives)])
    return found


def test_the_parameters_of_a_network_are_counted_without_making_it() -> None:
    config = make()
    trained = train_config(config, {"layers": 2, "width_1": 64, "width_2": 32, "width_3": 32}, 0)
    assert config.features.aev.elements == ("H", "C", "N", "O")
    network = ElementNetworks(replace(trained, precision="float32"), config.features.aev.elements, 384)
    assert parameter_count(config, trained) == network.parameter_count


def test_with_several_objectives_no_trial_is_stopped_by_default() -> None:
    one = study_from_values({"name": "x", "limits": {"trials": 1}}, "test")
    several = study_from_values(
        {"name": "x", "objectives": ["val_mae", "parameters"], "limits": {"trials": 1}}, "test"
    )
    assert one.pruner is not None
    assert several.pruner is not None
    assert (one.objectives, one.pruner.kind) == (("val_mae",), "asha")
    assert several.pruner.kind == "none"


def test_a_record_without_objectives_and_constraints_is_as_it_was() -> None:
    record = dump_config(study_from_values({"name": "x", "limits": {"trials": 1}}, "test"))
    del record["objectives"], record["constraints"]
    config = study_from_record(record, "x")
    assert config.objectives == ("val_mae",)
    assert config.constraints.parameters is None


@pytest.mark.parametrize("kind", [kind for kind in SAMPLERS if kind not in ("gp", "grid")])
def test_no_proposal_breaks_a_constraint(kind: str) -> None:
    config = make(kind, constraints={"parameters": {"at_most": LIMIT}})
    found = search(InMemoryStorage(), config, 12)
    counts = [parameter_count(config, trained) for trained in found]
    assert max(counts) <= LIMIT
    assert len({trained.hidden for trained in found}) > 3, "it still searches"


def test_a_network_is_shrunk_if_the_sampler_draws_none_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(samplers_module, "DRAWS_WITHIN", 1)
    config = make("random", constraints={"parameters": {"at_most": LIMIT}}, repeats="replicate")
    found = search(InMemoryStorage(), config, 12)
    counts = [parameter_count(config, trained) for trained in found]
    assert max(counts) <= LIMIT
    assert max(counts) > LIMIT / 2, "no more than is needed"


def test_a_finite_space_is_searched_to_the_end_within_a_constraint() -> None:
    space = SPACE | {"layers": 1, "width": {"choices": [32, 64, 128, 256]}, "learning_rate": 1e-3}
    config = make("random", space=space, constraints={"parameters": {"at_most": LIMIT}})
    storage = InMemoryStorage()
    found = search(storage, config, 2)
    assert {trained.hidden for trained in found} == {(32,), (64,)}
    assert propose(storage, config, 2).used_up


def test_a_grid_holds_what_is_allowed() -> None:
    space = SPACE | {"layers": 1, "width": {"choices": [32, 64, 128, 256]}}
    assert trial_limit(make("grid", space=space, limits={"trials": 99})) == 8
    config = make("grid", space=space, limits={"trials": 99}, constraints={"parameters": {"at_most": LIMIT}})
    assert trial_limit(config) == 4
    assert {trained.hidden for trained in search(InMemoryStorage(), config, 4)} == {(32,), (64,)}


@pytest.mark.parametrize("listed", [[[64], [256, 256], [128]], [[256, 256], [64]]])
def test_listed_architectures_obey_a_constraint(listed: list[list[int]]) -> None:
    space = {k: v for k, v in SPACE.items() if k not in ("layers", "width")} | {"hidden": {"choices": listed}}
    config = make("random", space=space, constraints={"parameters": {"at_most": LIMIT}}, repeats="replicate")
    assert {trained.hidden for trained in search(InMemoryStorage(), config, 6)} == {(64,)}


def test_a_constraint_that_nothing_meets_is_refused() -> None:
    config = make(constraints={"parameters": {"at_most": 1000}})
    with pytest.raises(ConfigError) as caught:
        check_constraints(config)
    assert str(caught.value) == (
        "two: constraints.parameters.at_most is 1,000, but the smallest network of the space has 49,412"
        " parameters: raise the limit, or search smaller networks"
    )


def test_a_row_that_breaks_a_constraint_is_named() -> None:
    rows = [
        {"label": "small", "training": {"hidden": [8]}},
        {"label": "wide", "training": {"hidden": [256, 256]}},
    ]
    config = study_from_values(
        {"name": "rows", "rows": rows, "constraints": {"parameters": {"at_most": LIMIT}}}, "test"
    )
    with pytest.raises(ConfigError, match=r"is 100,000, but row wide has 658,436 parameters"):
        check_constraints(config)


def test_an_enqueued_configuration_obeys_the_constraints() -> None:
    config = make(constraints={"parameters": {"at_most": LIMIT}})
    with pytest.raises(ConfigError, match=r"^--set: the network has at least .* is 100,000$"):
        params_from_settings(config, {"hidden": [256, 256]}, "--set")
    with pytest.raises(ConfigError, match=r"^Optuna's queue: the network has at least .* is 100,000$"):
        params_from_queue(config, {"layers": 1, "width_1": 256})
    params = params_from_settings(config, {"hidden": [64]}, "--set")
    storage = InMemoryStorage()
    search(storage, config, 1)
    found = propose(storage, config, 1, params)
    assert train_config(config, found.params, 1).hidden == (64,)
    # What is left open is chosen so that the whole obeys the constraint.
    for number in range(2, 8):
        assert propose(storage, config, number, {"layers": 1}).params["width_1"] <= 64


def test_nsgaii_goes_from_generation_to_generation() -> None:
    storage = InMemoryStorage()
    config = make("nsgaii", repeats="replicate")
    found = search(storage, config, 160)
    study = optuna.load_study(study_name=config.name, storage=storage)
    generations = [
        trial.system_attrs["NSGAIISampler:generation"] for trial in study.get_trials(deepcopy=False)
    ]
    assert (generations[0], generations[-1]) == (0, 3)
    rates = [trained.learning_rate == 3e-3 for trained in found]
    assert sum(rates[-50:]) > sum(rates[:50]), "it has learnt which rate is on the front"


def test_of_a_long_study_the_sampler_sees_the_whole_front() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    front = {5, 700, 1400}
    study.add_trials(
        optuna.trial.create_trial(values=[1.0 / number, number] if number in front else [9e9, 9e9 + number])
        for number in range(1500)
    )
    trials = study.get_trials(deepcopy=False)
    for number in (1500, 1501):
        assert front <= {trial.number for trial in shown(trials, number)}


def test_a_study_whose_constraint_nothing_meets_is_not_created(data_file: Path, database: Database) -> None:
    from search.cli.create import create_studies
    from storage.studies import list_studies

    config = make(data={"files": [str(data_file)]}, constraints={"parameters": {"at_most": 1000}})
    with pytest.raises(ConfigError, match="the smallest network of the space"):
        create_studies(database, config)
    assert list_studies(database) == []
