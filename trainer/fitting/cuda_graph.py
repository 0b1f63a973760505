"""Operations on a GPU that are recorded once, as a CUDA graph, and replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from trainer.errors import DeviceError
from trainer.fitting.devices import CAPTURING, exhausted_memory, release_memory, says_out_of_memory


class GraphedCall:
    """A function without arguments whose operations are recorded at the second call, and then replayed.

    The first call is not recorded: it lets libraries and optimizers set up what they need. Everything that
    the operations read and write must stay where it is.

    Parameters
    ----------
    run : the function; the host may not wait for the device in it
    generators : of all random numbers that it draws

    Attributes
    ----------
    graph : once it was recorded
    """

    def __init__(
        self, run: Callable[[], None], device: torch.device, generators: Sequence[torch.Generator] = ()
    ) -> None:
        self._run = run
        self._device = device
        self._generators = generators
        self._called = False
        self._ended = False  # whether the last capture came to its end
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do it once more."""
        if not self._called:
            self._run()
            self._called = True
            return
        if self.graph is None:
            self.graph = self._record()
        self.graph.replay()

    def _record(self) -> torch.cuda.CUDAGraph:
        """Record the operations.

        Raises
        ------
        DeviceError
            if they cannot be: after a capture that failed nothing more can be trusted in this process.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        failure: RuntimeError | None = None
        try:
            with CAPTURING, torch.cuda.device(self._device):
                # Within a capture torch gives back no memory that it has kept for others.
                release_memory(self._device)
                self._capture(graph)
        except RuntimeError as error:
            failure = error
        if failure is None:
            return graph
        if exhausted_memory(failure) is not None and self._ended:
            raise failure
        # Not from it: what led to it is no reason to go on.
        raise DeviceError(f"a CUDA graph could not be recorded: {failure}", self._device)

    def _capture(self, graph: torch.cuda.CUDAGraph) -> None:
        stream, current = _recording_stream(self._device), torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        self._ended = False
        with torch.cuda.stream(stream):
            # This thread may not be that of the first call, and a handle cannot be made in a capture.
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
                    # It was recorded, and is too large to be made ready: that leaves nothing behind.
                    self._ended = says_out_of_memory(error)
                    raise
        current.wait_stream(stream)


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all, as libraries keep working memory for each stream on which they were used.

    torch hands out the same 32 streams of a priority again and again. Only this one has its priority, so that
    nothing else is ever begun on it.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
