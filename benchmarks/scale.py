"""Cost of a trial's records: many processes and trials on one PostgreSQL, compared with plain Optuna."""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Event, Semaphore
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import func, select

from benchmarks.figures import Figure, Goal, Samples, plain, rate_ratio
from benchmarks.plan import BenchmarkPlan
from search.methods import SAMPLERS
from search.propose.samplers import propose
from search.propose.space import distributions
from search.study import StudyConfig, study_from_values
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, TrialNews, Worker
from storage.database import Database, open_database
from storage.records.tables import attempts, trials
from storage.settings import Settings
from storage.studies import Budget, Study, StudyProgress, create_study, open_study
from tests.chaos.servers import PostgreSQL
from trainer.config import TrainConfig
from trainer.networks.widths import widest
from trainer.progress import no_progress
from trainer.run import TrainingResult
from trainer.task import Task, prepare_task

LATENCY: Final = "ask-latency"

RATE_GOAL: Final = Goal("at least", 1)
LASTING_GOAL: Final = Goal("at least", 0.5)
NONE_GOAL: Final = Goal("below", 1)

SEGMENT: Final = 1_000
"""Trials of one side before the other side takes its turn."""

LATENCIES: Final = (100, 1_000, 10_000)
"""Numbers of trials in the studies in which the latency of a sampler is measured."""

SLOW: Final = ("gp",)
"""Samplers that are asked only once, and only in studies short enough for them to see all trials."""

SPACE: Final = {
    "layers": {"low": 1, "high": 3},
    "width": {"low": 32, "high": 256, "step": 32},
    "activation": {"choices": ["silu", "gelu", "celu", "tanh"]},
    "dropout": {"low": 0.0, "high": 0.3},
    "learning_rate": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
    "batch_size": {"choices": [32, 64, 128]},
    "weight_decay": {"low": 1.0e-8, "high": 1.0e-3, "log": True},
}

PLAIN_SAMPLERS: Final[dict[str, Callable[[], BaseSampler]]] = {"random": RandomSampler, "tpe": TPESampler}


def topic_of(sampler: str) -> str:
    """Topic of the measurement of a sampler."""
    return f"scale-{sampler}"


