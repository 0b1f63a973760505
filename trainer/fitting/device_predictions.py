"""Predicted energies of a whole subset on a GPU, for several networks at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trainer.config import Precision
from trainer.features.batches import to_device
from trainer.features.static_batches import DeviceFeatures
from trainer.fitting.grouped_networks import GroupedNetworks
from trainer.networks.model import ElementNetworks

#: Number of structures that are evaluated at once.
BATCH: Final = 8192


class DevicePredictions:
    """Predicts the energies of the n structures of a subset, in their order.

    Parameters
    ----------
    models, weights : K networks, and their weights as in :class:`~trainer.fitting.weights.FlatWeights`

    Attributes
    ----------
    steps : number of batches
    """

    def __init__(
        self, models: Sequence[ElementNetworks], weights: Sequence[Tensor], features: DeviceFeatures
    ) -> None:
        layouts, structures = features.layouts, features.layouts.structures
        size = min(BATCH, structures)
        self.steps = math.ceil(structures / size)
        batch_positions = np.full(self.steps * size, structures)
        batch_positions[:structures] = np.arange(structures)
        self._batch_positions = batch_positions.reshape(self.steps, size)
        self._shape = layouts.shape(size, layouts.capacities_of(self._batch_positions))
        self._batches = features.batches(self._shape)
        self._layouts = torch.empty(
            (self.steps, self._shape.indices), dtype=torch.int32, device=layouts.device
        )
        there = to_device(torch.from_numpy(self._batch_positions), layouts.device)
        layouts.lay_out(there, self._shape, self._layouts)
        dtype = weights[0].dtype
        exact: Precision = "float64" if dtype == torch.float64 else "float32"
        self._networks = GroupedNetworks(models, weights, self._shape.capacities, exact, training=False)
        self._number = torch.zeros(1, dtype=torch.int64, device=layouts.device)
        self._structures = structures
        self._energies = torch.zeros((self.steps, size, len(models)), dtype=dtype, device=layouts.device)

    def step(self) -> None:
        """Predict the next batch."""
        rows, _, atoms = self._shape.divide(self._layouts.index_select(0, self._number).squeeze(0))
        batches = self._batches
        energies = self._networks.forward(batches.source, rows if batches.gathered else None)
        of_structures = self._shape.over_structures(energies, atoms)
        self._energies.index_copy_(0, self._number, of_structures.unsqueeze(0))
        self._number.add_(1)

    def run(self, step: Callable[[], None] | None = None) -> Tensor:
        """Return the energies less self-energies, (n, K) hartree; they are valid until the next call.

        Parameters
        ----------
        step : a function that runs :meth:`step`, such as its CUDA graph; None: :meth:`step` itself
        """
        self._number.zero_()
        with closing(self._batches.feed(lambda: self._batch_positions, self.steps)) as fed:
            for _ in fed:
                (step or self.step)()
        return self._energies.flatten(0, 1)[: self._structures]
