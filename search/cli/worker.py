"""``anitune worker``, and the work that ``anitune study run`` shares with it."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.interrupted import exit_if_stopped
from search.cli.output import watch
from search.cli.progress import progress_bar

if TYPE_CHECKING:
    import torch

    from search.study import StudyConfig
    from search.work.worker import Watcher
    from storage.database import Database
    from storage.studies import Study
    from storage.workers import WorkerHeartbeat
    from trainer.task import TaskData

logger = logging.getLogger("anitune")


def _trials_at_once(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise typer.BadParameter(f"give auto, or a number of at least 1 (got {text!r})")
    return int(text)


Pack = Annotated[
    int | None,
    typer.Option(
        "--pack",
        metavar="auto|N",
        parser=_trials_at_once,
        help="Number of trials to train at once. Default: auto, on the CPU as many as its cores and the free"
        " memory allow, on a GPU as many as a short measurement finds worthwhile. With 1, and no other"
        " worker, a study is reproducible.",
    ),
]


def worker(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Name of the study. Default: all open ones.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of this worker. Default: host and process id.")
    ] = None,
    pack: Pack = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="Serve /metrics for Prometheus and /health on this port. Default: neither is served.",
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address on which --metrics-port listens; 0.0.0.0: all.")
    ] = "127.0.0.1",
    idle_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Without STUDY: exit after this time without a trial. Default: never.",
        ),
    ] = None,
) -> None:
    """Train trials of a study until it is done, or of all open studies by priority and age.

    Any number of workers may do so at once, on many machines.
    """
    if study is not None and idle_timeout is not None:
        raise typer.BadParameter(
            "--idle-timeout is only for a worker without STUDY", param_hint="--idle-timeout"
        )
    from search.work.forkserver import start_forkserver

    if pack != 1:
        start_forkserver()
    from storage.database import open_database
    from storage.settings import load_settings
    from storage.studies import open_study

    served = (metrics_host, metrics_port) if metrics_port is not None else None
    with open_database(load_settings()) as database:
        if study is None:
            with exit_if_stopped("anitune worker"):
                _serve(database, pack, name, idle_timeout, served)
            return
        studies = with_reference(database, open_study(database, study))
        if database.engine.dialect.name == "sqlite":
            logger.info(
                "The database is SQLite, for one worker on one machine: several need PostgreSQL, which"
                " `anitune up` starts."
            )
        with exit_if_stopped(f"anitune worker {study}"):
            work_on(database, studies, pack, name, served=served)


def with_reference(database: Database, study: Study) -> list[tuple[Study, StudyConfig]]:
    """Return a study and, before it, its reference study, if it has one."""
    from search.recorded import recorded_config
    from storage.studies import open_study

    config = recorded_config(study)
    if config.reference is None:
        return [(study, config)]
    return [(open_study(database, config.reference.name), config.reference), (study, config)]


def work_on(
    database: Database,
    studies: list[tuple[Study, StudyConfig]],
    pack: int | None,
    name: str | None = None,
    data: TaskData | None = None,
    served: tuple[str, int] | None = None,
) -> None:
    """Train all trials of studies that share data, split and features.

    Parameters
    ----------
    pack : number of trials to train at once; None: as many as suit the machine
    data : the data of the studies; None: it is read
    served : address and port of the metrics; None: they are not served

    Raises
    ------
    StudyStateError
        if one of the studies is stopped or archived.
    DeviceError
        if the GPU has failed; the running trials were handed back.
    Stopped
        if a signal stopped the work; the running trials were handed back.
    """
    from search.work.card_faults import card_faults_recorded
    from search.work.stopping import stop_on_signals
    from search.work.worker import Worker, patiently
    from storage.lifecycle import CLOSED, study_state, wrong_state
    from storage.tracking.process import start_relay
    from trainer.config import TrainConfig
    from trainer.fitting.devices import device_errors_explained, find_device
    from trainer.task import add_features, prepare_data

    for study, _ in studies:
        if (state := patiently(partial(study_state, database, study))) in CLOSED:
            raise wrong_state(study, state)
    study, config = studies[-1]
    with ExitStack() as stack:
        device = find_device(config.training.get("device", TrainConfig.device))
        stack.enter_context(card_faults_recorded(device))
        stack.enter_context(device_errors_explained(device))
        sign = _heartbeat(database, name, device, study.name)
        patiently(lambda: stack.enter_context(sign))
        with progress_bar() as progress:
            cache = database.settings.features
            data = data or prepare_data(config.data, config.split, config.features, progress, cache=cache)
            task = add_features(data, config.features, cache, progress)
        for study, _ in studies:
            patiently(partial(study.set_facts, task.fingerprints))
        patiently(lambda: sign.set_structures(len(task.split.train)))
        stop, watcher = stack.enter_context(stop_on_signals()), stack.enter_context(watch())
        stack.push(sign)  # the heartbeat ends while signals are still handled
        watcher = _watched(stack, served, watcher, sign)
        for study, config in studies:
            Worker(database, study, config, task, watcher, stop, start_relay, name, pack).work()
    stop.raise_if_signalled()


def _heartbeat(
    database: Database, name: str | None, device: torch.device, study: str | None = None
) -> WorkerHeartbeat:
    from search.work.environment import describe_worker
    from storage.workers import WorkerHeartbeat

    pinned_to = os.environ.get("CUDA_VISIBLE_DEVICES")
    return WorkerHeartbeat(database, describe_worker(name, device), study, gpu=pinned_to)


def _watched(
    stack: ExitStack, served: tuple[str, int] | None, watcher: Watcher, sign: WorkerHeartbeat
) -> Watcher:
    """Return the watcher, behind an HTTP monitor if metrics are to be served."""
    if served is None:
        return watcher
    from search.work.metrics import serve_metrics

    return stack.enter_context(serve_metrics(*served, watcher, sign))


def _serve(
    database: Database,
    pack: int | None,
    name: str | None,
    idle_timeout: float | None,
    served: tuple[str, int] | None,
) -> None:
    from search.work.card_faults import card_faults_recorded
    from search.work.service import Service
    from search.work.stopping import stop_on_signals
    from search.work.worker import patiently
    from storage.tracking.process import start_relay
    from trainer.config import TrainConfig
    from trainer.fitting.devices import device_errors_explained, find_device

    with ExitStack() as stack:
        device = find_device(TrainConfig.device)
        stack.enter_context(card_faults_recorded(device))
        stack.enter_context(device_errors_explained(device))
        sign = _heartbeat(database, name, device)
        patiently(lambda: stack.enter_context(sign))
        stop, watcher = stack.enter_context(stop_on_signals()), stack.enter_context(watch())
        watcher = _watched(stack, served, watcher, sign)
        Service(database, watcher, stop, start_relay, name, pack, idle_timeout).serve()
    stop.raise_if_signalled()
