"""What every sampler must hold."""

from __future__ import annotations

import itertools
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, json_to_distribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState, create_trial

from search.errors import SearchError
from search.methods import SAMPLERS, Sampler
from search.propose.history import ShownStudy
from search.propose.samplers import make_sampler, propose, trial_limit
from search.propose.space import distributions, train_config
from search.study import StudyConfig, study_from_values

TRIALS = 6
STARTUP = 3

STEPPED = {
    "layers": {"low": 1, "high": 3, "step": 1},
    "width": {"low": 8, "high": 64, "step": 8},
    "dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
    "learning_rate": {"choices": [1e-4, 1e-3, 1e-2]},
    "batch_size": 64,
    "weight_decay": 0.0,
    "activation": {"choices": ["silu", "tanh"]},
}


@pytest.fixture
def storage() -> BaseStorage:
    return InMemoryStorage()


def make(kind: str, storage: BaseStorage, **values: Any) -> StudyConfig:
    """A study of its own."""
    sampler = {"kind": kind} | ({"startup_trials": STARTUP} if kind in ("tpe", "gp") else {})
    several = len(values.get("objectives", ())) > 1
    pruner = {"kind": "none" if SAMPLERS[kind].needs_values or several else "hyperband"}
    space = {"space": STEPPED} if kind == "grid" else {}
    name = f"{kind}-{len(storage.get_all_studies())}"
    config = study_from_values(
        {"name": name, "sampler": sampler, "pruner": pruner, "limits": {"trials": 20}, **space, **values},
        "test",
    )
    directions = ["minimize"] * len(config.objectives)
    optuna.create_study(study_name=name, storage=storage, directions=directions)
    return config


def propose_and_keep(storage: BaseStorage, config: StudyConfig, trial: optuna.Trial) -> dict[str, Any]:
    """Parameters of a trial, which Optuna then has."""
    proposal = propose(storage, config, trial.number)
    for name, (value, distribution) in proposal.stored.items():
        storage.set_trial_param(trial._trial_id, name, value, json_to_distribution(distribution))
    for key, state in proposal.sampler_state.items():
        storage.set_trial_system_attr(trial._trial_id, key, state)
    return proposal.params


def search(storage: BaseStorage, config: StudyConfig, trials: int = TRIALS) -> list[dict[str, Any]]:
    """Proposals of a whole study whose objective prefers narrow networks and a large learning rate."""
    study = optuna.load_study(study_name=config.name, storage=storage)
    found = []
    for _ in range(trials):
        trial = study.ask()
        params = propose_and_keep(storage, config, trial)
        found.append(params)
        trained = train_config(config, params, trial.number)
        value = sum(trained.hidden) / 64 + abs(trained.learning_rate - 1e-2)
        study.tell(trial, [value, float(len(trained.hidden))][: len(config.objectives)])
    return found


