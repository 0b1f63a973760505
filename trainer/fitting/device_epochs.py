"""Epochs on a GPU: each step is a CUDA graph, and the host waits once per epoch, for the losses.

What changes from step to step is in tensors on the device: the layouts of all batches of the epoch, the
number of the step, learning rates, and the losses. Each sum has a fixed order: a training that is reproduced
or resumed on the same kind of GPU, with the same versions, gives the same numbers to a relative 1e-6. A GPU
and a CPU differ in rounding: in float64 by about 1e-7 of a loss after an epoch, as a GPU keeps learning rates
in float32. With dropout they differ by more, as they draw different random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trainer.features.batches import to_device
from trainer.features.static_batches import Positions, StaticBatches
from trainer.fitting.averages import new_share
from trainer.fitting.cuda_graph import GraphedCall
from trainer.fitting.device_predictions import DevicePredictions
from trainer.fitting.grouped_networks import GroupedNetworks
from trainer.fitting.optimizers import step_together
from trainer.fitting.randomness import dropout_seed, permutation_keys

if TYPE_CHECKING:
    from trainer.fitting.training import Training


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The batches of an epoch.

    Attributes
    ----------
    permutation : number of the permutation of the data
    permutations : (N, B) the positions of each batch, on the device
    usual : whether all batches fit into the usual capacities: a boolean on the device
    on_host : returns ``permutations`` on the host
    """

    permutation: int
    permutations: Tensor
    usual: Tensor
    on_host: Callable[[], Positions]


