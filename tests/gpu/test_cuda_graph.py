from __future__ import annotations

import pytest
import torch

from trainer.errors import DeviceError
from trainer.fitting import cuda_graph
from trainer.fitting.cuda_graph import GraphedCall
from trainer.fitting.devices import exhausted_memory

GPU = torch.device("cuda", 0)


def test_a_function_is_captured_at_its_second_call() -> None:
    count, calls = torch.zeros(1, device=GPU), []

    def add() -> None:
        calls.append(None)
        count.add_(1)

    call = GraphedCall(add, GPU)
    for _ in range(5):
        call()
    assert len(calls) == 2
    assert count.item() == 5


def test_nothing_else_is_begun_on_the_stream_of_captures() -> None:
    recording = cuda_graph._recording_stream(GPU)
    # More streams than torch has: it hands them out repeatedly.
    assert recording not in [torch.cuda.Stream(GPU) for _ in range(100)]  # type: ignore[no-untyped-call]


def test_after_a_capture_that_failed_nothing_is_trained() -> None:
    count = torch.zeros(1, device=GPU)
    first = [True]

    def waits() -> None:
        count.add_(1)
        if not first:
            count.item()
        first.clear()

    call = GraphedCall(waits, GPU)
    call()
    with pytest.raises(DeviceError, match="a CUDA graph could not be captured"):
        call()


def test_too_little_memory_in_a_capture_is_no_fault_of_the_device() -> None:
    first = [True]

    def takes() -> None:
        if not first:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        first.clear()

    call = GraphedCall(takes, GPU)
    call()
    with pytest.raises(RuntimeError) as caught:
        call()
    assert exhausted_memory(caught.value) == "device"
    first.append(True)
    call()  # the process goes on
