"""What a trial ran on: the part of its record that says with which code, versions and device."""

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
    """This process as a worker; its name is host and process id unless it is given one."""
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
    """The configuration of a trial with the precision of an attempt, and its worker as the attempt has it.

    On one kind of device a trial keeps the precision in which it began there: its numbers repeat.

    Parameters
    ----------
    asked : what the trial was asked for
    claim : of the attempt
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
    """What is to be said of a trial that goes on in another precision than the attempt before had."""
    if not claim.ran_on or claim.ran_on[-1][1] == worker.precision:
        return None
    device, precision = claim.ran_on[-1]
    return f"goes on in {worker.precision} on {worker.device}, after {precision} on {device}"


def _git_commit() -> str | None:
    """The commit of this code, marked if it was changed since; None if it was not run from a clone."""
    # Where anitune is installed inside of another project's clone, that project's commit says nothing.
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
