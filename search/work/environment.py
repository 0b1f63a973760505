"""What a trial ran on: the part of its record that says with which code, versions and device."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from storage.trials.queue import WorkerInfo
from trainer.fitting.devices import describe_device

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
