"""Prove on an NVIDIA GPU, in a few minutes, that anitune works there, and measure how fast it is.

    python -m benchmarks.gpu_proof --help

Parts run one after another in one process. The figures of each part are on the disk once it ends, so that a
stop loses nothing. A part that fails is recorded with its error, and the next part begins.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from benchmarks import gpu_parts
from benchmarks.figures import Figure
from benchmarks.gpu_parts import (
    EPOCH_PRECISIONS,
    PACK_SIZES,
    SMALL,
    SMALL_BATCH,
    SMOKE_PRECISIONS,
    Bench,
    Sizes,
)
from benchmarks.gpu_report import TABLE, GPUReport, PartResult, Run, Status
from benchmarks.gpu_sets import BackgroundSets
from benchmarks.gpu_training import is_emulated
from benchmarks.machine import describe_machine
from trainer.errors import DeviceError
from trainer.fitting.devices import exhausted_memory, find_device, release_memory

#: Exit statuses besides 0, which means that all parts were done.
INCOMPLETE: Final = 1
NO_GPU: Final = 2
ENDED_EARLY: Final = 3


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes
    ----------
    estimate : seconds that it takes on an H200; it is skipped if less time is left
    measure : yields the figures
    """

    name: str
    estimate: float
    measure: Callable[[Bench], Iterable[Figure]]

    @property
    def repeats_until(self) -> float:
        """Seconds after which it begins no further repeat."""
        return 2 * self.estimate

    @property
    def limit(self) -> float:
        """Seconds after which it counts as hanging, and the run ends."""
        return 20 + 3 * self.estimate


#: In the order in which they run. The estimates have not been checked on a card yet.
PARTS: Final = (
    Part("card", 5, gpu_parts.describe_card),
    *(
        # The first training of the process loads the CUDA libraries, and may compile kernels.
        Part(f"smoke-{p}", 30 if p == SMOKE_PRECISIONS[0] else 10, partial(gpu_parts.train_shortly, p))
        for p in SMOKE_PRECISIONS
    ),
    Part("tests", 75, gpu_parts.run_tests),
    Part("ceilings", 15, gpu_parts.measure_ceilings),
    Part("set", 30, gpu_parts.await_sets),
    *(Part(f"epoch-{p}", 30, partial(gpu_parts.measure_epoch, p)) for p in EPOCH_PRECISIONS),
    *(
        Part(f"batch{SMALL_BATCH}-{p}", 15, partial(gpu_parts.measure_small_steps, p))
        for p in EPOCH_PRECISIONS[:2]
    ),
    *(Part(f"packs-{size}", 25, partial(gpu_parts.measure_pack, size)) for size in PACK_SIZES),
    Part("packs-mixed", 25, gpu_parts.measure_two_packs),
    *(Part(f"repeat-{p}", 8, partial(gpu_parts.compare_repeats, p)) for p in EPOCH_PRECISIONS[:2]),
    Part("streaming", 40, gpu_parts.measure_streaming),
    Part("reference", 25, gpu_parts.measure_reference),
)


