from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.figures import Figure, Goal, plain
from benchmarks.gpu_parts import SMALL, Bench, Sizes, read_outcomes
from benchmarks.gpu_proof import (
    ENDED_EARLY,
    INCOMPLETE,
    PARTS,
    Part,
    Runner,
    chosen_parts,
    is_device_fault,
)
from benchmarks.gpu_report import EMULATED, RESULTS, TABLE, UNTIMED, GPUReport, PartResult, Run
from benchmarks.gpu_sets import BackgroundSets, ready_file
from benchmarks.machine import describe_machine
from trainer.errors import TrainingFailed

#: What torch requires by itself.
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run() -> Run:
    return Run(dataclasses.replace(describe_machine("cpu"), gpu="NVIDIA Test"), {"full": 100}, emulated=False)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(SMALL, tmp_path / "out", tmp_path / "data", BackgroundSets(tmp_path / "data", ()))


@pytest.fixture
def run_parts(tmp_path: Path, bench: Bench, run: Run) -> Callable[..., int]:
    def run_parts(parts: list[Part], seconds: float = 60.0) -> int:
        report = GPUReport(tmp_path, [part.name for part in parts], run)
        return Runner(bench, report, seconds, "proof").run(parts)

    return run_parts


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in json.loads((folder / RESULTS).read_text())["parts"]}


def counts(bench: Bench) -> Iterator[Figure]:
    yield plain("gpu", "a count", "tests", [3, 5, 4], Goal("at least", 4), "of 9")


def fails_later(bench: Bench) -> Iterator[Figure]:
    yield plain("gpu", "before", "ms", [1.5])
    raise ValueError("no | such\nkernel")


def breaks_the_device(bench: Bench) -> Iterator[Figure]:
    try:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
    except RuntimeError as error:
        raise TrainingFailed("the training ended") from error
    yield


