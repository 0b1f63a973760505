"""Make the data sets of the GPU proof and build their stores, in a process beside it that never uses the GPU.

python -m benchmarks.gpu_sets FOLDER SIZE [SIZE ...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch

from benchmarks.gpu_report import write_whole
from benchmarks.made_sets import made_set
from trainer.config import DataConfig, FeatureConfig, SplitConfig
from trainer.features.aev_store import store_bytes
from trainer.progress import no_progress
from trainer.task import add_features, prepare_data

LOG: Final = "sets.log"

#: How often the proof looks whether a set is ready, s.
ASKED_EVERY: Final = 0.1


@dataclass(frozen=True)
class SetTimes:
    """What a set took; next to nothing for what an earlier run has left in the folder.

    Attributes
    ----------
    make_seconds : writing the structures
    build_seconds : reading them, and building the store
    store_gib : size of the store
    """

    structures: int
    make_seconds: float
    build_seconds: float
    store_gib: float


class BackgroundSets:
    """Sets that another process makes, one after another.

    Parameters
    ----------
    folder : of the files, and of the stores in ``features``
    sizes : structures of each set
    """

    def __init__(self, folder: Path, sizes: Sequence[int]) -> None:
        self._folder = folder
        self._sizes = sizes
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin. What an earlier run left is found, and checked, by the other process."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for structures in self._sizes:
            ready_file(self._folder, structures).unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu_sets", str(self._folder), *map(str, self._sizes)]
        with (self._folder / LOG).open("wb") as log:
            # It ends when this end of its standard input closes: also if this process is killed.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )

    def wait(self, structures: int, seconds: float) -> SetTimes | None:
        """The set of this size, if it is ready in so many seconds.

        Raises
        ------
        RuntimeError
            if the process has ended without it.
        """
        file, until = ready_file(self._folder, structures), time.monotonic() + seconds
        while not file.exists():
            if self._process is None or self._process.poll() is not None:
                if file.exists():
                    break
                log = (self._folder / LOG).read_text(errors="replace").strip() if self._process else ""
                last = log.splitlines()[-1] if log else "it was not started"
                raise RuntimeError(f"the set of {structures:,} structures was not made: {last}")
            if time.monotonic() >= until:
                return None
            time.sleep(ASKED_EVERY)
        return SetTimes(**json.loads(file.read_text()))

    def close(self) -> None:
        """End the process, if it has not ended; what it left unfinished is of no use."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()


def ready_file(folder: Path, structures: int) -> Path:
    """Where the times of a set are, once it is ready."""
    return folder / f"ready-{structures}.json"


def make(folder: Path, structures: int) -> SetTimes:
    """Write a set and build its store, unless they are there."""
    started = time.perf_counter()
    file = made_set(folder, structures)
    made = time.perf_counter()
    features = FeatureConfig()
    data = prepare_data(DataConfig(files=(str(file),)), SplitConfig(), features, no_progress)
    add_features(data, features, folder / "features", no_progress)
    return SetTimes(
        structures=structures,
        make_seconds=made - started,
        build_seconds=time.perf_counter() - made,
        store_gib=store_bytes(data.dataset, features.aev) / 2**30,
    )


def main() -> None:
    """Run the command line."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if torch.cuda.is_available():
        raise SystemExit("the sets are made on the CPU: hide the GPU with CUDA_VISIBLE_DEVICES=")
    folder = Path(sys.argv[1])
    for structures in map(int, sys.argv[2:]):
        times = make(folder, structures)
        write_whole(ready_file(folder, structures), json.dumps(asdict(times)))


def _end_with_parent() -> None:
    # Not through sys.stdin: its lock, held by this thread, would break the end of the interpreter.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
