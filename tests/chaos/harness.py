"""Runs a study while everything under it breaks, and measures what was lost, which must be nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select

from search.cli.create import create_studies
from search.errors import SearchError
from search.recorded import recorded_config
from search.study import study_from_values
from search.work.reproduce import recorded_trial
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.database import Database, open_database
from storage.earlier_studies import earlier_studies
from storage.errors import DatabaseError
from storage.lifecycle import change_state
from storage.records.tables import attempts, relays
from storage.settings import Settings
from storage.studies import Budget, Study, StudyState, create_study
from storage.tokens import make_token
from storage.trials.views import TrialRow, metric_history, trial_rows
from tests.chaos.fleet import Fleet
from tests.chaos.paused_workers import PausedWorkers
from tests.chaos.plan import DESCRIPTIONS, FaultPlan, Kind
from tests.chaos.report import ChaosReport
from tests.chaos.reproduce import differing
from tests.chaos.rules import broken_rules, differing_files, ended_study
from tests.chaos.servers import MlflowServer, PostgreSQL, Wire
from tests.chaos.study_files import earlier_study_file, study_file
from trainer.progress import no_progress
from trainer.task import prepare_task

logger = logging.getLogger("anitune")

R = TypeVar("R")

HASTE = 0.6
"""Fraction of the trials by whose end all faults must have come: a machine may be faster than the plan."""

PATIENCE = 1800.0
"""Time after which a study that does not end is given up, s."""

SERVER_SECONDS = 120.0
"""Time after which a server that was killed and started again must answer, s."""


def run_chaos(plan: FaultPlan) -> ChaosReport:
    """Run the plan in a temporary folder."""
    # Not below a folder of root, because PostgreSQL runs as another user.
    with tempfile.TemporaryDirectory(prefix="anitune-chaos-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "postgresql").mkdir()
        postgresql = PostgreSQL(folder / "postgresql")
        stack.callback(postgresql.stop)
        mlflow = MlflowServer(folder / "mlflow", folder / "home")
        stack.callback(mlflow.kill)
        wire = Wire(mlflow.url)
        stack.callback(wire.close)
        make_token(folder / "home", mlflow.port, wire.port)
        mlflow.start()
        settings = Settings(folder / "home", postgresql.make_database("chaos"), wire.url)
        environment = {
            **settings.environment(),
            "ANITUNE_LEASE_SECONDS": str(plan.lease),
            "OMP_NUM_THREADS": "1",
        }
        database = stack.enter_context(open_database(settings))
        if plan.study == "finalists":
            _train(_create(database, earlier_study_file()))
        study = _create(database, study_file(plan.study, plan.trials, plan.epochs, plan.seeds))
        fleet = Fleet(study, plan.workers, folder / "logs", environment)
        stack.callback(fleet.end)
        return _Chaos(plan, study, fleet, postgresql, mlflow, wire, environment).run()


class _Chaos:
    def __init__(
        self,
        plan: FaultPlan,
        study: Study,
        fleet: Fleet,
        postgresql: PostgreSQL,
        mlflow: MlflowServer,
        wire: Wire,
        environment: dict[str, str],
    ) -> None:
        self._plan = plan
        self._study = study
        self._fleet = fleet
        self._postgresql = postgresql
        self._mlflow = mlflow
        self._wire = wire
        self._environment = environment
        self._learns_from = earlier_studies(study.database, study)
        self._chance = random.Random(plan.seed)
        self._injected: Counter[Kind] = Counter()
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._paused_workers = PausedWorkers(study, fleet)
        self._missed_relays: list[Kind] = []
        self._repeated: Counter[Kind] = Counter()
        self._mlflow_away = False
        self._last_of_server: Kind | None = None
        self._paused = False
        self._may_end_early = False

    def run(self) -> ChaosReport:
        began = time.monotonic()
        faults = self._plan.faults()
        waiting: list[Kind] = []
        due = None
        while True:
            if time.monotonic() - began > PATIENCE:
                raise SearchError(f"the study did not end within {PATIENCE:.0f} s: {self._shown()}")
            self._do_what_is_due()
            _patiently(self._paused_workers.wake)
            trials = self._trials()
            ended = self._have_ended(trials)
            if not ended:
                self._pace(trials)
                self._fleet.fill()
            else:
                self._fleet.reap()
                if self._fleet.size == 0 and not (self._later or self._paused_workers):
                    break
            if due is None and any(trial.epochs > 0 for trial in trials):
                due = time.monotonic()  # the imports of the workers do not count
            if not self._may_end_early and self._had_all_but_the_last():
                _patiently(self._let_it_end_early)  # not before, as the study may end at the next trial
            while (
                due is not None
                and faults
                and self._is_time_of(faults, trials)
                and (time.monotonic() >= due + faults[0][0] or self._is_late(faults, trials))
            ):
                delay, kind = faults.pop(0)
                due = min(due + delay, time.monotonic())
                waiting.append(kind)
            missed = self._missed()
            self._repeated.update(missed)
            waiting += missed
            if not ended:
                # A fault for which there is no victim now waits; those after it do not. Faults of MLflow take
                # turns: a relay is killed at a delivery, for which the server must run for a while.
                waiting.sort(key=lambda kind: kind == self._last_of_server)
                waiting = [kind for kind in waiting if not self._inject(kind)]
            time.sleep(0.25)
        return self._measure(began)

    def _inject(self, kind: Kind) -> bool:
        match kind:
            case "postgresql":
                self._postgresql.crash()
            case "mlflow":
                if self._wire.waits or not self._mlflow_serves():
                    return False
                self._mlflow.kill()
                self._mlflow_away = True
                self._last_of_server = kind
                self._after(self._plan.away, self._bring_mlflow_back)
            case "relay":
                if self._wire.waits or not self._mlflow_serves():
                    return False
                self._wire.kill_at_next_delivery(self._kill_relay)
                self._last_of_server = kind
                return True  # counted when it has happened
            case _:
                pid = _patiently(lambda: self._fleet.choose(self._chance))
                if pid is None:
                    return False
                logger.info("chaos: %s", DESCRIPTIONS[kind])
                if kind == "stop":
                    self._paused_workers.stop(pid)
                else:
                    self._fleet.hurt(kind, pid)
                return True  # counted once it has had its effect
        self._injected[kind] += 1
        logger.info("chaos: %s", DESCRIPTIONS[kind])
        return True

    def _missed(self) -> list[Kind]:
        """Faults, since the last call, that had no effect and are repeated."""
        missed = self._fleet.take_missed()
        missed += ["stop"] * self._paused_workers.take_missed()
        while self._missed_relays:  # another thread adds to them
            missed.append(self._missed_relays.pop())
        return missed

    def _had_all_but_the_last(self) -> bool:
        """Whether all faults have had an effect but those that wait for the finalists."""
        reached, late = self._reached(), self._plan.of_finalists
        return all(reached[kind] >= count - late.get(kind, 0) for kind, count in self._plan.counts.items())

    def _let_it_end_early(self) -> None:
        """Let a study of one objective end without gain, as if its file had been edited."""
        if len(self._study.objectives) == 1:
            budget = Budget(self._plan.trials, until_no_gain=True)
            create_study(self._study.database, self._study.name, self._study.config, budget)
        self._may_end_early = True

    def _is_time_of(self, faults: Sequence[object], trials: list[TrialRow]) -> bool:
        """Whether the next of the remaining faults may come: the last ones wait for the finalists."""
        late = sum(self._plan.of_finalists.values())
        return len(faults) > late or any(trial.replicate_of is not None for trial in trials)

    def _reached(self) -> Counter[Kind]:
        return self._injected + self._fleet.reached + Counter[Kind]({"stop": self._paused_workers.overtaken})

    def _mlflow_serves(self) -> bool:
        return not self._mlflow_away and self._mlflow.answers()

    def _bring_mlflow_back(self) -> None:
        self._mlflow.start()
        self._mlflow_away = False

    def _kill_relay(self) -> None:
        """Kill the relay between MLflow's answer and the relay's own record of it."""
        holder = select(relays.c.pid).where(relays.c.study_id == self._study.id)
        try:
            with self._study.database.reading() as connection:
                pid = connection.scalar(holder)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        except (DatabaseError, ProcessLookupError):
            pid = None
        if pid is None:
            self._missed_relays.append("relay")
            return
        self._injected["relay"] += 1
        logger.info("chaos: %s", DESCRIPTIONS["relay"])

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, action))

    def _do_what_is_due(self) -> None:
        due = [action for at, action in self._later if at <= time.monotonic()]
        self._later = [(at, action) for at, action in self._later if at > time.monotonic()]
        for action in due:
            action()

    def _trials(self) -> list[TrialRow]:
        return _patiently(lambda: trial_rows(self._study.database, self._study))

    def _have_ended(self, trials: list[TrialRow]) -> bool:
        """Whether nothing is left to train, as a worker that has ended found."""
        return self._fleet.ends[0] > 0 and all(trial.ended is not None for trial in trials)

    def _is_late(self, faults: Sequence[object], trials: list[TrialRow]) -> bool:
        """Whether the study would end before the remaining faults have come."""
        return 1 - len(faults) / sum(self._plan.counts.values()) < self._ended_fraction(trials)

    def _pace(self, trials: list[TrialRow]) -> None:
        """Pause the study while MLflow is away, if it might end before MLflow was away often enough.

        Otherwise a fast machine finishes the trials before the server has come back for the first time.
        """
        reached = self._reached()
        next_fraction = min((reached[kind] + 1) / count for kind, count in self._plan.counts.items())
        pause = next_fraction < self._ended_fraction(trials) and not self._mlflow_serves()
        if pause != self._paused:
            to: StudyState = "paused" if pause else "open"
            _patiently(lambda: change_state(self._study.database, self._study, to, of=("open", "paused")))
            self._paused = pause

    def _ended_fraction(self, trials: list[TrialRow]) -> float:
        # Most paused trials are never resumed.
        done = sum(trial.ended is not None or trial.state == "paused" for trial in trials)
        return done / (HASTE * self._plan.trials)

    def _shown(self) -> str:
        faults = ", ".join(f"{kind} {self._reached()[kind]} of {n}" for kind, n in self._plan.counts.items())
        return f"{Counter(trial.state for trial in self._trials())}; {faults}"

    def _measure(self, began: float) -> ChaosReport:
        self._wire.kill_at_next_delivery(None)
        deadline = time.monotonic() + SERVER_SECONDS
        while not self._mlflow.answers():
            if time.monotonic() > deadline:
                raise SearchError(f"MLflow does not answer within {SERVER_SECONDS:.0f} s")
            time.sleep(0.5)
        _anitune(self._environment, "sync", self._study.name)
        verified = json.loads(
            _anitune(self._environment, "study", "verify", self._study.name, "--json", fails=True)
        )
        faults = self._reached()
        trials = self._trials()
        history = {
            trial.number: metric_history(self._study.database, self._study, trial.number) for trial in trials
        }
        recorded = [
            recorded_trial(self._study.database, self._study, trials, trial.number)
            for trial in trials
            if trial.state in ("complete", "pruned")
        ]
        settings = self._study.database.settings
        ended = ended_study(self._study, self._plan.trials, self._learns_from)
        logger.info("chaos: reproducing %d trials without faults", len(recorded))
        features = settings.home / "features-again"
        different = differing(self._study.config, features, recorded, os.cpu_count() or 1)
        replicates = len(trials) - len(ended.searched)
        asked = replicates + (len(ended.searched) if ended.without_gain else self._plan.trials)
        with self._study.database.reading() as connection:
            tried = connection.execute(
                select(attempts).where(attempts.c.study_id == self._study.id).order_by(attempts.c.attempt)
            ).all()
        reached: Counter[int] = Counter()
        restarted = 0
        for attempt in tried:
            # Metrics are recorded after the checkpoint of their epoch is on disk.
            from_the_start = attempt.epochs > 0 and attempt.last_epoch == attempt.epochs
            restarted += bool(reached[attempt.number] and from_the_start)
            reached[attempt.number] = max(reached[attempt.number], attempt.last_epoch)
        folders = {
            trial.number: settings.attempt_folder(self._study.name, trial.number, trial.attempt)
            for trial in trials
        }
        keys = max((len(rows) for rows in history.values()), default=0)
        return ChaosReport(
            seed=self._plan.seed,
            study=self._plan.study,
            seconds=time.monotonic() - began,
            faults={kind: faults[kind] for kind in DESCRIPTIONS},
            required={kind: self._plan.counts.get(kind, 0) for kind in DESCRIPTIONS},
            repeated={kind: self._repeated[kind] for kind in DESCRIPTIONS if self._repeated[kind]},
            worker_ends={str(code): count for code, count in sorted(self._fleet.ends.items())},
            last_words=self._fleet.last_words,
            trials=dict(Counter(trial.state for trial in trials)),
            attempts=len(tried),
            metrics=sum(len(rows) for each in history.values() for rows in each.values()),
            trials_lost=asked - sum(trial.state in ("complete", "pruned") for trial in trials),
            trials_duplicated=sum("another run" in line["difference"] for line in verified["differences"])
            + sum("Optuna has it" in line["difference"] for line in verified["differences"]),
            metrics_lost=sum(
                trial.epochs * keys - sum(len(rows) for rows in history[trial.number].values())
                for trial in trials
            ),
            overshoot=max(0, len(ended.searched) - self._plan.trials),
            restarted=restarted,
            differing=different,
            stale_checkpoints=sum(
                _epochs_of_checkpoint(folders[trial.number]) != trial.epochs for trial in trials
            ),
            awakened=sum(
                folder != folders[trial.number]
                for trial in trials
                for folder in folders[trial.number].parent.iterdir()
            ),
            woken_wrote=self._paused_workers.written_since(),
            differences=[
                f"{'study' if line['trial'] is None else line['trial']}: {line['difference']}"
                for line in verified["differences"]
            ],
            broken_rules=broken_rules(ended, self._mlflow),
            differing_features=differing_files(settings.features, features),
            ended_without_gain=ended.without_gain,
        )


def _create(database: Database, values: dict[str, Any]) -> Study:
    """Create a study from the contents of a study file."""
    ((study, _),), _ = create_studies(database, study_from_values(values, "the study of chaos"))
    return study


def _train(study: Study) -> None:
    """Train a study undisturbed, and deliver nothing to MLflow."""
    config = recorded_config(study)
    task = prepare_task(config.task, study.database.settings.features, no_progress)
    Worker(study.database, study, config, task, SilentWatcher(), StopRequest(), lambda _: None).work()


def _patiently(action: Callable[[], R]) -> R:
    """Repeat an action until PostgreSQL is back."""
    deadline = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            return action()
        except DatabaseError as error:
            if time.monotonic() > deadline:
                raise SearchError(f"PostgreSQL is not back within {SERVER_SECONDS:.0f} s: {error}") from error
            time.sleep(0.2)


def _epochs_of_checkpoint(folder: Path) -> int:
    """Number of epochs in the record in a checkpoint's file header; 0 if there is no checkpoint."""
    file = folder / "checkpoint.safetensors"
    if not file.exists():
        return 0
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    record = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["record"])
    return len(record["history"])


def _anitune(environment: dict[str, str], *arguments: str, fails: bool = False) -> str:
    """Run one of our commands and return its output; with ``fails``, exit code 1 is accepted as well."""
    answer = subprocess.run(
        [sys.executable, "-m", "search.cli.main", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if answer.returncode not in ((0, 1) if fails else (0,)):
        raise SearchError(f"anitune {' '.join(arguments)}: {answer.stderr.strip()}")
    return answer.stdout