def measure_rates(sampler: str, plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Run both sides with a sampler, in turns of a thousand trials."""
    with _postgresql() as server:
        return _compare(plan, server, sampler, folder)


def measure_latency(plan: BenchmarkPlan, folder: Path) -> list[Figure]:
    """Ask each sampler for proposals in studies of different lengths, without workers."""
    return [figure for kind in SAMPLERS for figure in _latency(kind)]


@contextlib.contextmanager
def _postgresql() -> Iterator[PostgreSQL]:
    # Not below a folder of root, because PostgreSQL runs as another user.
    with tempfile.TemporaryDirectory(prefix="anitune-scale-") as name:
        Path(name).chmod(0o755)
        data = Path(name) / "postgresql"
        data.mkdir()
        server = PostgreSQL(data)
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def _plain_storage(url: str) -> Iterator[RDBStorage]:
    storage = RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@dataclass(frozen=True)
class _Gate:
    """Holds or releases the processes of one side between trials, and counts the trials that ended."""

    open: Event
    ready: Semaphore
    ended: Any

    @classmethod
    def make(cls, context: ForkServerContext) -> _Gate:
        return cls(context.Event(), context.Semaphore(0), context.Value("q", 0))

    def count(self) -> None:
        with self.ended.get_lock():
            self.ended.value += 1


def _compare(plan: BenchmarkPlan, server: PostgreSQL, sampler: str, folder: Path) -> list[Figure]:
    each = plan.scale_trials // plan.scale_processes
    asked_for = each * plan.scale_processes
    config = study_from_values(_study(sampler, asked_for), "benchmark")
    with tempfile.TemporaryDirectory(dir=folder) as home:
        settings = Settings(
            Path(home), server.make_database(f"ours_{sampler}"), f"sqlite:///{home}/mlflow.db"
        )
        plain_url = server.make_database(f"plain_{sampler}")
        _task(config, settings)  # computes the features once
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.scale"])
        ours, theirs = _Gate.make(context), _Gate.make(context)
        with open_database(settings) as database, contextlib.ExitStack() as stack:
            study = create_study(database, config.name, _study(sampler, asked_for), Budget(trials=asked_for))
            with _plain_storage(plain_url) as storage:
                optuna.create_study(study_name="plain", storage=storage)
            workers = [
                *_start(stack, context, plan, partial(_work, settings, config, ours)),
                *_start(stack, context, plan, partial(_optimize, plain_url, sampler, each, config, theirs)),
            ]
            for gate in (ours, theirs):
                for _ in range(plan.scale_processes):
                    while not gate.ready.acquire(timeout=5):
                        _check(workers)
            rates = _take_turns({"ours": ours, "plain": theirs}, asked_for, workers)
            for worker in workers:
                worker.join()
            begun, tried = _counts(database, study)
        with _plain_storage(plain_url) as storage:
            seen = len(optuna.load_study(study_name="plain", storage=storage).trials)
    own, others = (Samples("trials/s", tuple(rates[side])) for side in ("ours", "plain"))
    topic = topic_of(sampler)
    name = f"{asked_for:,} trials by {plan.scale_processes} processes"
    totals = {side: len(values) / sum(1 / value for value in values) for side, values in rates.items()}
    return [
        rate_ratio(
            topic,
            name,
            own,
            others,
            RATE_GOAL,
            f"nothing is trained; over all {totals['ours']:.1f} and {totals['plain']:.1f} trials/s;"
            f" plain `study.optimize` made {seen:,} trials",
        ),
        plain(
            topic,
            "rate of the last thousand, of the first",
            "x",
            [own.values[-1] / own.values[0]],
            LASTING_GOAL,
            f"{own.values[0]:.1f} and {own.values[-1]:.1f} trials/s;"
            f" plain Optuna {others.values[0]:.1f} and {others.values[-1]:.1f}",
        ),
        plain(topic, "trials beyond those asked for", "trials", [begun - asked_for], NONE_GOAL),
        plain(topic, "trials that were trained twice", "trials", [tried - begun], NONE_GOAL),
    ]


def _study(sampler: str, count: int) -> dict[str, Any]:
    return {
        "name": "ours",
        "data": {"files": ["sample"]},
        "space": SPACE,
        "training": {"epochs": 1, "device": "cpu"},
        "sampler": {"kind": sampler},
        "pruner": {"kind": "none"},
        "limits": {"trials": count},
    }


def _task(config: StudyConfig, settings: Settings) -> Task:
    return prepare_task(config.task, settings.features, no_progress)


def _start(
    stack: contextlib.ExitStack, context: ForkServerContext, plan: BenchmarkPlan, work: Callable[[], None]
) -> list[ForkServerProcess]:
    workers = [context.Process(target=work) for _ in range(plan.scale_processes)]
    for worker in workers:
        worker.start()
        stack.callback(worker.kill)
    return workers


def _check(workers: list[ForkServerProcess]) -> None:
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a process of the benchmark has failed; its message is above")


def _take_turns(
    gates: dict[str, _Gate], count: int, workers: list[ForkServerProcess]
) -> dict[str, list[float]]:
    """Trials a second of each side, in each of its segments."""
    rates: dict[str, list[float]] = {side: [] for side in gates}
    ends = [*range(SEGMENT, count, SEGMENT), count]
    for turn, end in enumerate(ends):
        for side in list(gates)[:: 1 if turn % 2 == 0 else -1]:
            gate = gates[side]
            already, began = gate.ended.value, time.perf_counter()
            gate.open.set()
            while gate.ended.value < end:
                time.sleep(0.02)
                _check(workers)
            rates[side].append((gate.ended.value - already) / (time.perf_counter() - began))
            gate.open.clear()
            print(f"  {side}: {end:,} trials, {rates[side][-1]:.1f} a second", flush=True)
    for gate in gates.values():
        gate.open.set()
    return rates


def _counts(database: Database, study: Study) -> tuple[int, int]:
    """Number of trials, and number of attempts at them."""
    with database.reading() as connection:
        begun = select(func.count()).where(trials.c.study_id == study.id)
        tried = select(func.count()).where(attempts.c.study_id == study.id)
        return connection.execute(begun).scalar_one(), connection.execute(tried).scalar_one()


class _Untrained(Worker):
    """A worker whose trainings end at once."""

    def _work_in_thread(self) -> None:
        self._train_claims(_train_nothing)


class _Counted(SilentWatcher):
    """Counts trials that end."""

    def __init__(self, gate: _Gate) -> None:
        self._gate = gate

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        self._gate.count()


def _train_nothing(config: TrainConfig, folder: Path, reporter: object, **_: object) -> TrainingResult:
    error = _error(widest(config.hidden), config.learning_rate)
    return TrainingResult("finished", error, 1, 1, {}, (), ())


def _error(widths: Sequence[int], learning_rate: float) -> float:
    return sum(abs(width - 128) for width in widths) / 100 + abs(math.log10(learning_rate) + 3)


def _work(settings: Settings, config: StudyConfig, gate: _Gate) -> None:
    """Run our worker as ``anitune worker`` does, but without the training and the relay to MLflow."""
    logging.getLogger("anitune").setLevel(logging.WARNING)

    def leave() -> bool:
        gate.open.wait()
        return False

    with open_database(settings) as database:
        worker = _Untrained(
            database,
            open_study(database, config.name),
            config,
            _task(config, settings),
            _Counted(gate),
            StopRequest(),
            start_relay=lambda study: None,
            leave=leave,
        )
        gate.ready.release()
        worker.work()


def _optimize(url: str, sampler: str, count: int, config: StudyConfig, gate: _Gate) -> None:
    """Run plain Optuna as in its tutorial on distributed optimization: ``count`` trials in each process."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name="plain", storage=url, sampler=PLAIN_SAMPLERS[sampler]())
    space = distributions(config)

    def objective(trial: optuna.Trial) -> float:
        params = {name: _suggest(trial, name, distribution) for name, distribution in space.items()}
        widths = [params[f"width_{layer}"] for layer in range(1, params["layers"] + 1)]
        return _error(widths, params["learning_rate"])

    def pause(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        gate.count()
        gate.open.wait()

    gate.ready.release()
    gate.open.wait()
    study.optimize(objective, n_trials=count, callbacks=[pause])


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def _latency(kind: str) -> list[Figure]:
    """Time a proposal of a sampler in studies of different lengths, without a database."""
    if kind == "grid":
        return []  # it takes the grid point with the trial's number
    figures = []
    for length in LATENCIES[:2] if kind in SLOW else LATENCIES:
        config = study_from_values(_study(kind, length + 100), "benchmark")
        storage = InMemoryStorage()
        study = optuna.create_study(study_name=config.name, storage=storage, sampler=RandomSampler(seed=0))
        space = distributions(config)
        drawn = [study.ask(space) for _ in range(100)]
        study.add_trials(
            create_trial(
                state=TrialState.COMPLETE,
                params=drawn[number % 100].params,
                distributions=space,
                value=1 + number % 997 / 997,
            )
            for number in range(length)
        )
        seconds = []
        for _ in range(1 if kind in SLOW else 5):
            trial = study.ask()
            began = time.perf_counter()
            propose(storage, config, trial.number)
            seconds.append(1_000 * (time.perf_counter() - began))
        figures.append(plain(LATENCY, f"a proposal of {kind} after {length:,} trials", "ms", seconds))
    return figures
