"""Which faults come when; the same seed gives the same plan."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tests.chaos.study_files import StudyName

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
    study : which of the studies
    seeds : trainings of each finalist
    counts : how many faults of each kind must have an effect
    of_finalists : how many of these come when the further seeds of finalists are trained
    gap : mean time between two faults, s
    away : time until a killed MLflow server is started again, s
    lease : time that a worker without heartbeat keeps its trial, s
    """

    seed: int
    study: StudyName
    trials: int
    workers: int
    epochs: int
    seeds: int
    counts: Mapping[Kind, int]
    of_finalists: Mapping[Kind, int]
    gap: float
    away: float
    lease: float

    def faults(self) -> list[tuple[float, Kind]]:
        """Each fault, with its delay after the one before, s; those of finalists are the last."""
        chance = random.Random(self.seed)
        late = [kind for kind, count in self.of_finalists.items() for _ in range(count)]
        kinds = [
            kind for kind, count in self.counts.items() for _ in range(count - self.of_finalists.get(kind, 0))
        ]
        chance.shuffle(kinds)
        chance.shuffle(late)
        return [(chance.uniform(0.2, 1.8) * self.gap, kind) for kind in (*kinds, *late)]


def long_plan(seed: int, study: StudyName) -> FaultPlan:
    """A plan of about five minutes on two cores."""
    counts: Mapping[Kind, int] = {
        "kill": 10,
        "terminate": 3,
        "stop": 3,
        "full disk": 2,
        "postgresql": 3,
        "mlflow": 3,
        "relay": 3,
    }
    late: Mapping[Kind, int] = {"kill": 2, "stop": 1, "postgresql": 1, "relay": 1}
    trials, epochs = (30, 48) if study == "finalists" else (20, 24)
    # A killed MLflow server is back after 50 s, 20 s of which it takes to start.
    return FaultPlan(
        seed=seed,
        study=study,
        trials=trials,
        workers=4,
        epochs=epochs,
        seeds=3,
        counts=counts,
        of_finalists=late if study == "finalists" else {},
        gap=8.0,
        away=30.0,
        lease=8.0,
    )


def short_plan(seed: int, study: StudyName) -> FaultPlan:
    """A plan with each kind of fault once."""
    trials, epochs = (5, 16) if study == "finalists" else (6, 20)
    return FaultPlan(
        seed=seed,
        study=study,
        trials=trials,
        workers=2,
        epochs=epochs,
        seeds=2,
        counts=dict.fromkeys(DESCRIPTIONS, 1),
        of_finalists={"kill": 1} if study == "finalists" else {},
        gap=3.0,
        away=3.0,
        lease=6.0,
    )