def test_a_part_that_fails_is_written_down_and_the_next_begins(
    run_parts: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_parts([Part("one", 0, fails_later), Part("two", 0, counts)]) == INCOMPLETE
    found = results(tmp_path)
    assert found["one"]["status"] == "failed"
    assert found["one"]["error"] == "ValueError: no | such"
    assert "fails_later" in found["one"]["traceback"]
    assert found["one"]["figures"][0]["value"] == 1.5
    assert found["two"]["status"] == "done"
    assert found["two"]["figures"] == [
        {
            "name": "a count",
            "value": 4,
            "unit": "tests",
            "aim": {"kind": "at least", "value": 4, "reached": True},
            "samples": [3, 5, 4],
            "note": "of 9",
        }
    ]
    table = (tmp_path / TABLE).read_text()
    assert "| two | a count | 4 tests | at least 4 tests | yes | of 9 |" in table
    assert "| one | **failed after 0 s** |  |  |  | ValueError: no \\| such |" in table
    assert "NVIDIA Test" in table
    told = capsys.readouterr().out
    assert "one: failed" in told
    assert told.endswith("  proof --parts one\n")


def test_all_parts_done(run_parts: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_parts([Part("one", 0, counts), Part("two", 0, counts)]) == 0
    assert "--parts" not in capsys.readouterr().out


def test_a_part_is_skipped_if_the_time_that_is_left_does_not_suffice(
    run_parts: Callable[..., int], tmp_path: Path
) -> None:
    parts = [Part("long", 61, counts), Part("short", 1, counts)]
    assert run_parts(parts, 60) == INCOMPLETE
    found = results(tmp_path)
    assert found["long"]["status"] == "skipped"
    assert found["long"]["error"] == "60 s were left, and it takes about 61"
    assert "| long | **skipped** |" in (tmp_path / TABLE).read_text()
    assert found["short"]["status"] == "done"


def test_a_device_fault_ends_the_run(
    run_parts: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        Part("a", 0, fails_later),
        Part("b", 0, breaks_the_device),
        Part("c", 0, counts),
        Part("d", 0, counts),
    ]
    assert run_parts(parts) == ENDED_EARLY
    found = results(tmp_path)
    assert list(found) == ["a", "b"]
    assert found["b"]["status"] == "ended the run"
    assert "ECC" in found["b"]["traceback"]
    assert capsys.readouterr().out.endswith("  proof --parts a c d\n")


def test_other_errors_are_no_device_faults() -> None:
    assert not is_device_fault(ValueError("a shape"))
    assert not is_device_fault(torch.OutOfMemoryError("CUDA out of memory"))


HANGING = """
import sys, time
from pathlib import Path
from benchmarks.figures import plain
from benchmarks.gpu_parts import SMALL, Bench
from benchmarks.gpu_proof import Part, Runner
from benchmarks.gpu_report import GPUReport, Run
from benchmarks.gpu_sets import BackgroundSets
from benchmarks.machine import describe_machine

def hangs(bench):
    yield plain("gpu", "before", "tests", [1])
    time.sleep(60)

folder = Path(sys.argv[1])
parts = [Part("one", 0, hangs), Part("two", 0, hangs)]
report = GPUReport(folder, ["one", "two"], Run(describe_machine("cpu"), {}, False))
bench = Bench(SMALL, folder, folder, BackgroundSets(folder, ()))
sys.exit(Runner(bench, report, 1.0, "proof").run(parts))
"""


def test_a_part_that_hangs_ends_the_run_in_time(tmp_path: Path) -> None:
    started = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert child.returncode == ENDED_EARLY
    assert time.monotonic() - started < 50
    (found,) = results(tmp_path).values()
    assert found["status"] == "ended the run"
    assert found["error"] == "did not end within 1 s"
    assert "time.sleep(60)" in found["traceback"] or "in hangs" in found["traceback"]
    assert [figure["name"] for figure in found["figures"]] == ["before"]
    assert child.stdout.endswith("  proof --parts two\n")


def test_results_are_whole_at_any_moment(tmp_path: Path, run: Run) -> None:
    figures = [plain("gpu", f"figure {n}", "ms", [float(n)] * 10) for n in range(200)]
    over = threading.Event()
    seen = []

    def read() -> None:
        while not over.is_set():
            if (tmp_path / RESULTS).exists():
                seen.append(len(results(tmp_path)))

    reader = threading.Thread(target=read)
    reader.start()
    names = [str(n) for n in range(20)]
    report = GPUReport(tmp_path, names, run)
    for name in names:
        report.add(PartResult(name, "done", figures=figures))
    over.set()
    reader.join(60)
    assert not reader.is_alive()
    assert seen == sorted(seen)
    assert len(results(tmp_path)) == 20
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, TABLE}


def test_what_an_earlier_run_measured_stays(tmp_path: Path, run: Run) -> None:
    order = ["one", "two", "three"]
    first = GPUReport(tmp_path, order, run)
    for name in ("three", "one"):
        first.add(PartResult(name, "done", error="first"))
    second = GPUReport(tmp_path, order, run)
    second.add(PartResult("two", "done", error="second"))
    second.add(PartResult("three", "failed", error="second"))
    second.add(PartResult("one", "skipped", error="second"))
    found = results(tmp_path)
    assert {name: part["error"] for name, part in found.items()} == {
        "one": "first",
        "two": "second",
        "three": "second",
    }
    assert list(found) == order
    other = GPUReport(tmp_path, order, dataclasses.replace(run, sizes={"full": 1}))
    other.add(PartResult("two", "done"))
    assert list(results(tmp_path)) == ["two"]


def test_an_emulated_device_has_no_figures_of_speed(tmp_path: Path, run: Run) -> None:
    report = GPUReport(tmp_path, ["one"], dataclasses.replace(run, emulated=True))
    figures = [plain("gpu", "an epoch", "ms", [12.5], Goal("below", 15), "12.5 ms"), *counts(None)]  # type: ignore[arg-type]
    report.add(PartResult("one", "done", figures=figures))
    table = (tmp_path / TABLE).read_text()
    assert EMULATED in table
    assert "12.5" not in table + (tmp_path / RESULTS).read_text()
    assert "| one | an epoch |  | below 15 ms |  |  |" in table
    assert "4 tests" in table


def test_parts_are_chosen_by_name_or_by_what_is_before_the_hyphen() -> None:
    assert [part.name for part in chosen_parts(["packs", "card"])] == [
        "card",
        "packs-1",
        "packs-8",
        "packs-16",
        "packs-mixed",
    ]
    assert [part.name for part in chosen_parts(["epoch-tf32"])] == ["epoch-tf32"]
    with pytest.raises(ValueError, match="pack is not one of card, smoke-tf32"):
        chosen_parts(["pack"])


def test_all_parts_fit_into_nine_minutes() -> None:
    assert sum(part.estimate for part in PARTS) < 9 * 60
    topics = dict.fromkeys(part.name.partition("-")[0] for part in PARTS)
    assert " ".join(topics) == (
        "card smoke tests ceilings set epoch batch24 packs repeat streaming reference"
    )


def test_repeats_end_with_the_time_of_their_part(bench: Bench) -> None:
    bench.ends = time.monotonic() - 1
    assert len(bench.seconds_of(lambda: None, 5)) == 1
    bench.ends = time.monotonic() + 60
    assert len(bench.seconds_of(lambda: None, 5)) == 5


def test_outcomes_are_read_from_what_pytest_writes(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('word', ['a', 'b c'])\n"
        "def test_one(word): assert word == 'a', 'not a'\n"
        "@pytest.mark.skip\n"
        "def test_two(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-v", "-rfE", "-p", "no:cacheprovider", "--color=no", "-k", ""]
    text = subprocess.run(
        [*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    ).stdout
    outcomes, failures = read_outcomes(text)
    assert outcomes == ["PASSED", "FAILED", "SKIPPED"]
    assert list(failures) == ["test_some.py::test_one[b c]"]
    assert "not a" in failures["test_some.py::test_one[b c]"]


def test_sets_are_made_beside_the_parts(tmp_path: Path) -> None:
    sets = BackgroundSets(tmp_path, (60, 80))
    sets.start()
    try:
        small, large = (sets.wait(structures, 120) for structures in (60, 80))
    finally:
        sets.close()
    assert small is not None
    assert large is not None
    assert (small.structures, large.structures) == (60, 80)
    assert large.store_gib > 0
    bench = Bench(dataclasses.replace(SMALL, full=80), tmp_path, tmp_path, sets)
    task, note = bench.full_task()
    assert (task.dataset.structures, note) == (80, "")


def test_a_set_that_is_not_ready_is_replaced_by_a_smaller_one(tmp_path: Path) -> None:
    # The second one cannot be divided.
    sets = BackgroundSets(tmp_path, (60, 1))
    sets.start()
    try:
        bench = Bench(dataclasses.replace(SMALL, medium=60, full=1), tmp_path, tmp_path, sets)
        bench.ends = time.monotonic() + 120
        with pytest.raises(RuntimeError, match=r"the set of 1 structures was not made: .*DataError"):
            sets.wait(1, 120)
        task, note = bench.full_task()
    finally:
        sets.close()
    assert task.dataset.structures == 60
    assert note.startswith("a smaller set than the 1 structures: ")


def test_the_process_that_makes_sets_ends_with_the_proof(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from benchmarks.gpu_sets import BackgroundSets\n"
        "sets = BackgroundSets(Path(sys.argv[1]), (10_000_000,)); sets.start()\n"
        "print(sets._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    status = Path(f"/proc/{child.stdout.strip()}/status")
    until = time.monotonic() + 60
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < until, "the process that makes sets goes on"
        time.sleep(0.1)
    assert not ready_file(tmp_path, 10_000_000).exists()


def test_there_is_no_proof_without_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "benchmarks.gpu_proof", "--out", str(tmp_path / "out")]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert child.returncode == 2
    assert child.stderr == "torch sees no NVIDIA GPU here.\n"
    assert not (tmp_path / "out").exists()


def test_make_takes_arguments_and_needs_a_torch_with_cuda() -> None:
    make = ["make", "--no-print-directory", "gpu-proof", "GPU_PROOF_ARGS=--parts smoke epoch"]
    told = subprocess.run(
        [*make, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    assert told.stdout == "sh tools/gpu_proof.sh --parts smoke epoch\n"
    if torch.version.cuda is not None:
        return
    make.append(f"PYTHON={sys.executable}")
    refused = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert refused.returncode == 2
    assert refused.stderr.startswith("No Python here has a torch with CUDA.")


def test_it_needs_no_packages_but_those_that_its_script_installs() -> None:
    script = (ROOT / "tools" / "gpu_proof.sh").read_text()
    needed = {word.partition(":")[2] or word for word in script.split('needed="')[1].split('"')[0].split()}
    lock = (ROOT / "requirements.lock").read_text().lower().replace("_", "-").splitlines()
    names = {line.partition("==")[0] for line in lock}
    assert needed <= names
    others = sorted({name.replace("-", "_") for name in names - needed} | {"search", "storage", "yaml"})
    # torch uses some of these where they are installed, and needs some.
    others = [name for name in others if name not in ("torch", *TORCH_NEEDS)]
    code = f"import sys; sys.modules |= dict.fromkeys({others}); import benchmarks.gpu_proof"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


@pytest.fixture
def emulated_device() -> list[str]:
    """The begin of a command that runs a module on an emulated device."""
    build = ROOT / "tools" / "emulated_cuda" / "build.py"
    if not build.exists():
        pytest.skip("the emulated CUDA device is not here")
    if subprocess.run(
        [sys.executable, "-m", "tools.emulated_cuda.build"], cwd=ROOT, check=False, timeout=600
    ).returncode:
        pytest.skip("no C++ compiler")
    return [sys.executable, "-m", "tools.emulated_cuda", "-m"]


@pytest.mark.proof
def test_all_parts_run_on_an_emulated_device(emulated_device: list[str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # Of the process that runs tests/gpu.
        "PYTEST_PLUGINS": "tools.emulated_cuda.plugin",
        "OMP_NUM_THREADS": "1",
    }
    options = ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "data"), "--small"]
    command = [*emulated_device, "benchmarks.gpu_proof", *options]
    child = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=540
    )
    found = results(tmp_path / "out")
    assert {name: part["traceback"] or part["error"] for name, part in found.items()} == dict.fromkeys(
        (part.name for part in PARTS), ""
    )
    assert child.returncode == 0, child.stdout + child.stderr
    for part in found.values():
        assert all(figure["value"] is None or figure["unit"] in UNTIMED for figure in part["figures"])
    table = (tmp_path / "out" / TABLE).read_text()
    assert EMULATED in table
    assert "1 tests | at least 1 tests | yes" in table
    assert table.count("the same bits") == 4


def test_the_small_sizes_are_small() -> None:
    for name, value in dataclasses.asdict(SMALL).items():
        other = getattr(Sizes(), name)
        assert value == other or not isinstance(other, int) or value < other