class Runner:
    """Runs parts one after another within a time limit.

    Parameters
    ----------
    command : the command to print for running the remaining parts, to which their names are added
    """

    def __init__(self, bench: Bench, report: GPUReport, seconds: float, command: str) -> None:
        self._bench = bench
        self._report = report
        self._started = time.monotonic()
        self._ends = self._started + seconds
        self._command = command
        # Held while a result is written: a part may end just when the timer gives it up.
        self._writing = threading.Lock()

    def run(self, parts: Sequence[Part]) -> int:
        """Run the parts, and return the exit status of the program."""
        names = [part.name for part in parts]
        not_done: list[str] = []
        for number, part in enumerate(parts):
            left = self._ends - time.monotonic()
            if left < part.estimate:
                why = f"{max(0.0, left):.0f} s were left, and it takes about {part.estimate:g}"
                result = PartResult(part.name, "skipped", error=why)
                self._write(result)
            else:
                result = self._run_part(part, [*not_done, *names[number + 1 :]])
            if result.status == "ended the run":
                self._print_left([*not_done, *names[number + 1 :]])
                return ENDED_EARLY
            if result.status != "done":
                not_done.append(part.name)
        self._print_left(not_done)
        return INCOMPLETE if not_done else 0

    def _run_part(self, part: Part, others: Sequence[str]) -> PartResult:
        figures: list[Figure] = []
        started = time.monotonic()
        seconds = min(self._ends - started, part.limit)
        self._bench.ends = started + min(seconds, part.repeats_until)
        main, over = threading.get_ident(), False

        def result(status: Status, error: str = "", trace: str = "") -> PartResult:
            return PartResult(part.name, status, time.monotonic() - started, tuple(figures), error, trace)

        def give_up() -> None:
            with self._writing:
                if over:
                    return
                where = "".join(traceback.format_stack(sys._current_frames()[main]))
                self._record(result("ended the run", f"did not end within {seconds:.0f} s", where))
                self._print_left(others)
                self._bench.sets.close()
                # A call that waits for the device cannot be interrupted.
                os._exit(ENDED_EARLY)

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            figures.extend(part.measure(self._bench))
            found = result("done")
        except Exception as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            # After an error of the device every further call of this process fails.
            status: Status = "ended the run" if is_device_fault(error) else "failed"
            found = result(status, line, traceback.format_exc())
        finally:
            timer.cancel()
        with self._writing:
            over = True
            self._record(found)
        if found.status != "ended the run":
            release_memory(find_device("auto"))
        return found

    def _write(self, result: PartResult) -> None:
        with self._writing:
            self._record(result)

    def _record(self, result: PartResult) -> None:
        self._report.add(result)
        since = time.monotonic() - self._started
        error = f": {result.error}" if result.error else ""
        print(f"{since:4.0f} s  {result.name}: {result.status}, {result.seconds:.1f} s{error}", flush=True)

    def _print_left(self, names: Sequence[str]) -> None:
        if names:
            print(f"Not measured: {', '.join(names)}. To run these parts:", flush=True)
            print(f"  {self._command} --parts {' '.join(names)}", flush=True)


def is_device_fault(error: BaseException) -> bool:
    """Whether an error, or one of its causes, means that the device no longer works."""
    cause: BaseException | None = error
    while cause is not None and exhausted_memory(error) is None:
        if isinstance(cause, (torch.AcceleratorError, DeviceError)):
            return True
        cause = cause.__cause__ or cause.__context__
    try:
        if torch.cuda.is_available():
            torch.zeros(1, device=find_device("cuda")).add_(1).item()
    except RuntimeError:
        return True
    return False


def chosen_parts(names: Sequence[str]) -> list[Part]:
    """Parts with these names, or whose names begin with one of them and a hyphen, in the order of the run.

    Raises
    ------
    ValueError
        if there is no part of one of the names.
    """
    chosen = set()
    for name in names:
        found = {part.name for part in PARTS if part.name == name or part.name.startswith(f"{name}-")}
        if not found:
            raise ValueError(f"{name} is not one of {', '.join(part.name for part in PARTS)}")
        chosen |= found
    return [part for part in PARTS if part.name in chosen]


def main() -> int:
    """Run the command line."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_proof", description="Prove that anitune works on an NVIDIA GPU."
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu-proof"), help="folder of the results")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("build/gpu-proof-data"),
        help="folder of the generated data sets and their stores, 8 GiB, reused by the next run",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="maximum duration (default: %(default)s)")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=names,
        metavar="PART",
        help=f"some of {', '.join(names)}, or their names up to the hyphen (default: all)",
    )
    parser.add_argument(
        "--small", action="store_true", help="use little data and a few steps, to check that each part runs"
    )
    options = parser.parse_args()
    try:
        parts = chosen_parts(options.parts)
    except ValueError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        print("torch sees no NVIDIA GPU here.", file=sys.stderr)
        return NO_GPU
    sizes = SMALL if options.small else Sizes()
    bench = Bench(sizes, options.out, options.data, BackgroundSets(options.data, (sizes.medium, sizes.full)))
    run = Run(describe_machine("cuda"), asdict(sizes), is_emulated())
    report = GPUReport(options.out, names, run)
    small = " --small" if options.small else ""
    command = f"python -m benchmarks.gpu_proof --out {options.out} --data {options.data}{small}"
    runner = Runner(bench, report, 60 * options.minutes, command)
    bench.sets.start()
    try:
        return runner.run(parts)
    finally:
        bench.sets.close()
        with suppress(OSError):
            print((options.out / TABLE).read_text())


if __name__ == "__main__":
    sys.exit(main())
