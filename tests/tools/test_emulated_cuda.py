"""The emulated CUDA device runs correct programs, and catches the faults that are planted in others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.emulated_cuda.build import find_compiler

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")

#: How each program of planted_faults.py begins to end.
OUTCOMES = {
    "a_training_step_is_that_of_the_cpu": "ok",
    "random_numbers_of_a_graph_go_on": "ok",
    "a_second_card_opens_nothing_on_the_first": "ok",
    "memory_is_counted_and_runs_out": "ok",
    "failures_are_those_of_torch": "ok",
    "tf32_rounds_what_a_product_reads": "ok",
    "operations_and_bytes_are_counted": "ok",
    "a_custom_operator_is_one_operation": "ok",
    "streams_that_wait_for_each_other": "ok",
    "item_in_a_capture": "AcceleratorError: CUDA error: operation failed due to a previous error",
    "a_capture_that_failed_cannot_end": "AcceleratorError: CUDA error: operation failed due to a previous",
    "item_where_waits_are_errors": "RuntimeError: called a synchronizing CUDA operation",
    "pageable_memory_where_waits_are_errors": "RuntimeError: called a synchronizing CUDA operation",
    "a_mask_in_a_capture": "AcceleratorError: CUDA error: operation failed due to a previous error",
    "a_static_tensor_is_replaced": "CudaCheckError: a graph that is replayed uses memory that was freed",
    "an_input_is_freed": "CudaCheckError: a graph that is replayed uses memory that was freed",
    "outputs_are_read_before_a_replay": "ValueError: [nan, nan, nan] in place of",
    "a_generator_is_not_registered": "RuntimeError: Attempt to increase offset for a CUDA generator",
    "the_default_generator": "CudaCheckError: aten::uniform_ draws from the default generator",
    "a_generator_of_the_cpu": "RuntimeError: Expected a 'cuda' device type for generator",
    "a_scalar_of_the_host_in_a_graph": "CudaCheckError: aten::mul_: a scalar of the host is baked",
    "a_copy_from_the_host_in_a_graph": "CudaCheckError: a copy from the host is captured",
    "a_tensor_of_the_host_among_others": "RuntimeError: Expected all tensors to be on the same device",
    "tensors_of_two_cards": "RuntimeError: Expected all tensors to be on the same device",
    "a_card_that_is_not_there": "AcceleratorError: CUDA error: invalid device ordinal",
    "a_device_without_an_index": "ValueError: Expected a torch.device with a specified index",
    "after_a_fault_of_the_device": "AcceleratorError: CUDA error: an illegal memory access",
    "another_thread_waits_during_a_global_capture": "AcceleratorError: CUDA error: operation not permitted",
    "a_stream_that_does_not_wait": "CudaCheckError: memory is used that another stream uses",
    "a_branch_that_is_not_joined": "AcceleratorError: CUDA error: capture was not ended",
    "a_shape_that_changes_in_place": "CudaCheckError: aten::t_ changes the shape",
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    done = run(str(Path(__file__).with_name("planted_faults.py")))
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout)
    return outcomes


@pytest.mark.parametrize("program", OUTCOMES)
def test_a_program_ends_as_it_should(program: str, found: dict[str, str]) -> None:
    assert found[program].startswith(OUTCOMES[program]), found[program]


def test_all_programs_are_listed(found: dict[str, str]) -> None:
    assert list(found) == list(OUTCOMES)


def test_make_test_runs_the_tests_of_the_gpu_or_says_why_not() -> None:
    command = ["make", "--dry-run", "--always-make", "test"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout
    assert "python -m tools.emulated_cuda.build; then" in lines
    assert "python -m pytest -p tools.emulated_cuda.plugin tests/gpu " in lines
    found, missing = (
        run("-m", "tools.emulated_cuda.build", PATH=path, CXX="") for path in (os.environ["PATH"], "")
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert missing.returncode == 1
    assert "tests/gpu was not run" in missing.stderr


def test_a_skipped_test_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_skipped.py").write_text("import pytest\ndef test_it(): pytest.skip('no card')\n")
    plugin = ("-p", "tools.emulated_cuda.plugin", "-p", "no:cacheprovider")
    done = run("-m", "pytest", *plugin, "--rootdir", str(tmp_path), str(tmp_path))
    assert done.returncode == 1, done.stdout
    assert "nothing of this ran on a real card" in done.stdout


def test_this_process_has_no_emulated_device(found: dict[str, str]) -> None:
    assert "tools.emulated_cuda.install" not in sys.modules


def test_a_command_trains_on_it(data_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"data: {{files: [{data_file}]}}\n"
        "training: {hidden: [8], batch_size: 16, epochs: 2, device: auto, precision: float32}\n"
    )
    out = tmp_path / "out"
    done = run(
        *("-m", "tools.emulated_cuda", "train", str(config), "--out", str(out)), ANITUNE_HOME=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "nothing of this runs on a real card" in done.stderr
    assert "cuda:0" in (out / "metrics.json").read_text()


def test_a_failure_is_injected_into_one_process_of_several(tmp_path: Path) -> None:
    arguments = ("-m", "tools.emulated_cuda", "-m", "timeit", "-n1", "-r1")
    code = (
        "import torch; assert torch.cuda.mem_get_info(1) == (2**30, 140 * 2**30); "
        "x = torch.ones(1, device='cuda'); x + x"
    )
    environment = {
        "EMULATED_CUDA_CARDS": "2",
        "EMULATED_CUDA_FREE_GIB": "1",
        "EMULATED_CUDA_FAIL": "out_of_memory:2",
        "EMULATED_CUDA_FAIL_ONCE": str(tmp_path / "failed"),
    }
    first, second = (run(*arguments, code, **environment) for _ in range(2))
    assert first.returncode == 1
    assert "OutOfMemoryError: CUDA out of memory" in first.stderr
    assert second.returncode == 0, second.stderr
