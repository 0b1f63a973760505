"""Named AEV constants as a dimension of a search: ``features.choices``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution

from search.promote.plan import training_key
from search.propose.constraints import obeys, shrunk
from search.propose.earlier import copy_of, learned
from search.propose.enqueued import params_from_settings
from search.propose.space import distributions, extreme_configs, train_config
from search.study import StudyConfig, study_from_record, study_from_values
from search.work.sizing import training_gib
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker, architecture
from storage.database import Database
from storage.studies import Budget, create_study
from storage.trials.views import trial_rows
from trainer.config import (
    AEVConfig,
    DataConfig,
    FeatureConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
    dump_config,
    load_config,
)
from trainer.errors import ConfigError
from trainer.fitting.scheduler import make_packs
from trainer.fitting.training import Training
from trainer.networks.files import load_model
from trainer.progress import no_progress
from trainer.reporting import SilentReporter
from trainer.run import run_training
from trainer.task import Task, prepare_task

CPU = torch.device("cpu")
SMALL = {"radial_shifts": [0.9, 1.9, 2.9], "angular_shifts": [0.9, 2.1], "angle_sections": 2}
CHOICES: dict[str, Any] = {"ani": {}, "small": SMALL}
CONFIG = TrainConfig(hidden=(4,), epochs=1, batch_size=32, device="cpu", precision="float64")


def study(**values: Any) -> StudyConfig:
    limits = {} if "rows" in values else {"limits": {"trials": 10}}
    features = {"features": {"choices": CHOICES}}
    return study_from_values({"name": "tiny", **limits, **features, **values}, "test")


@pytest.fixture(scope="module")
def both(data_file: Path, feature_root: Path) -> Task:
    features = load_config(FeatureConfig, {"choices": CHOICES}, "test")
    return prepare_task(
        TaskConfig(DataConfig(files=(str(data_file),)), features=features), feature_root, no_progress
    )


def with_features(name: str) -> TrainConfig:
    return dataclasses.replace(CONFIG, features=name)


def test_a_study_searches_among_its_named_constants() -> None:
    config = study()
    assert distributions(config)["features"] == CategoricalDistribution(("ani", "small"))
    assert train_config(config, {"features": "small", "layers": 1, "width_1": 64}, 0).features == "small"
    assert extreme_configs(config)[0].features == "ani"  # with the longest AEVs
    assert study_from_record(dump_config(config), "tiny").space == config.space
    given = {"features": "small"}
    assert params_from_settings(config, given, "test") == given
    with pytest.raises(ConfigError, match=r"features: the study searches ani, small \(got 'large'\)"):
        params_from_settings(config, {"features": "large"}, "test")


def test_an_earlier_study_is_learned_from_by_the_constants_of_its_trials(
    database: Database, data_file: Path, both: Task
) -> None:
    """Not by their names: one name may stand for different constants, and one of them needs no name."""
    shared = {
        "data": {"files": [str(data_file)]},
        "training": {"hidden": [8], "epochs": 1, "device": "cpu"},
        "space": {"activation": {"choices": ["celu", "silu"]}},
    }
    first = study(**shared, sampler={"kind": "random"}, limits={"trials": 6})
    made = create_study(database, first.name, dump_config(first), Budget(trials=6))
    Worker(database, made, first, both, SilentWatcher(), StopRequest(), start_relay=lambda _: None).work()
    used = [(row.config or {})["features"] for row in trial_rows(database, made)]
    assert set(used) == {"ani", "small"}

    ours = {"choices": {"small": CHOICES["ani"], "tiny": CHOICES["small"], "ani": {"zeta": 8.0}}}
    copy = copy_of(study(**shared, name="second", features=ours), made)
    found = {each["trial"]: each["settings"]["features"] for each in copy.results}
    assert [found[trial] for trial in range(6)] == [{"ani": "small", "small": "tiny"}[name] for name in used]
    other = {"choices": {"small": CHOICES["ani"], "ani": {"zeta": 8.0}}}
    copy = copy_of(study(**shared, name="third", features=other), made)
    assert len(copy.results) == used.count("ani"), "the others have constants that this study cannot have"
    # A copy of an earlier version lacks the constants: they are open, as they were then.
    old = [{**each, "settings": without_features(each["settings"])} for each in copy.results]
    assert len(
        learned(study(**shared, features=other), [dataclasses.replace(copy, results=old)]).trials
    ) == len(old)
    single = copy_of(study(**shared, name="fourth", features={}), made)
    assert {each["settings"]["features"] for each in single.results} == {None}


def without_features(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "features"}


def test_constraints_count_the_parameters_with_the_features_of_a_trial() -> None:
    limit = {"constraints": {"parameters": {"at_most": 4 * (385 * 32 + 33)}}}
    config = study(space={"layers": 1, "width": {"choices": [32, 64], "per_element": True}}, **limit)
    widths = {f"width_{element}_1": 32 for element in ("H", "C", "N", "O")}
    wide = dict.fromkeys(widths, 64)
    assert obeys(config, {**widths, "features": "ani"})
    assert not obeys(config, {**wide, "features": "ani"})
    assert obeys(config, {**wide, "features": "small"})
    assert obeys(config, shrunk(config, {**wide, "features": "ani"}, {}))
    assert shrunk(config, {**wide, "features": "ani"}, {"features": "ani"})["features"] == "ani"


def test_they_can_be_fixed_listed_and_given_to_rows() -> None:
    fixed = study(training={"features": "small"})
    assert "features" not in distributions(fixed)
    assert train_config(fixed, {"layers": 1, "width_1": 64}, 0).features == "small"
    listed = study(space={"features": {"choices": ["small"]}})
    assert distributions(listed)["features"] == CategoricalDistribution(("small",))
    rows = study(rows=[{"label": name, "training": {"features": name}} for name in CHOICES])
    assert distributions(rows)["features"] == CategoricalDistribution(("ani", "small"))


def test_a_choice_has_what_it_leaves_open_from_the_shared_constants() -> None:
    values = {"aev": {"elements": ["H", "O"], "zeta": 14.1}, "choices": {"a": {}, "b": {"zeta": 8.0}}}
    features = load_config(FeatureConfig, values, "test")
    assert features.choices == {
        "a": AEVConfig(elements=("H", "O"), zeta=14.1),
        "b": AEVConfig(elements=("H", "O"), zeta=8.0),
    }


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"choices": {}}, "features: choices: name AEV constants, or leave the setting out"),
        ({"choices": {"a b": {}}}, "features: choices: 'a b' is no name"),
        ({"choices": {"": {}}}, "features: choices: '' is no name"),
        ({"choices": {"a": {"radial_cutof": 4.0}}}, "features.choices.a.radial_cutof: no such setting"),
        ({"choices": {"a": {}, "b": {}}}, "features: choices.b: has the same constants as a"),
        ({"choices": {"a": {"elements": ["H"]}}}, "set the elements of all choices in features.aev"),
        ({"choices": {"a": {"angular_cutoff": 6.0}}}, "angular_cutoff must be below radial_cutoff = 5.2"),
        ({"choices": {"a": {"radial_cutoff": 4.0}}}, "radial_shifts: 4.93125 is not below radial_cutoff = 4"),
        ({"choices": {"a": 5}}, "features.choices.a: input should be a mapping (got 5)"),
    ],
)
def test_wrong_constants_get_one_line(features: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        study(features=features)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"training": {"features": "large"}},
            "training.features: must be one of features.choices: ani, small",
        ),
        ({"space": {"features": {"choices": ["large"]}}}, 'ani, small (got "large")'),
        ({"rows": [{"label": "one"}]}, "rows: one: features: must be one of features.choices: ani, small"),
        ({"features": {}, "training": {"features": "small"}}, "'small' needs features.choices"),
    ],
)
def test_wrong_names_get_one_line(values: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        study(**values)
    assert said in str(raised.value)


def test_a_single_training_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"training\.features: must be one of features\.choices"):
        load_config(RunConfig, {"features": {"choices": CHOICES}}, "test")


def test_a_training_has_the_features_that_it_names(both: Task, task: Task, tmp_path: Path) -> None:
    assert both.of(with_features("ani")).features.length == 384
    assert both.of(with_features("small")).features.length == 3 * 4 + 10 * 4
    assert architecture(with_features("small"), both) == "52-4-1 celu, features small"
    run_training(both, with_features("small"), tmp_path / "small", SilentReporter())
    saved = load_model(tmp_path / "small" / "model.safetensors")
    assert saved.aev.angle_sections == 2
    assert saved.model.config.features == "small"
    # The same constants without a name give the same numbers, and the same key of a training.
    named = run_training(both, with_features("ani"), tmp_path / "ani", SilentReporter())
    unnamed = run_training(task, CONFIG, tmp_path / "unnamed", SilentReporter())
    assert named.best_val_mae == unnamed.best_val_mae
    prints = both.of(with_features("ani")).fingerprints
    assert prints == task.fingerprints
    assert training_key(with_features("ani"), prints) == training_key(CONFIG, task.fingerprints)


def test_trainings_with_other_features_share_no_batches(both: Task) -> None:
    trainings = [Training(both, with_features(name), None) for name in ("ani", "small", "ani")]
    assert sorted(len(pack.trainings) for pack in make_packs(trainings)) == [1, 2]


def test_longer_features_are_taken_to_need_more_memory(both: Task) -> None:
    small, ani = (training_gib(both, with_features(name), CPU) for name in ("small", "ani"))
    assert small < ani


def test_a_smaller_task_keeps_the_choices(both: Task) -> None:
    split = dataclasses.replace(both.split)
    smaller = both.with_split(split)
    assert smaller.of(with_features("small")).split is split
    assert smaller.of(with_features("small")).features is both.of(with_features("small")).features
