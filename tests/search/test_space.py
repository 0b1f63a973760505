from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution

from search.propose.rows import scale_batches
from search.propose.space import distributions, extreme_configs, grid_points, train_config, used_params
from search.study import StudyConfig, StudyFile, study_from_values
from trainer.config import TrainConfig, dump_config
from trainer.errors import ConfigError
from trainer.networks.activations import ACTIVATIONS


def study(**values: Any) -> StudyConfig:
    limits = {} if "rows" in values else {"limits": {"trials": 10}}
    return study_from_values({"name": "tiny", **limits, **values}, "test")


FIXED = {"dropout": 0.0, "learning_rate": 1e-3, "batch_size": 64, "weight_decay": 0.0}


def test_the_space_is_flat_up_to_the_deepest_network() -> None:
    space = distributions(study(space={"layers": {"low": 1, "high": 3}}))
    assert [name for name in space if name.startswith("width_")] == ["width_1", "width_2", "width_3"]
    assert [name for name in distributions(study()) if name.startswith("width_")][-1] == "width_4"


def test_widths_beyond_the_layers_are_neither_trained_nor_shown() -> None:
    params = {"layers": 2, "width_1": 64, "width_2": 32, "width_3": 96, "width_4": 128, "activation": "silu"}
    config = train_config(study(space=FIXED), params, number=0)
    assert config.hidden == (64, 32)
    assert used_params(params) == {"layers": 2, "width_1": 64, "width_2": 32, "activation": "silu"}


def test_a_fixed_value_is_no_parameter_but_is_trained_with() -> None:
    config = study(space={"layers": 2, "width": {"choices": [8, 16]}, **FIXED, "batch_size": 32})
    assert set(distributions(config)) == {"width_1", "width_2", "activation"}
    trained = train_config(config, {"width_1": 8, "width_2": 16, "activation": "tanh"}, number=0)
    assert trained.hidden == (8, 16)
    assert trained.batch_size == 32


def test_hidden_can_be_fixed() -> None:
    config = study(training={"hidden": [8, 4]}, space=FIXED)
    assert set(distributions(config)) == {"activation"}
    assert train_config(config, {"activation": "relu"}, number=0).hidden == (8, 4)


def test_activations_with_a_kink_are_searched_where_they_are_named() -> None:
    by_default = distributions(study())["activation"].choices  # type: ignore[attr-defined]
    assert by_default == tuple(name for name in ACTIVATIONS if name != "relu")
    named = study(space={"activation": {"choices": ["relu", "celu"]}})
    assert distributions(named)["activation"].choices == ("relu", "celu")  # type: ignore[attr-defined]
    assert train_config(study(training={"activation": "relu"}), {}, 0).activation == "relu"
    # A study that began with a version that searched relu by default still does.
    record = dump_config(study(space={"activation": {"choices": list(ACTIVATIONS)}}))
    for space in ({}, {"activation": "default"}):
        file = StudyFile({"name": "tiny", "limits": {"trials": 10}, "space": space}, "test", Path())
        again = file.config(lambda name: record)
        assert distributions(again)["activation"].choices == tuple(ACTIVATIONS)  # type: ignore[attr-defined]


def test_seeds_differ_by_trial_and_study_and_can_be_fixed() -> None:
    config = study(training={"hidden": [8]})
    seeds = [
        train_config(c, {}, n).seed for c in (config, study(seed=1, training={"hidden": [8]})) for n in (0, 1)
    ]
    assert len(set(seeds)) == 4
    assert train_config(config, {}, 0).seed == seeds[0]
    assert train_config(study(training={"hidden": [8], "seed": 5}), {}, 1).seed == 5


def test_a_grid_has_each_architecture_once() -> None:
    space = FIXED | {"layers": {"low": 1, "high": 2, "step": 1}, "width": {"low": 8, "high": 16, "step": 8}}
    config = study(space=space | {"activation": {"choices": ["silu", "tanh"]}}, sampler={"kind": "grid"})
    points = grid_points(config)
    trained = {(c.hidden, c.activation) for c in (train_config(config, p, 0) for p in points)}
    assert len(points) == len(trained) == (2 + 4) * 2


def test_a_grid_too_large_to_list_is_refused() -> None:
    values = [n / 1000 for n in range(400)]
    space = {"dropout": {"choices": values}, "weight_decay": {"choices": values}, "learning_rate": 1e-3}
    with pytest.raises(ConfigError, match="more than 100,000 points"):
        grid_points(study(space=space, sampler={"kind": "grid"}))


ROWS = [
    {"label": "wide", "training": {"hidden": [128], "batch_size": 8192}},
    {"label": "deep", "training": {"hidden": [16, 8], "learning_rate": 1e-5}},
]


def test_rows_are_trained_as_they_stand() -> None:
    config = study(rows=ROWS, training={"epochs": 30, "optimizer": "adam"})
    trained = train_config(config, {}, number=1)
    assert trained == TrainConfig(
        hidden=(16, 8), learning_rate=1e-5, epochs=30, optimizer="adam", seed=trained.seed
    )


def test_batches_of_rows_keep_the_steps_an_epoch() -> None:
    config = study(rows=ROWS, scale_batch_from=691_918, training={"batch_size": 512})
    scaled = scale_batches(config, 4_000)
    assert [train_config(scaled, {}, n).batch_size for n in (0, 1)] == [47, 3]
    assert [train_config(scale_batches(config, 40), {}, n).batch_size for n in (0, 1)] == [1, 1]


def test_batches_stay_where_the_data_is_what_the_rows_were_meant_for() -> None:
    config = study(rows=ROWS)
    assert scale_batches(config, 4_000) == config


ARCHITECTURES = {"choices": [[160, 128, 96], [256], [32, 16]]}


def test_whole_architectures_can_be_listed() -> None:
    config = study(space=FIXED | {"hidden": ARCHITECTURES, "activation": "celu"})
    assert distributions(config) == {"hidden": CategoricalDistribution(("160-128-96", "256", "32-16"))}
    assert [train_config(config, point, 0).hidden for point in sorted_points(config)] == [
        (160, 128, 96),
        (256,),
        (32, 16),
    ]
    (largest,) = extreme_configs(config)
    assert largest.hidden == (160, 128, 96)


def sorted_points(config: StudyConfig) -> list[dict[str, Any]]:
    return sorted(grid_points(config), key=lambda point: str(point["hidden"]))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"hidden": ARCHITECTURES, "layers": 2}, "space.hidden and space.layers exclude each other"),
        (
            {"hidden": {"choices": [[0]]}},
            "space.hidden.choices.0.0: input should be greater than or equal to 1",
        ),
        (
            {"hidden": [[32], [16]]},
            "space.hidden: a list alone is not a search range: write {choices: [[32], [16]]}",
        ),
        (
            {"hidden": [32, 16]},
            "space.hidden: a list alone is not a search range: write {choices: [[32, 16]]}",
        ),
        ({"hidden": {"choices": [[8], [8]]}}, "space.hidden: a choice is listed twice"),
    ],
)
def test_architectures_that_cannot_be_searched_are_refused(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        study(space=space)
    assert said in str(raised.value)
