"""Which device a training gets, and what the errors of one mean."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError, DeviceError, TrainingCutOff, TrainingFailed
from trainer.fitting import devices
from trainer.fitting.devices import (
    current_device,
    device_errors_explained,
    exhausted_memory,
    find_device,
    memory_errors_explained,
    resolve_precision,
)

CPU = torch.device("cpu")
CONFIG = TrainConfig(hidden=(512, 64), batch_size=4096, device="cpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two cards, of which torch has initialised none."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "found"), [("cuda", "cuda:0"), ("auto", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_gpu_is_found_with_its_index(name: str, found: str) -> None:
    device = find_device(name)
    assert str(device) == found
    assert device.type == "cpu" or device.index is not None


@pytest.mark.usefixtures("two_gpus")
def test_cuda_is_the_current_gpu_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert find_device("cuda") == find_device("auto") == torch.device("cuda", 1)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_this_machine_has_not() -> None:
    with pytest.raises(ConfigError, match="cuda:2 is asked for, but torch sees 2 CUDA GPUs"):
        find_device("cuda:2")


def test_the_gpu_of_a_training_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    def exchange(index: int) -> int:
        before, current[0] = current[0], index
        return before

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    with current_device(torch.device("cuda", 1)):
        assert current == [1]
    assert current == [0]
    with current_device(CPU):
        assert current == [0]


def test_a_precision_of_gpus_is_float32_on_a_cpu() -> None:
    assert resolve_precision(dataclasses.replace(CONFIG, precision="tf32")).precision == "float32"
    for precision in ("float32", "float64", "bfloat16"):
        kept = dataclasses.replace(CONFIG, precision=precision)
        assert resolve_precision(kept) == kept
    assert resolve_precision(CONFIG).precision in ("float32", "bfloat16")


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_has_no_tf32_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, device="cuda")
    assert resolve_precision(config).precision == "tf32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert resolve_precision(config).precision == "float32"
    assert resolve_precision(dataclasses.replace(config, precision="tf32")).precision == "float32"


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]

FAULTS = [
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCompile with ..."),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("CUDA driver error: unspecified launch failure"),
    DeviceError("a step could not be recorded"),
    DeviceError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_too_little_memory_of_a_device_is_known_whoever_allocates(error: Exception) -> None:
    assert exhausted_memory(error) == "device"
    explained = r"out of memory on cpu.* batch size 4096 and widths 512-64"
    with (
        pytest.raises(TrainingCutOff, match=explained),
        memory_errors_explained(CONFIG),
        device_errors_explained(CPU),
    ):
        raise error


def test_it_is_known_also_where_it_led_to_another_error() -> None:
    def record() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise DeviceError("a step could not be recorded")

    with pytest.raises(DeviceError) as caught:
        record()
    assert exhausted_memory(caught.value) == "device"


def test_what_was_explained_is_no_lack_of_memory_for_another_training() -> None:
    with pytest.raises(TrainingFailed) as caught, memory_errors_explained(CONFIG):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert exhausted_memory(caught.value) is None


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_of_the_host_is_another_thing(error: Exception) -> None:
    assert exhausted_memory(error) == "host"


@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_a_fault_of_the_device_is_reported_with_the_card(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(devices, "describe_device", lambda device: f"{device} NVIDIA H200")
    monkeypatch.setattr(devices, "card_id", lambda device: "GPU-5bd1")
    with pytest.raises(DeviceError) as caught, device_errors_explained(gpu), device_errors_explained(gpu):
        raise error
    words = str(caught.value)
    assert words.startswith("cuda:0 NVIDIA H200 (GPU-5bd1, CUDA_VISIBLE_DEVICES=3) has failed: ")
    assert words.endswith(str(error).partition("\n")[0])
    assert "\n" not in words
    assert words.count("has failed") == 1 + ("has failed" in str(error))
    assert caught.value.device == "cuda:0"
    again = pickle.loads(pickle.dumps(caught.value))  # it comes through a pipe
    assert (str(again), again.device) == (words, "cuda:0")


def test_a_card_that_does_not_answer_is_named_as_far_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> str:
        raise torch.AcceleratorError("CUDA error: device not ready")

    monkeypatch.setattr(devices, "describe_device", fail)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    said = r"cuda:1 \(CUDA_VISIBLE_DEVICES=3\) has failed: CUDA error: gone"
    with pytest.raises(DeviceError, match=said), device_errors_explained(torch.device("cuda", 1)):
        raise torch.AcceleratorError("CUDA error: gone")


def test_other_errors_are_not_of_the_device() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), device_errors_explained(CPU):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_slice_of_a_card_is_known_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "MIG-1a,MIG-2b")
    devices.card_id.cache_clear()
    assert devices.card_id(torch.device("cuda", 1)) == "MIG-2b"
    devices.card_id.cache_clear()


ROOT = Path(__file__).parents[2]
#: It stands for the code of others, and is run by itself.
FOREIGN = ROOT / "benchmarks" / "reference_loop.py"
#: A device of a text without its index, and calls that mean the current device of whoever calls.
WITHOUT_INDEX = re.compile(
    r'torch\.device\((?!"cpu"|"cuda", )(?!.*\)\.type\b)'
    r"|torch\.cuda\.(synchronize|current_stream|mem_get_info|memory_\w+|max_memory_\w+|Stream)\(\)"
)


@pytest.mark.parametrize("package", ["trainer", "search", "benchmarks"])
def test_no_device_is_chosen_elsewhere(package: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if WITHOUT_INDEX.search(line) and file not in (Path(devices.__file__), FOREIGN)
    ]
    assert found == []
