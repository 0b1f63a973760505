"""Networks whose widths differ by element: in the study file, the search space and the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.cli.create import create_studies
from search.dimensions import ElementRange
from search.propose.enqueued import params_from_settings
from search.propose.space import (
    distributions,
    example_configs,
    extreme_configs,
    grid_points,
    train_config,
    used_params,
)
from search.study import StudyConfig, StudyFile, study_from_record, study_from_values
from search.work.worker import architecture
from storage.database import Database
from trainer.config import TrainConfig, dump_config, load_config
from trainer.errors import ConfigError
from trainer.fingerprints import digest_of
from trainer.task import Task

ANI_1X: dict[str, Any] = {"H": [160, 128, 96], "C": [144, 112, 96], "N": [128, 112, 96], "O": [128, 112, 96]}
WATER = {"aev": {"elements": ["H", "O"]}}


def study(**values: Any) -> StudyConfig:
    limits = {} if "rows" in values else {"limits": {"trials": 10}}
    return study_from_values({"name": "tiny", **limits, **values}, "test")


def searched(**width: Any) -> StudyConfig:
    space = {"layers": {"low": 1, "high": 2}, "width": {"per_element": True, **width}}
    return study(features=WATER, space=space)


def test_each_layer_of_each_element_has_a_width_of_its_own() -> None:
    config = searched()
    widths = [name for name in distributions(config) if name.startswith("width")]
    assert widths == ["width_H_1", "width_H_2", "width_O_1", "width_O_2"]
    params = {"width_H_1": 32, "width_H_2": 64, "width_O_1": 96, "width_O_2": 128}
    assert train_config(config, {"layers": 2, **params}, 0).hidden == {"H": (32, 64), "O": (96, 128)}
    assert train_config(config, {"layers": 1, **params}, 0).hidden == {"H": (32,), "O": (96,)}
    assert used_params({"layers": 1, **params}) == {"layers": 1, "width_H_1": 32, "width_O_1": 96}
    assert len({str(each.hidden) for each in example_configs(config, 8)}) > 4
    assert extreme_configs(config)[0].hidden == {"H": (256, 256), "O": (256, 256)}


def test_a_grid_has_each_combination_of_widths_once() -> None:
    space = {"layers": 1, "width": {"choices": [8, 16], "per_element": True}}
    fixed = {
        "dropout": 0.0,
        "learning_rate": 1e-3,
        "batch_size": 64,
        "weight_decay": 0.0,
        "activation": "celu",
    }
    config = study(features=WATER, space={**space, **fixed}, sampler={"kind": "grid"})
    found = {str(train_config(config, point, 0).hidden) for point in grid_points(config)}
    assert found == {str({"H": (h,), "O": (o,)}) for h in (8, 16) for o in (8, 16)}


def test_a_record_keeps_the_range_that_the_file_leaves_open() -> None:
    record = dump_config(searched(low=64, high=128, step=64))
    assert study_from_record(record, "tiny").space == searched(low=64, high=128, step=64).space
    values = {"name": "tiny", "limits": {"trials": 10}, "space": {"width": {"per_element": True}}}
    again = StudyFile(values, "test", Path()).config(lambda name: record)
    assert again.space is not None
    assert again.space["width"] == ElementRange(64, 128, step=64)


def test_widths_of_the_literature_can_be_fixed_listed_and_given_to_rows(task: Task) -> None:
    expected = load_config(TrainConfig, {"hidden": ANI_1X}, "test").hidden
    fixed = study(training={"hidden": ANI_1X})
    assert train_config(fixed, {}, 0).hidden == expected
    listed = study(space={"hidden": {"choices": [[128], dict(reversed(ANI_1X.items()))]}})
    text = "H 160-128-96 | C 144-112-96 | N 128-112-96 | O 128-112-96"
    assert distributions(listed)["hidden"].choices == ("128", text)  # type: ignore[attr-defined]
    assert train_config(listed, {"hidden": text}, 0).hidden == expected
    rows = study(rows=[{"label": "ANI-1x", "training": {"hidden": ANI_1X}}])
    assert distributions(rows)["width_C_2"].choices == (112,)  # type: ignore[attr-defined]
    assert architecture(train_config(rows, {}, 0), task) == f"{text} celu"


def test_shared_widths_have_the_records_and_digests_that_they_had(task: Task) -> None:
    values = dump_config(TrainConfig(hidden=(128, 64)))
    assert values["hidden"] == [128, 64]
    assert digest_of(values["hidden"]) == digest_of([128, 64])
    assert architecture(TrainConfig(hidden=(128, 64)), task) == "384-128-64-1 celu"


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ({"H": [8]}, "no widths of C, N, O, but features.aev.elements = [H, C, N, O]"),
        ({**ANI_1X, "Cl": [8, 8, 8]}, "widths of Cl, which is not among features.aev.elements"),
        ({**ANI_1X, "O": [8]}, "all elements need the same number of layers (got H 3, C 3, N 3, O 1)"),
        ({**ANI_1X, "Xx": [8, 8, 8]}, "Xx is not the symbol of an element"),
        ({}, "give the widths of each element, or one list for all of them"),
    ],
)
def test_wrong_elements_get_one_line(hidden: Any, said: str) -> None:
    for given in ({"training": {"hidden": hidden}}, {"space": {"hidden": {"choices": [hidden]}}}):
        with pytest.raises(ConfigError) as raised:
            study(**given)
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="hidden"):
        study(rows=[{"label": "one", "training": {"hidden": hidden}}])


@pytest.mark.parametrize(
    ("width", "said"),
    [
        ({"per_element": 1}, "space.width: per_element is true or false"),
        ({"per_element": True, "low": 0, "high": 8}, "space.width.low: input should be greater"),
        ({"per_element": True, "low": 8, "high": 4}, "low must not be above high"),
        ({"per_element": True, "choices": [0]}, "space.width.choices.0: input should be greater"),
    ],
)
def test_wrong_ranges_get_one_line(width: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        study(space={"width": width})
    assert said in str(raised.value)


def test_widths_of_absent_elements_are_not_searched(database: Database, data_file: Path) -> None:
    config = study(data={"files": [str(data_file)]}, space={"width": {"per_element": True}})
    with pytest.raises(ConfigError) as raised:
        create_studies(database, config)
    said = str(raised.value)
    assert "the data have no N" in said
    assert "elements: [H, C, O]" in said


def test_enqueued_widths_may_be_shared_or_by_element() -> None:
    config = searched()
    of_both = {"layers": 1, "width_H_1": 64, "width_O_1": 64}
    assert params_from_settings(config, {"hidden": [64]}, "test") == of_both
    given = {"hidden": {"H": [64], "O": [32]}}
    assert params_from_settings(config, given, "test") == {**of_both, "width_O_1": 32}
    with pytest.raises(ConfigError, match="hidden: no widths of O"):
        params_from_settings(config, {"hidden": {"H": [64]}}, "test")