class DeviceEpochs:
    """Runs epochs of trainings on a GPU.

    Each instance has its own stream, so trainings with other batches in other threads do not delay it.

    Parameters
    ----------
    trainings : the trainings of a pack
    """

    def __init__(self, trainings: Sequence[Training]) -> None:
        self._trainings = trainings
        self._any = trainings[0]
        self._features = self._any.train.device_features
        self._size = min(self._any.config.batch_size, len(self._any.train))
        self._steps = math.ceil(len(self._any.train) / self._size)
        self._usual = self._features.layouts.capacities(self._size, sure=False)
        self._made: dict[bool, _Step] = {}
        self._ahead: _Epoch | None = None
        self._stream = torch.cuda.Stream(self._any.device)  # type: ignore[no-untyped-call]
        with self._on_stream():
            self._predictions = DevicePredictions(
                [training.evaluated_model for training in trainings],
                [training.evaluated.vector.detach() for training in trainings],
                self._any.validation.device_features,
            )
            self._predict = GraphedCall(self._predictions.step, self._any.device)

    def run(self, permutation: int) -> list[list[float]]:
        """Go through the training set in the permutation of this number, and evaluate.

        Returns
        -------
        For each training, its mean loss and the
        :meth:`~trainer.fitting.training.Subset.errors` of the validation set.
        """
        with self._on_stream():
            epoch = self._ahead
            if epoch is None or epoch.permutation != permutation:
                epoch = self._prepare(permutation)
            # The steps of the last epoch have finished: the host waits here only for this boolean.
            losses = self._step(usual=bool(epoch.usual)).epoch(epoch)
            measured = torch.stack([losses, *self._errors()], 1)
            # Prepared while the device is busy.
            self._ahead = self._prepare(permutation + 1)
            # Only here does the host wait for the device during an epoch.
            values: list[list[float]] = measured.tolist()
            return values

    def evaluate(self) -> list[list[float]]:
        """For each training, the :meth:`~trainer.fitting.training.Subset.errors` of the validation set."""
        with self._on_stream():
            values: list[list[float]] = torch.stack(self._errors(), 1).tolist()
            return values

    def _errors(self) -> tuple[Tensor, ...]:
        return self._any.validation.errors(self._predictions.run(self._predict))

    def graphs(self) -> tuple[tuple[torch.cuda.CUDAGraph, int], ...]:
        """Return the graphs of a step and of a predicted batch, each with its replays per epoch."""
        calls = (self._step(usual=True).call, self._steps), (self._predict, self._predictions.steps)
        return tuple((call.graph, times) for call, times in calls if call.graph is not None)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Run operations on the stream, after everything that this thread has enqueued on the device."""
        device = self._any.device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            # Also if the epoch is abandoned: its memory may be reused then.
            torch.cuda.current_stream(device).wait_stream(self._stream)

    def _prepare(self, permutation: int) -> _Epoch:
        """Prepare the batches of an epoch, with operations that the host does not wait for."""
        structures, layouts = len(self._any.train), self._features.layouts
        keys = permutation_keys(structures, self._any.split_seed, permutation)
        padding = self._steps * self._size - structures

        def on_host() -> Positions:
            positions = np.append(np.argsort(keys, kind="stable"), np.full(padding, structures))
            return positions.reshape(self._steps, self._size)

        positions = to_device(torch.from_numpy(keys), self._any.device).argsort(stable=True)
        permutations = torch.cat([positions, positions.new_full((padding,), structures)])
        permutations = permutations.view(self._steps, self._size)
        return _Epoch(permutation, permutations, layouts.fit(permutations, self._usual), on_host)

    def _step(self, *, usual: bool) -> _Step:
        if usual not in self._made:
            layouts = self._features.layouts
            capacities = self._usual if usual else layouts.capacities(self._size, sure=True)
            batches = self._features.batches(layouts.shape(self._size, capacities))
            self._made[usual] = _Step(self._trainings, batches, self._steps)
        return self._made[usual]


class _Step:
    """One step of trainings side by side: everything that it reads and writes keeps its address.

    Parameters
    ----------
    batches : batches of their training set, B structures each
    steps : steps of an epoch, N
    """

    def __init__(self, trainings: Sequence[Training], batches: StaticBatches, steps: int) -> None:
        self._trainings = trainings
        self._batches = batches
        self._steps = steps
        self._shape = shape = batches.shape
        subset = trainings[0].train
        device, dtype = subset.targets.device, subset.targets.dtype
        self._networks = GroupedNetworks(
            [training.model for training in trainings],
            [training.weights.vector.detach() for training in trainings],
            shape.capacities,
            trainings[0].config.precision,
            training=True,
        )
        self._drawing = [training for training in trainings if training.config.dropout]
        # Padding has the weight zero.
        nothing = subset.targets.new_zeros(1)
        self._targets = torch.cat([subset.targets, nothing])
        self._weights = torch.cat([subset.weights, nothing])
        self._sizes = torch.full((steps, 1), shape.size, dtype=torch.float64, device=device)
        self._sizes[-1:].sub_(steps * shape.size - len(subset))
        self._layouts = torch.empty((steps, shape.indices), dtype=torch.int32, device=device)
        self._values = torch.empty((steps, 2, shape.size), dtype=dtype, device=device)
        self._losses = torch.empty((steps, len(trainings)), dtype=torch.float64, device=device)
        self._grad_outputs = torch.zeros((shape.size + 1, len(trainings)), dtype=dtype, device=device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)
        self._averaged = [training for training in trainings if training.average is not None]
        self._shares = torch.empty((steps, len(self._averaged)), dtype=dtype, device=device)
        self.call = GraphedCall(self._step, device, self._networks.generators)

    def epoch(self, epoch: _Epoch) -> Tensor:
        """Go through the batches of an epoch, and return the mean losses, (K,) on the device."""
        self._begin(epoch)
        with closing(self._batches.feed(epoch.on_host, self._steps)) as fed:
            for _ in fed:
                self.call()
        return (self._losses * self._sizes).sum(0) / (2 * len(self._trainings[0].train))

    def _begin(self, epoch: _Epoch) -> None:
        features = self._trainings[0].train.device_features
        features.layouts.lay_out(epoch.permutations, self._shape, self._layouts)
        flat = epoch.permutations.flatten()
        targets, weights = self._values.unbind(1)
        targets.copy_(self._targets.index_select(0, flat).view_as(targets))
        # The gradient of a squared error is twice the error.
        weights.copy_(2 * self._weights.index_select(0, flat).view_as(weights) / self._sizes)
        self._number.zero_()
        numbers = torch.arange(1, self._steps + 1, dtype=torch.float64, device=self._shares.device)
        for shares, training in zip(self._shares.unbind(1), self._averaged, strict=True):
            assert training.config.ema_decay is not None
            shares.copy_(new_share(training.config.ema_decay, numbers + training.epoch * self._steps))
        for training, generator in zip(self._drawing, self._networks.generators, strict=True):
            generator.manual_seed(dropout_seed(training.config.seed, training.epoch + 1))

    def _step(self) -> None:
        """Take the next batch, compute the gradients, and update the weights."""
        rows, owners, atoms = self._shape.divide(self._layouts.index_select(0, self._number).squeeze(0))
        target, weight = self._values.index_select(0, self._number).view(2, -1, 1).unbind()
        source = self._batches.source
        gathered = rows if self._batches.gathered else None
        energies = self._networks.forward(source, gathered)
        error = self._shape.over_structures(energies, atoms) - target
        grad_outputs = torch.mul(error, weight, out=self._grad_outputs.narrow(0, 0, self._shape.size))
        self._losses.index_copy_(
            0, self._number, (grad_outputs * error).sum(0, keepdim=True, dtype=torch.float64)
        )
        self._networks.backward(source, gathered, self._grad_outputs.index_select(0, owners))
        step_together([training.optimizer for training in self._trainings], self._networks.gradients)
        if self._averaged:
            shares = self._shares.index_select(0, self._number).squeeze(0)
            for share, training in zip(shares.unbind(), self._averaged, strict=True):
                assert training.average is not None
                training.average.lerp_(training.weights.vector.detach(), share)
        self._number.add_(1)
