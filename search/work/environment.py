"""The environment of a trial for its record: code, package versions and device."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from storage.trials.queue import Claim, WorkerInfo
from storage.trials.views import device_kind
from trainer.config import TrainConfig, dump_config, load_config
from trainer.fitting.devices import describe_device, find_device, resolve_precision

PACKAGES = ("anitune", "torch", "torchani", "numpy", "optuna")


def describe_worker(name: str | None, device: torch.device) -> WorkerInfo:
    """Describe this process as a worker, by default named after its host and process id."""
    host = socket.gethostname()
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    if (commit := _git_commit()) is not None:
        versions["commit"] = commit
    return WorkerInfo(
        name=name or f"{host}-{os.getpid()}",
        host=host,
        pid=os.getpid(),
        device=describe_device(device),
        versions=versions,
    )


def resolve_attempt(asked: TrainConfig, worker: WorkerInfo, claim: Claim) -> tuple[TrainConfig, WorkerInfo]:
    """Resolve the precision of an attempt, and return its configuration and the description of its worker.

    On one kind of device, a trial keeps the precision of its latest attempt there, so that its numbers are
    reproducible.

    Parameters
    ----------
    asked : the configuration of the trial as requested
    claim : claim of the attempt
    """
    device = find_device(asked.device)
    config = asked
    of_kind = [precision for ran_on, precision in claim.ran_on if device_kind(ran_on) == device.type]
    if asked.precision == "auto" and of_kind:
        values = {**dump_config(asked), "precision": of_kind[-1]}
        config = load_config(TrainConfig, values, f"the record of trial {claim.number}")
    config = resolve_precision(config)
    return config, replace(worker, device=describe_device(device), precision=config.precision)


def other_precision(claim: Claim, worker: WorkerInfo) -> str | None:
    """Describe a change of precision since the last attempt; None if there is none."""
    if not claim.ran_on or claim.ran_on[-1][1] == worker.precision:
        return None
    device, precision = claim.ran_on[-1]
    return f"continues in {worker.precision} on {worker.device}, after {precision} on {device}"


def _git_commit() -> str | None:
    """Return the commit of this code, marked if the code differs; None if it is not run from a clone."""
    # If anitune is installed inside the clone of another project, that project's commit is meaningless.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
