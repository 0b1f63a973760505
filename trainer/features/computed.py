"""AEVs that are computed for each batch, on the GPU that uses them."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config import AEVConfig
from trainer.data.dataset import Dataset
from trainer.features.aev import MoleculeFeatures, aev_length
from trainer.features.batches import to_device
from trainer.features.static_batches import (
    BatchShape,
    DeviceFeatures,
    DeviceLayouts,
    Positions,
    StaticBatches,
)


class Computed(DeviceFeatures):
    """Features of structures that compute the AEVs for each batch and store none.

    Parameters
    ----------
    counts : (M, E) number of atoms of each element in each molecule
    structures : (n,) global indices
    dtype : type of the AEVs
    """

    def __init__(
        self,
        dataset: Dataset,
        config: AEVConfig,
        counts: npt.NDArray[np.int64],
        structures: npt.NDArray[np.int64],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._dataset = dataset
        self._features = MoleculeFeatures(config, device)
        self._length = aev_length(config)
        self._structures = structures
        self._dtype = dtype
        nowhere = np.zeros((counts.shape[1], len(structures)), dtype=np.int64)
        self.layouts = DeviceLayouts(counts, dataset.molecule_of(structures), nowhere, device)

    def batches(self, shape: BatchShape) -> StaticBatches:
        """See :class:`DeviceFeatures`."""
        stage = torch.zeros((shape.rows, self._length), dtype=self._dtype, device=self.layouts.device)
        return _ComputedBatches(shape, self, stage)

    def compute(self, positions: Positions, shape: BatchShape, stage: Tensor) -> None:
        """Compute the AEVs of the batch at ``positions`` (B,) into ``stage`` (C, F)."""
        layouts, stage = self.layouts, stage.zero_()
        positions = positions[positions < layouts.structures]  # padding has no atoms
        molecule = layouts.molecule[positions]
        begins = layouts.begins(positions, shape.capacities)
        for m in np.unique(molecule):
            members = np.flatnonzero(molecule == m)
            within = self._structures[positions[members]] - self._dataset.offsets[m]
            aevs = self._features.compute(self._dataset.molecules[m], within).flatten(0, 1)
            count = layouts.counts[m]
            place = np.concatenate([np.arange(c) for c in count])
            rows = begins[members].repeat(count, axis=1) + place
            stage.index_copy_(
                0, to_device(torch.from_numpy(rows.ravel()), stage.device), aevs.to(stage.dtype)
            )


class _ComputedBatches(StaticBatches):
    gathered = False

    def __init__(self, shape: BatchShape, features: Computed, stage: Tensor) -> None:
        self.shape = shape
        self.source = stage
        self._features = features

    def feed(self, batch_positions: Callable[[], Positions], batches: int) -> Generator[None]:
        for positions in batch_positions():
            self._features.compute(positions, self.shape, self.source)
            yield
