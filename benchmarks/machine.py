"""Description of the machine on which the benchmarks ran."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import torch

PACKAGES: Final = ("anitune", "torch", "torchani", "numpy", "h5py", "optuna", "mlflow")


@dataclass(frozen=True)
class Machine:
    """A machine, and the software on it that decides how fast it is.

    Attributes
    ----------
    cores : number that this process may use
    memory_gib : memory of the machine
    gpu : None if nothing was measured on a GPU
    """

    cpu: str
    cores: int
    memory_gib: float
    gpu: str | None
    system: str
    versions: dict[str, str]


def describe_machine(device: str) -> Machine:
    """Describe this machine, with its GPU if ``device`` is one."""
    on_gpu = torch.device(device).type == "cuda"
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        system=platform.platform(aliased=True, terse=True),
        versions={"python": platform.python_version()} | _versions(),
    )


def _versions() -> dict[str, str]:
    """Versions of the installed packages; a machine that is borrowed for its GPU may lack some."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or "unknown"
