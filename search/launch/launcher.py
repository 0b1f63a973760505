"""Starts the workers of a launch through Parsl, and waits until the study is done."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from search.errors import LaunchError
from search.launch.local import ADDRESS
from search.launch.places import PLACES
from search.launch.plan import LaunchPlan
from search.launch.shell import BLOCK_FUNCTION, GRACE_SECONDS, worker_script
from search.work.card_faults import FAULTS_ALLOWED, cards_left_out
from search.work.stopping import StopRequest

if TYPE_CHECKING:
    from parsl.dataflow.dflow import DataFlowKernel

logger = logging.getLogger("anitune")

POLL_SECONDS = 1.0

STOPPED_CODES = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit codes of a worker that was asked to stop, for example by a scheduler at the end of a job."""

HEARTBEAT_SECONDS, LOST_SECONDS = 10, 60
"""Interval of a node's heartbeats to Parsl, and time without them after which the node counts as lost, s."""


# Ctrl-C on a terminal must reach this process alone. But Parsl's broker must not outlive it, as nodes would
# wait for the broker.
_INTERCHANGE = ("setsid", "setpriv", "--pdeathsig", "TERM", "interchange.py")


def launch(plan: LaunchPlan, place: str, stop: StopRequest, left: Callable[[], int]) -> None:
    """Run the workers until one of them finds the study done, or until asked to stop.

    A worker whose node was lost, or whose job ended, is started again on the next node. A worker whose card
    has failed is started again on the same node, until the card has failed too often.

    Parameters
    ----------
    left : counts the workers of this launch that are running according to the database

    Raises
    ------
    LaunchError
        if all workers failed, or none could be started.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with _parsl(plan, place) as kernel:
            _wait_for_workers(_start_workers(kernel, plan), plan, stop)
    finally:
        # The end of Parsl has asked the workers to stop.
        if count := left():
            logger.info("%s: waiting for %d workers to end", plan.name, count)
        deadline = time.monotonic() + GRACE_SECONDS
        while left() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


@contextmanager
def _parsl_folder(plan: LaunchPlan, place: str) -> Iterator[Path]:
    """Provide a folder for Parsl's files whose path needs no quotes in a shell: Parsl adds none."""
    folder = plan.folder / "parsl"
    if _is_plain(folder):
        yield folder
        return
    if place != "local":
        raise LaunchError(
            f"{plan.home}: the path of the home may contain only letters, digits and @%+=:,./_- because"
            " shells of other machines read it; choose another ANITUNE_HOME"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="anitune-") as name:
        link = Path(name) / "parsl"
        if not _is_plain(link):
            raise LaunchError(f"{name}: the path of TMPDIR may contain only letters, digits and @%+=:,./_-")
        link.symlink_to(folder)
        yield link


def _is_plain(path: Path) -> bool:
    return shlex.quote(str(path)) == str(path)


@contextmanager
def _parsl(plan: LaunchPlan, place: str) -> Iterator[DataFlowKernel]:
    try:
        import parsl  # in the extra launch
    except ModuleNotFoundError:
        raise LaunchError("Launching needs one more package: pip install 'anitune[launch]'") from None
    from parsl.addresses import address_by_hostname
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

    # Through PATH, Parsl finds its own programs, and nodes that share our file system find anitune.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    executor = HighThroughputExecutor(
        label="workers",
        provider=PLACES[place](plan),
        address=ADDRESS if place == "local" else plan.config.address or address_by_hostname(),
        available_accelerators=[str(number) for number in range(plan.gpus_per_node)],
        max_workers_per_node=max(1, plan.gpus_per_node),
        cores_per_worker=1e-6,  # GPUs limit the number of workers, not cores
        interchange_launch_cmd=_INTERCHANGE,
        launch_cmd=f"{BLOCK_FUNCTION} {DEFAULT_LAUNCH_CMD}",
        heartbeat_period=HEARTBEAT_SECONDS,
        heartbeat_threshold=LOST_SECONDS,
    )
    with _parsl_folder(plan, place) as folder:
        config = parsl.Config(
            executors=[executor],
            run_dir=str(folder),
            strategy="htex_auto_scale",
            retries=0,
            retry_handler=_cost,
        )
        kernel = parsl.load(config)
        try:
            yield kernel
        finally:
            kernel.cleanup()


def _cost(error: Exception, task: object) -> float:
    """Return the retry cost of a failure: 0 if the machine was taken away, as leases protect the trials."""
    from parsl.app.errors import BashExitFailure
    from parsl.executors.high_throughput.errors import ManagerLost

    taken_away = isinstance(error, ManagerLost) or (
        isinstance(error, BashExitFailure) and error.exitcode in STOPPED_CODES
    )
    return 0.0 if taken_away else 1.0


def _script(script: str, stdout: Any = None, stderr: Any = None) -> str:
    return script


def _start_workers(kernel: DataFlowKernel, plan: LaunchPlan) -> dict[Future[int], str]:
    from parsl import bash_app

    run = bash_app(_script, data_flow_kernel=kernel)
    started = {}
    for name, log in plan.workers.items():
        command = ["anitune", "worker", *plan.arguments, "--name", name]
        script = worker_script(command, plan.card_faults, pinned=plan.gpus_per_node > 0)
        started[run(script, stdout=(str(log), "a"), stderr=(str(log), "a"))] = name
    return started


def _wait_for_workers(workers: Mapping[Future[int], str], plan: LaunchPlan, stop: StopRequest) -> None:
    pending, logs = set(workers), plan.workers
    left_out: set[str] = set()
    while pending and not stop.asked:
        ended, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in ended:
            error = future.exception()
            if error is None:
                wait(pending, timeout=10 * POLL_SECONDS)  # until the others find the study done, too
                return
            name = workers[future]
            logger.warning("%s failed: %s; see %s", name, str(error).strip(), logs[name])
            for fault in cards_left_out(plan.card_faults):
                if fault.card not in left_out:
                    logger.warning("%s is left out, it has failed %d times", fault.words, FAULTS_ALLOWED)
                    left_out.add(fault.card)
    if not stop.asked:
        raise LaunchError("no worker is left, but the study is not done: see the logs of the workers")
