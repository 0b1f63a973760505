"""Which settings make two trainings the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Set

import pytest

from trainer.config import (
    SAME_CONFIGURATION,
    SAME_NUMBERS,
    SAME_TRAINING,
    Role,
    TrainConfig,
    compared_settings,
    dump_config,
)


@pytest.mark.parametrize(
    ("roles", "left_out"),
    [
        (SAME_NUMBERS, {"checkpoint_seconds"}),
        (SAME_TRAINING, {"checkpoint_seconds", "device"}),
        (SAME_CONFIGURATION, {"checkpoint_seconds", "device", "threads", "seed"}),
    ],
)
def test_keys_and_checkpoints_of_earlier_versions_stay_valid(roles: Set[Role], left_out: set[str]) -> None:
    """Databases and checkpoints hold what was compared: leaving out more or less would disown them."""
    settings = dump_config(TrainConfig())
    compared = {name: value for name, value in settings.items() if name not in left_out}
    assert compared_settings(settings, roles) == compared
    assert settings.keys() == {field.name for field in dataclasses.fields(TrainConfig)}


def test_a_setting_of_another_version_decides_the_result() -> None:
    settings = {"seed": 1, "invented_later": 2, "width_1": 8}
    assert compared_settings(settings, SAME_CONFIGURATION) == {"invented_later": 2, "width_1": 8}
