"""Atomic environment vectors (AEVs) of molecules, computed by torchani."""

from __future__ import annotations

import math
import warnings
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config import AEVConfig
from trainer.data.dataset import Dataset, Molecule
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.errors import DataError

with warnings.catch_warnings():
    # torchani warns that its CUDA extensions were not compiled; the strategy used here needs none.
    warnings.filterwarnings("ignore", message="The extensions", category=UserWarning)
    from torchani.aev import AEVComputer

#: Angles and atoms in one chunk: they bound the memory of the computation to about a quarter of a GiB.
MAX_TRIPLES: Final = 100_000
MAX_ATOMS: Final = 8192


def make_aev_computer(config: AEVConfig) -> AEVComputer:
    """torchani's module for these constants, in float32 as torchani makes it."""
    sections = [math.pi * (i + 0.5) / config.angle_sections for i in range(config.angle_sections)]
    return AEVComputer.from_constants(
        radial_cutoff=config.radial_cutoff,
        radial_eta=config.radial_eta,
        radial_shifts=config.radial_shifts,
        angular_cutoff=config.angular_cutoff,
        angular_eta=config.angular_eta,
        angular_zeta=config.zeta,
        angular_shifts=config.angular_shifts,
        sections=sections,
        num_species=len(config.elements),
        strategy="pyaev",
    )


def aev_length(config: AEVConfig) -> int:
    """Numbers in the AEV of one atom, F: 384 with the constants of ANI-1x."""
    kinds = len(config.elements)
    angular = len(config.angular_shifts) * config.angle_sections
    return kinds * len(config.radial_shifts) + kinds * (kinds + 1) // 2 * angular


def refuse_other_elements(dataset: Dataset, config: AEVConfig) -> None:
    """Make sure that there are features for every element of the data.

    Raises
    ------
    DataError
        if there are not.
    """
    if unknown := [e for e in dataset.elements if e not in config.elements]:
        raise DataError(
            f"the data holds {', '.join(unknown)}, but the features are for "
            f"{', '.join(config.elements)} only: leave those molecules out, or extend features.aev.elements"
        )


class MoleculeFeatures:
    """Computes AEVs of structures of one molecule at a time, so that nothing is padded.

    The arithmetic is float64, and the result is rounded to float32: it then does not depend on which
    structures are computed together, nor on the number of threads.
    """

    def __init__(self, config: AEVConfig, device: torch.device) -> None:
        self._computer = make_aev_computer(config).to(device, torch.float64)
        self._numbers = np.array([ATOMIC_NUMBERS[e] for e in config.elements])
        self._device = device

    @staticmethod
    def chunk(molecule: Molecule) -> int:
        """How many structures of the molecule may be computed at once."""
        triples = molecule.atoms * math.comb(molecule.atoms - 1, 2)
        return max(1, min(MAX_TRIPLES // max(1, triples), MAX_ATOMS // molecule.atoms))

    @torch.no_grad()
    def compute(self, molecule: Molecule, structures: npt.NDArray[np.int64] | slice) -> Tensor:
        """AEVs of these of the molecule's structures (n of them, not more than ``chunk`` allows).

        Returns
        -------
        (n, Na, F) float32; the atoms are sorted by element, and those of one element are in the file's order.
        """
        species = np.argmax(molecule.atomic_numbers[:, None] == self._numbers, axis=1)
        order = np.argsort(species, kind="stable")
        coordinates = torch.from_numpy(
            molecule.coordinates[structures][:, order].astype(np.float64, order="C")
        )
        kinds = torch.from_numpy(species[order]).to(self._device).repeat(len(coordinates), 1)
        aevs: Tensor = self._computer(kinds, coordinates.to(self._device))
        return aevs.to(torch.float32)
