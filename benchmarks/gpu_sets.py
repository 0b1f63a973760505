"""Make the data sets of the GPU proof and build their stores, in a separate process that never uses the GPU.

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
from trainer.config import DataConfig, TaskConfig
from trainer.features.aev_store import store_bytes
from trainer.progress import no_progress
from trainer.task import add_features, prepare_data

LOG: Final = "sets.log"

#: Interval at which the proof checks whether a set is ready, s.
ASKED_EVERY: Final = 0.1


@dataclass(frozen=True)
class SetTimes:
    """Times of making a set; almost zero for what an earlier run has left in the folder.

    Attributes
    ----------
    make_seconds : time to write the structures
    build_seconds : time to read them and build the store
    store_gib : size of the store
    """

    structures: int
    make_seconds: float
    build_seconds: float
    store_gib: float


class BackgroundSets:
    """Sets that another process makes one after another.

    Parameters
    ----------
    folder : folder of the files; the stores are in its subfolder ``features``
    sizes : structures of each set
    """

    def __init__(self, folder: Path, sizes: Sequence[int]) -> None:
        self._folder = folder
        self._sizes = sizes
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, which finds and checks what an earlier run left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for structures in self._sizes:
            ready_file(self._folder, structures).unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu_sets", str(self._folder), *map(str, self._sizes)]
        with (self._folder / LOG).open("wb") as log:
            # The process ends when this end of its standard input closes, also if this process is killed.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )

    def wait(self, structures: int, seconds: float) -> SetTimes | None:
        """Wait up to ``seconds`` for the set of this size; None if it is not ready by then.

        Raises
        ------
        RuntimeError
            if the process has ended without making it.
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
        """End the process if it is still running; what it left unfinished is of no use."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()


def ready_file(folder: Path, structures: int) -> Path:
    """Path of the file with the times of a set, which exists once the set is ready."""
    return folder / f"ready-{structures}.json"


def make(folder: Path, structures: int) -> SetTimes:
    """Write a set and build its store, unless they exist."""
    started = time.perf_counter()
    file = made_set(folder, structures)
    made = time.perf_counter()
    data = prepare_data(TaskConfig(DataConfig(files=(str(file),))), no_progress)
    add_features(data, folder / "features", no_progress)
    return SetTimes(
        structures=structures,
        make_seconds=made - started,
        build_seconds=time.perf_counter() - made,
        store_gib=store_bytes(data.dataset, data.aev) / 2**30,
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
    # Not through sys.stdin: this thread would hold its lock, which breaks the shutdown of the interpreter.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
