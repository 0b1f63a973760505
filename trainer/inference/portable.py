"""An ensemble as one module of plain tensor operations, whose shapes depend only on those of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.data.elements import ATOMIC_NUMBERS, SYMBOLS
from trainer.features.aev import make_aev_computer
from trainer.inference.ensemble import Ensemble
from trainer.networks.torchani_bridge import to_torchani


class PortableModel(nn.Module):
    """Computes total energies of padded structures, in float64.

    The length of a neighbor list depends on the coordinates, which an exported program does not support. Here
    all pairs and triples of atoms are computed, and terms beyond a cutoff are multiplied by zero: memory and
    time grow with the cube of the number of atoms.
    """

    kinds: Tensor
    shifts: Tensor
    upper: Tensor
    halves: Tensor

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        elements = ensemble.aev.elements
        computer = make_aev_computer(ensemble.aev).double()
        self.radial, self.angular = computer.radial, computer.angular
        self.members = nn.ModuleList(to_torchani(each.model).double() for each in ensemble.members)
        self.elements = elements
        kinds = torch.zeros(len(SYMBOLS) + 1, len(elements), dtype=torch.float64)
        # Padding adds nothing; the energy of an unknown element is NaN.
        shifts = torch.full((len(ensemble.members), len(SYMBOLS) + 1), torch.nan, dtype=torch.float64)
        shifts[:, 0] = 0
        for place, element in enumerate(elements):
            kinds[ATOMIC_NUMBERS[element], place] = 1
        for number, each in enumerate(ensemble.members):
            for element in ensemble.elements:
                shifts[number, ATOMIC_NUMBERS[element]] = each.self_energies[element]
        self.register_buffer("kinds", kinds)
        self.register_buffer("shifts", shifts)
        upper = torch.triu_indices(len(elements), len(elements))
        self.register_buffer("upper", upper)
        self.register_buffer("halves", torch.where(upper[0] == upper[1], 0.5, 1.0).double())
        self.requires_grad_(False)

    def forward(self, numbers: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies and their sample standard deviation over the members, (B,) each, hartree.

        The standard deviation of a single member is NaN.

        Parameters
        ----------
        numbers : (B, A) int64: atomic numbers, 0 or less where a structure has fewer than A atoms
        coordinates : (B, A, 3) float64, Å
        """
        numbers = numbers.clamp(min=0)
        kinds = self.kinds[numbers]
        aevs = self._aevs(kinds, coordinates)
        energies = []
        for number, member in enumerate(self.members):
            of_atoms = self.shifts[number][numbers]
            atomics: Any = member.atomics
            for place, element in enumerate(self.elements):
                of_atoms = of_atoms + kinds[..., place] * atomics[element](aevs).squeeze(-1)
            energies.append(of_atoms.sum(1))
        every = torch.stack(energies)
        if len(energies) == 1:
            return every[0], torch.full_like(every[0], torch.nan)
        return every.mean(0), every.std(0)

    def _aevs(self, kinds: Tensor, coordinates: Tensor) -> Tensor:
        """Compute the AEVs, (B, A, F)."""
        real = kinds.sum(-1)
        others = 1.0 - torch.eye(coordinates.shape[1], dtype=torch.float64, device=coordinates.device)
        pairs = real[:, :, None] * real[:, None, :] * others
        vectors = (coordinates[:, None, :, :] - coordinates[:, :, None, :]) * pairs[..., None]
        # The square root has no derivative at zero, so atoms that are not a pair get the distance one.
        squares = torch.where(pairs > 0, (vectors * vectors).sum(-1), 1.0)
        distances = squares.sqrt()

        within = pairs * (distances <= self.radial.cutoff) * self._cut(self.radial, distances)
        radial = self.radial.compute(distances[..., None]) * within[..., None]
        of_elements = torch.einsum("bijr,bje->bier", radial, kinds).flatten(2)

        within = pairs * (distances <= self.angular.cutoff) * self._cut(self.angular, distances)
        cosines = torch.einsum("bijx,bikx->bijk", vectors, vectors)
        cosines = cosines / (distances[:, :, :, None] * distances[:, :, None, :])
        both = within[:, :, :, None] * within[:, :, None, :] * others
        by_angle = self.angular.compute_cos_angles(cosines[..., None]) * both[..., None]
        by_distance = self.angular.compute_radial(
            distances[:, :, :, None, None], distances[:, :, None, :, None]
        )
        terms = by_distance[..., :, None] * by_angle[..., None, :]
        of_pairs = torch.einsum("bijksz,bke->bijesz", terms, kinds)
        of_pairs = torch.einsum("bijesz,bjf->bifesz", of_pairs, kinds)
        # Each angle was counted from both sides; those of two different elements are in two entries.
        angular = of_pairs[:, :, self.upper[0], self.upper[1]] * self.halves[:, None, None]
        return torch.cat([of_elements, angular.flatten(2)], dim=-1)

    @staticmethod
    def _cut(term: nn.Module, distances: Tensor) -> Tensor:
        cut: Tensor = term.cutoff_fn(distances, term.cutoff)  # type: ignore[operator]
        return cut
