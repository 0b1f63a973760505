"""Operations on a GPU that are captured once in a CUDA graph and replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from trainer.errors import DeviceError
from trainer.fitting.devices import CAPTURING, exhausted_memory, release_memory, says_out_of_memory


class GraphedCall:
    """A function without arguments whose operations are captured at the second call and then replayed.

    The first call is not captured: it lets libraries and optimizers set up what they need. Everything that
    the operations read and write must stay at the same address.

    Parameters
    ----------
    run : the function; the host must not wait for the device in it
    generators : the generators of all random numbers that it draws

    Attributes
    ----------
    graph : the captured graph; None before the capture
    """

    def __init__(
        self, run: Callable[[], None], device: torch.device, generators: Sequence[torch.Generator] = ()
    ) -> None:
        self._run = run
        self._device = device
        self._generators = generators
        self._called = False
        self._ended = False  # whether the last capture was ended
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run the operations once more."""
        if not self._called:
            self._run()
            self._called = True
            return
        if self.graph is None:
            self.graph = self._record()
        self.graph.replay()

    def _record(self) -> torch.cuda.CUDAGraph:
        """Capture the operations.

        Raises
        ------
        DeviceError
            if that fails: after a failed capture nothing on the device can be trusted in this process.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        failure: RuntimeError | None = None
        try:
            with CAPTURING, torch.cuda.device(self._device):
                # During a capture torch does not release cached memory.
                release_memory(self._device)
                self._capture(graph)
        except RuntimeError as error:
            failure = error
        if failure is None:
            return graph
        if exhausted_memory(failure) is not None and self._ended:
            raise failure
        # Not chained: an out-of-memory error as its cause would suggest that the process can go on.
        raise DeviceError(f"a CUDA graph could not be captured: {failure}", self._device)

    def _capture(self, graph: torch.cuda.CUDAGraph) -> None:
        stream, current = _recording_stream(self._device), torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        self._ended = False
        with torch.cuda.stream(stream):
            # This thread may differ from that of the first call, and a capture cannot create a handle.
            torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]
            # Other threads may use the device meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._run()
            finally:
                try:
                    graph.capture_end()
                    self._ended = True
                except RuntimeError as error:
                    # It was captured, but is too large to be instantiated; this leaves the device usable.
                    self._ended = says_out_of_memory(error)
                    raise
        current.wait_stream(stream)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the capture stream of a device, one for all graphs, as libraries keep memory for each stream.

    torch hands out the same 32 streams of a priority again and again. No other stream has this priority, so
    nothing else ever runs on this one.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
