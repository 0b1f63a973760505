from __future__ import annotations

from typing import Any

import pytest

from search.propose.enqueued import enqueued, params_from_settings
from search.propose.samplers import propose
from search.study import StudyConfig, study_from_values
from storage.database import Database
from storage.studies import Budget, create_study
from storage.trials.queue import WorkerInfo, claim_trial
from trainer.config import dump_config
from trainer.errors import ConfigError


def study_config(**changes: Any) -> StudyConfig:
    values = {
        "name": "tiny",
        "training": {"optimizer": "adam", "epochs": 9},
        "space": {"layers": {"low": 1, "high": 2}, "activation": {"choices": ["silu", "celu"]}},
    }
    return study_from_values(values | changes, "test")


def test_the_next_trial_is_the_one_that_was_enqueued(database: Database) -> None:
    config = study_config()
    study = create_study(database, "tiny", dump_config(config), Budget())
    params = params_from_settings(config, {"hidden": [64, 32], "learning_rate": 1e-3}, "test")
    assert params == {"layers": 2, "width_1": 64, "width_2": 32, "learning_rate": 1e-3}
    enqueued(study, params)
    worker = WorkerInfo("w1", "here", 1, "cpu", {})
    proposed = []
    for number in (0, 1):
        claim = claim_trial(database, study, worker)
        assert claim is not None
        assert claim.number == number
        proposed.append(propose(database.optuna, config, number, claim.asked_for).params)
    assert proposed[0].items() >= params.items()
    assert proposed[0]["activation"] in ("silu", "celu")  # what was left open was proposed
    assert proposed[1]["learning_rate"] != 1e-3


def test_a_setting_that_all_trials_share_may_be_repeated() -> None:
    assert params_from_settings(study_config(), {"optimizer": "adam", "activation": "silu"}, "test") == {
        "activation": "silu"
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "sets nothing"),
        ({"layer": 2}, "layer: no such setting"),
        ({"dropout": 2.0}, "dropout: input should be less than 1"),
        ({"activation": "tanh"}, "activation: the study searches silu, celu (got 'tanh')"),
        ({"learning_rate": 0.5}, "learning_rate: the study searches 0.0001 to 0.01 (got 0.5)"),
        ({"hidden": [33]}, "width_1: the study searches 32 to 256 in steps of 32 (got 33)"),
        ({"hidden": [32, 32, 32]}, "layers: the study searches 1 to 2 (got 3)"),
        ({"optimizer": "adamw"}, "optimizer: is 'adam' in all trials of study 'tiny' (got 'adamw')"),
        ({"seed": 1}, "seed: is not a parameter of study 'tiny'"),
    ],
)
def test_what_no_trial_of_the_study_can_be_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        params_from_settings(study_config(), values, "wish.yaml")
    assert str(raised.value).startswith(f"wish.yaml: {said}")


def test_rows_and_grids_take_no_enqueued_configurations() -> None:
    space = {
        "activation": {"choices": ["silu", "celu"]},
        **{name: {"choices": [0.01]} for name in ("dropout", "learning_rate", "weight_decay")},
    }
    grid = study_config(sampler={"kind": "grid"}, training={"hidden": [8]}, space=space)
    rows = study_from_values({"name": "tiny", "rows": [{"label": "one"}]}, "test")
    for config, what in ((grid, "points of a grid"), (rows, "rows")):
        with pytest.raises(ConfigError, match=what):
            params_from_settings(config, {"activation": "silu"}, "test")


def test_a_listed_architecture_can_be_enqueued() -> None:
    config = study_config(space={"hidden": {"choices": [[64, 32], [128]]}})
    assert params_from_settings(config, {"hidden": [64, 32]}, "test") == {"hidden": "64-32"}
    with pytest.raises(ConfigError, match=r"hidden: the study searches 64-32, 128 \(got '16'\)"):
        params_from_settings(config, {"hidden": [16]}, "test")