@pytest.fixture(params=SAMPLERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_proposals_lie_in_the_space(kind: str, storage: BaseStorage) -> None:
    config = make(kind, storage)
    space = distributions(config)
    for params in search(storage, config):
        assert all(
            space[name]._contains(space[name].to_internal_repr(value)) for name, value in params.items()
        )
        assert {name for name in params if name.startswith("width_")} == {
            f"width_{n}" for n in range(1, params["layers"] + 1)
        }


def test_a_study_can_be_repeated(kind: str, storage: BaseStorage) -> None:
    first, again = (search(storage, make(kind, storage, seed=3)) for _ in range(2))
    assert first == again


def test_seeds_differ(kind: str, storage: BaseStorage) -> None:
    assert search(storage, make(kind, storage, seed=3), 3) != search(storage, make(kind, storage, seed=4), 3)


def test_workers_side_by_side_do_not_propose_the_same(kind: str, storage: BaseStorage) -> None:
    config = make(kind, storage)
    study = optuna.load_study(study_name=config.name, storage=storage)
    running = [study.ask() for _ in range(5)]
    found = [propose_and_keep(storage, config, trial) for trial in running]
    assert all(one != other for one, other in itertools.combinations(found, 2))


@pytest.mark.parametrize("kind", [kind for kind in SAMPLERS if kind != "grid"])
def test_what_a_person_asked_for_stays(kind: str, storage: BaseStorage) -> None:
    config = make(kind, storage)
    search(storage, config, STARTUP)
    wanted = {"layers": 2, "width_1": 64, "width_2": 32, "dropout": 0.0}
    params = propose(storage, config, STARTUP, wanted).params
    assert params.items() >= wanted.items()
    assert set(params) == {*distributions(config)} - {"width_3", "width_4"}


def test_a_fixed_value_needs_no_sampler(storage: BaseStorage) -> None:
    space = {"learning_rate": {"low": 1e-3, "high": 1e-3}, "activation": {"choices": ["celu"]}}
    config = make("tpe", storage, space=space)
    found = search(storage, config)
    assert {(params["learning_rate"], params["activation"]) for params in found} == {(1e-3, "celu")}


def test_a_sampler_that_keeps_state_in_attributes_of_trials_is_refused(
    storage: BaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attributes are not recorded, so it would propose at random for ever."""
    genetic = Sampler(lambda config, seed: optuna.samplers.NSGAIISampler(population_size=2, seed=seed))
    monkeypatch.setitem(SAMPLERS, "random", genetic)
    with pytest.raises(SearchError, match="NSGAIISampler keeps its state in the attribute 'NSGA"):
        search(storage, make("random", storage))


def test_tpe_learns_all_widths_together(storage: BaseStorage) -> None:
    # Its proposals come from the joint space only if each trial has all parameters.
    config = make("tpe", storage)
    search(storage, config)
    frozen = storage.get_all_trials(storage.get_study_id_from_name(config.name))
    assert {frozenset(trial.params) for trial in frozen} == {frozenset(distributions(config))}
    sampler = make_sampler(config, TRIALS)
    study = ShownStudy(config.name, storage, sampler, TRIALS, distributions(config), lambda: frozen)
    assert set(sampler.infer_relative_search_space(study, frozen[-1])) == set(distributions(config))


def test_a_grid_is_used_up_once(storage: BaseStorage) -> None:
    space = STEPPED | {"width": {"choices": [8, 16]}, "layers": 2, "dropout": 0.0, "learning_rate": 1e-3}
    config = make("grid", storage, space=space, limits={"trials": 1000})
    assert trial_limit(config) == 8
    found = search(storage, config, 8)
    assert len({tuple(p.items()) for p in found}) == 8


@pytest.mark.parametrize("kind", ["tpe", "random", "qmc"])
def test_a_finite_space_is_tried_without_repeating_a_point(kind: str, storage: BaseStorage) -> None:
    space = {
        "layers": {"choices": [1, 2]},
        "width": {"choices": [8, 16]},
        "dropout": {"low": 0.1, "high": 0.3, "step": 0.1},  # 0.30000000000000004 in Optuna's steps
        "activation": {"choices": ["celu"]},
        "batch_size": {"choices": [16]},
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
    }
    config = make(kind, storage, space=space)
    study = optuna.load_study(study_name=config.name, storage=storage)
    foreign = create_trial(value=1.0, params={"x": 1.0}, distributions={"x": FloatDistribution(0, 2)})
    study.add_trial(foreign)
    found = []
    for n in range((2 + 4) * 3):  # two networks of one layer, four of two
        trial = study.ask()
        params = propose_and_keep(storage, config, trial)
        found.append(
            tuple(sorted((k, round(v, 3) if isinstance(v, float) else v) for k, v in params.items()))
        )
        # One that fails is not tried again before the others.
        study.tell(trial, None if n % 4 == 0 else float(n), state=TrialState.FAIL if n % 4 == 0 else None)
    assert len(set(found)) == len(found)
    assert propose(storage, config, study.ask().number).used_up


def test_rows_come_in_their_order(storage: BaseStorage) -> None:
    rows = [{"label": "a", "training": {"hidden": [8]}}, {"label": "b", "training": {"hidden": [16, 4]}}]
    config = study_from_values({"name": "rows", "rows": rows}, "test")
    optuna.create_study(study_name="rows", storage=storage)
    assert trial_limit(config) == 2
    assert [p["layers"] for p in search(storage, config, 2)] == [1, 2]
    first, second = storage.get_all_trials(storage.get_study_id_from_name("rows"))
    assert "width_2" not in first.params
    assert second.params["width_2"] == 4
