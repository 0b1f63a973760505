from __future__ import annotations

import math

import pytest

from trainer.config import TrainConfig
from trainer.fitting.schedules import PLATEAU_EPOCHS, next_learning_rate


def test_constant_stays() -> None:
    config = TrainConfig(schedule="constant", learning_rate=0.01)
    assert [next_learning_rate(config, [1.0] * n) for n in (0, 1, 500)] == [0.01, 0.01, 0.01]


def test_cosine_goes_from_the_full_rate_to_zero_over_the_epochs() -> None:
    config = TrainConfig(schedule="cosine", learning_rate=0.01, epochs=10)
    rates = [next_learning_rate(config, [1.0] * n) for n in range(11)]
    assert rates[0] == 0.01
    assert rates[5] == pytest.approx(0.005)
    assert rates[10] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)
    # As slowly near both ends: a half cosine, not a line.
    assert rates[1] == pytest.approx(0.01 * (1 + math.cos(math.pi / 10)) / 2)


def test_plateau_halves_each_time_the_validation_error_stops_falling() -> None:
    config = TrainConfig(schedule="plateau", learning_rate=0.08)
    falling = [10.0 / n for n in range(1, 31)]
    assert next_learning_rate(config, falling) == 0.08
    stuck = [*falling, *[5.0] * (PLATEAU_EPOCHS - 1)]
    assert next_learning_rate(config, stuck) == 0.08
    assert next_learning_rate(config, [*stuck, 5.0]) == 0.04
    # An equal error is no better one, and the count begins anew after a halving.
    best = falling[-1]
    assert next_learning_rate(config, [*stuck, 5.0, *[best] * (PLATEAU_EPOCHS - 1)]) == 0.04
    assert next_learning_rate(config, [*stuck, 5.0, *[best] * PLATEAU_EPOCHS]) == 0.02
    # A better one within the wait gives it all of its time again.
    saved = [*stuck, best / 2, *[5.0] * (PLATEAU_EPOCHS - 1)]
    assert next_learning_rate(config, saved) == 0.08
