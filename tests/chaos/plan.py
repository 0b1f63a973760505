"""Which faults come when; the same seed gives the same plan."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["kill", "terminate", "stop", "full disk", "postgresql", "mlflow", "relay"]

DESCRIPTIONS: Final[Mapping[Kind, str]] = {
    "kill": "workers killed (SIGKILL)",
    "terminate": "workers asked to stop (SIGTERM)",
    "stop": "workers paused, and resumed after another worker took their trial (SIGSTOP, SIGCONT)",
    "full disk": "checkpoints that failed on a full disk",
    "postgresql": "PostgreSQL crashed and recovered",
    "mlflow": "MLflow server killed, and unavailable for a while",
    "relay": "relay killed between delivery and acknowledgement",
}


@dataclass(frozen=True)
class FaultPlan:
    """A study, and the faults that it meets.

    Attributes
    ----------
    counts : how many faults of each kind must have an effect
    gap : mean time between two faults, s
    away : time until a killed MLflow server is started again, s
    lease : time that a worker without heartbeat keeps its trial, s
    """

    seed: int
    trials: int
    workers: int
    epochs: int
    counts: Mapping[Kind, int]
    gap: float
    away: float
    lease: float

    def faults(self) -> list[tuple[float, Kind]]:
        """Each fault, with its delay after the one before, s."""
        chance = random.Random(self.seed)
        kinds = [kind for kind, count in self.counts.items() for _ in range(count)]
        chance.shuffle(kinds)
        return [(chance.uniform(0.2, 1.8) * self.gap, kind) for kind in kinds]


def long_plan(seed: int) -> FaultPlan:
    """A plan of about ten minutes on two cores."""
    counts: Mapping[Kind, int] = {
        "kill": 20,
        "terminate": 5,
        "stop": 5,
        "full disk": 3,
        "postgresql": 5,
        "mlflow": 5,
        "relay": 5,
    }
    # A killed MLflow server is back after a minute, a third of which it takes to start.
    return FaultPlan(seed, 60, 4, 64, counts, gap=8.0, away=40.0, lease=8.0)


def short_plan(seed: int) -> FaultPlan:
    """A plan with each kind of fault once."""
    counts: Mapping[Kind, int] = dict.fromkeys(DESCRIPTIONS, 1)
    return FaultPlan(seed, 8, 2, 20, counts, gap=3.0, away=3.0, lease=6.0)
