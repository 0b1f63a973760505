"""Epochs of which the host only gives the signal: each step is on the device, recorded once and repeated.

On a GPU a step is a CUDA graph. What changes from step to step is in tensors on the device: the order of the
epoch, the number of the step, learning rates, and sums of losses. The host learns of an epoch when it is
over.

Recorded or not, a step does the same operations, and each of their sums has a fixed order on every device: a
training that is repeated or resumed on the same kind of GPU, with the same versions, gives the same numbers
to a relative 1e-6. Between a GPU and a CPU they differ in rounding: in float64 by about 1e-7 of a loss after
an epoch, as a GPU keeps learning rates in float32. With dropout they differ by more, as its random numbers
are others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from trainer.config import Precision
from trainer.features.fixed_batches import FixedBatches, FixedFeatures, Frame, to_device
from trainer.fitting.devices import products
from trainer.fitting.gradients import Gradient
from trainer.fitting.randomness import dropout_seed, order_keys
from trainer.fitting.training import Training


class Step:
    """One step of trainings side by side: everything that it reads and writes stays where it is.

    Parameters
    ----------
    trainings : of a pack
    gradient : of their networks
    batches : of their training part, B structures each
    epoch_steps : steps of an epoch, N

    Attributes
    ----------
    losses : (K,) float64: sum of the losses of the structures that the epoch went through
    """

    def __init__(
        self, trainings: Sequence[Training], gradient: Gradient, batches: FixedBatches, epoch_steps: int
    ) -> None:
        self.batches = batches
        self._trainings = trainings
        self._gradient = gradient
        part, size = trainings[0].train, batches.frame.size
        device, dtype = part.targets.device, part.targets.dtype
        # What fills up the last batch counts nothing.
        nothing = part.targets.new_zeros(1)
        self._targets = torch.cat([part.targets, nothing])
        self._weights = torch.cat([part.weights, nothing])
        self._sizes = torch.full((epoch_steps,), size, dtype=dtype, device=device)
        self._sizes[-1:].sub_(epoch_steps * size - len(part))
        self._orders = torch.zeros((epoch_steps, size), dtype=torch.int64, device=device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)
        self._numbers = torch.zeros(len(trainings), dtype=torch.float64, device=device)
        self.losses = torch.zeros(len(trainings), dtype=torch.float64, device=device)

    def begin(self, orders: Tensor) -> None:
        """Begin an epoch that goes through the batches at ``orders`` (N, B)."""
        self._orders.copy_(orders)
        self._number.zero_()
        self.losses.zero_()
        for number, training in zip(self._numbers, self._trainings, strict=True):
            number.fill_(training.epoch * len(orders))

    def run(self) -> None:
        """Take the next batch, compute the gradients, and change the weights."""
        positions = self._orders.index_select(0, self._number).squeeze(0)
        size = self._sizes.index_select(0, self._number)
        batch = self.batches.load(positions)
        target = self._targets.index_select(0, positions)
        weight = self._weights.index_select(0, positions).div_(size)
        self._gradient.start()
        losses = self._gradient.add(batch, target, weight)
        self._gradient.finish()
        self._number.add_(1)
        self._numbers.add_(1)
        for training, vector, number in zip(
            self._trainings, self._gradient.vectors, self._numbers.unbind(), strict=True
        ):
            training.step(vector, number)
        self.losses.addcmul_(losses.double(), size.double())


class Recorded:
    """A function without arguments, whose operations on a GPU are recorded once, and repeated from then on.

    The first call is not recorded: it lets libraries and optimizers set up what they need.

    Parameters
    ----------
    generators : of all random numbers that it draws
    """

    def __init__(
        self,
        run: Callable[[], None],
        device: torch.device,
        precision: Precision,
        generators: Sequence[torch.Generator],
    ) -> None:
        self._run = run
        self._device = device
        self._precision = precision
        self._generators = generators
        self._called = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do it once more."""
        if self._graph is None:
            with products(self._precision, self._device):
                if not self._called or self._device.type != "cuda":
                    self._run()
                    self._called = True
                    return
                self._graph = self._record()
        self._graph.replay()

    def _record(self) -> torch.cuda.CUDAGraph:
        stream = _recording_stream(self._device)
        with torch.cuda.stream(stream):
            # This thread may not be that of the first call, and what is made here cannot be recorded.
            torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        # Other threads may use the device meanwhile; only one can record, which ``products`` sees to.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._run()
        return graph


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all, as libraries keep working memory for each stream on which they were used."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The batches of an epoch on the device.

    Attributes
    ----------
    order : its number
    orders : (N, B) int64: positions in the part; the last batch is filled up with the number of structures
    usual : a boolean scalar: whether no batch has more atoms than there is usually place for
    """

    order: int
    orders: Tensor
    usual: Tensor


class RecordedEpochs:
    """Takes trainings through the training part, an epoch at a time.

    Parameters
    ----------
    trainings : of a pack; their part is one for which ``possible`` holds
    """

    def __init__(self, trainings: Sequence[Training]) -> None:
        self._trainings = trainings
        self._any = trainings[0]
        self._features = _fixed(self._any)
        self._size = min(self._any.config.batch_size, len(self._any.train))
        self._steps = math.ceil(len(self._any.train) / self._size)
        self._gradient = Gradient([training.model for training in trainings])
        self._drawing = [
            (training, generator)
            for training, generator in zip(trainings, self._gradient.dropouts, strict=True)
            if training.config.dropout
        ]
        self._usual = self._features.layouts.capacities(self._size, sure=False)
        self._recorded: dict[bool, tuple[Step, Recorded]] = {}
        self._ahead: _Epoch | None = None

    @staticmethod
    def possible(training: Training) -> bool:
        """Whether batches of one shape can be made of the training part."""
        return isinstance(training.train.features, FixedFeatures)

    def run(self, order: int) -> Tensor:
        """Go through the training part in the order of this number: the mean losses, (K,) on the device."""
        epoch = self._ahead
        if epoch is None or epoch.order != order:
            epoch = self._prepare(order)
        # The steps of the last epoch are over: the host waits here for nothing but this number.
        step, recorded = self._prepared_step(usual=bool(epoch.usual))
        step.begin(epoch.orders)
        for training, generator in self._drawing:
            generator.manual_seed(dropout_seed(training.config.seed, training.epoch + 1))
        with closing(step.batches.feed(epoch.orders)) as fed:
            for _ in fed:
                recorded()
        # While the device is at work.
        self._ahead = self._prepare(order + 1)
        return step.losses / len(self._any.train)

    def _prepare(self, order: int) -> _Epoch:
        """Lay out an epoch, by operations that the host does not wait for."""
        part = self._any.train
        keys = torch.from_numpy(order_keys(len(part), self._any.split_seed, order))
        positions = to_device(keys, self._any.device).argsort(stable=True)
        empty = positions.new_full((self._steps * self._size - len(part),), len(part))
        orders = torch.cat([positions, empty]).view(self._steps, self._size)
        return _Epoch(order, orders, self._features.layouts.fit(orders, self._usual))

    def _prepared_step(self, *, usual: bool) -> tuple[Step, Recorded]:
        if usual not in self._recorded:
            layouts = self._features.layouts
            capacities = self._usual if usual else layouts.capacities(self._size, sure=True)
            batches = self._features.batches(Frame(layouts, self._size, capacities))
            step = Step(self._trainings, self._gradient, batches, self._steps)
            generators = [generator for _, generator in self._drawing]
            config = self._any.config
            recorded = Recorded(step.run, self._any.device, config.precision, generators)
            self._recorded[usual] = step, recorded
        return self._recorded[usual]


def _fixed(training: Training) -> FixedFeatures:
    features = training.train.features
    assert isinstance(features, FixedFeatures)
    return features
