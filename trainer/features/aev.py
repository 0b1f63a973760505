"""Atomic environment vectors (AEVs) of molecules, computed by torchani."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import AEVConfig
from trainer.data.dataset import Dataset, Molecule
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.errors import DataError
from trainer.features.batches import to_device

with warnings.catch_warnings():
    # torchani warns that its CUDA extensions were not compiled; the strategy used here does not need them.
    warnings.filterwarnings("ignore", message="The extensions", category=UserWarning)
    from torchani.aev import AEVComputer

#: Angles and atoms in one chunk, whose intermediate results take some 30 MiB. With much smaller chunks, the
#: overhead of the many small operations would exceed their computation.
MAX_TRIPLES: Final = 65_536
MAX_ATOMS: Final = 8192

#: Functions are computed for a multiple of this many rows. torch computes the remainder of a vector by other
#: code, which may give other last bits; with this multiple there is no remainder.
ROWS: Final = 32


def make_aev_computer(config: AEVConfig) -> AEVComputer:
    """Return torchani's module for these constants, in float32 as torchani makes it."""
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
    """Return the length of the AEV of one atom, F: 384 with the constants of ANI-1x."""
    kinds = len(config.elements)
    angular = len(config.angular_shifts) * config.angle_sections
    return kinds * len(config.radial_shifts) + kinds * (kinds + 1) // 2 * angular


def columns(config: AEVConfig, neighbors: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the columns, (F_c,) ascending, of an atom's AEV that can differ from zero, given its neighbors.

    An AEV holds the radial terms of each element, then the angular terms of each pair of elements, the
    pairs in the order of the upper triangle of a matrix.

    Parameters
    ----------
    neighbors : number of neighbors of each of ``AEVConfig.elements``
    """
    kinds, radial = len(config.elements), len(config.radial_shifts)
    angular = len(config.angular_shifts) * config.angle_sections
    needed: list[tuple[int, ...]] = [(e,) for e in range(kinds) for _ in range(radial)]
    needed += [(one, two) for one in range(kinds) for two in range(one, kinds) for _ in range(angular)]
    assert len(needed) == aev_length(config)
    can = [all(neighbors[e] >= some.count(e) for e in some) for some in needed]
    return np.flatnonzero(can)


def columns_of_set(config: AEVConfig, elements: Iterable[int]) -> npt.NDArray[np.int64]:
    """Return the columns, (F_s,) ascending, that neighbors of these elements can make differ from zero."""
    present = set(elements)
    return columns(config, [2 * (e in present) for e in range(len(config.elements))])


def refuse_other_elements(dataset: Dataset, config: AEVConfig) -> None:
    """Raise an error if the data has an element without features.

    Raises
    ------
    DataError
        if there is one.
    """
    if unknown := [e for e in dataset.elements if e not in config.elements]:
        raise DataError(
            f"the data holds {', '.join(unknown)}, but the features are for "
            f"{', '.join(config.elements)} only: leave those molecules out, or extend features.aev.elements"
        )


class MoleculeFeatures:
    """Computes AEVs of structures of one molecule at a time, so that no padding is needed.

    The terms are torchani's. The sum that each term belongs to is determined once per molecule, as all its
    structures have the same atoms. On a given device the result does not depend on which structures are
    computed together, or on the number of threads, to the last bit.
    """

    def __init__(self, config: AEVConfig, device: torch.device) -> None:
        self._computer = make_aev_computer(config).to(device)
        self._config = config
        self._numbers = np.array([ATOMIC_NUMBERS[e] for e in config.elements])
        self._device = device

    @staticmethod
    def chunk(molecule: Molecule) -> int:
        """Return the number of structures of the molecule that are computed at once."""
        triples = molecule.atoms * math.comb(molecule.atoms - 1, 2)
        return max(1, min(MAX_TRIPLES // max(1, triples), MAX_ATOMS // molecule.atoms))

    def compute(self, molecule: Molecule, structures: npt.NDArray[np.int64] | slice) -> Tensor:
        """Compute the AEVs of n structures of the molecule.

        Returns
        -------
        (n, Na, F) float32; the atoms are sorted by element, and those of one element are in the file's order.
        """
        compact = self.compact(molecule, structures)
        kept = columns_of_set(self._config, self._elements(molecule).tolist())
        aevs = compact.new_zeros((*compact.shape[:2], aev_length(self._config)))
        aevs[..., to_device(torch.from_numpy(kept), self._device)] = compact
        return aevs

    @torch.no_grad()
    def compact(self, molecule: Molecule, structures: npt.NDArray[np.int64] | slice) -> Tensor:
        """Compute as :meth:`compute`, but only the :func:`columns_of_set` of its elements: (n, Na, F_s)."""
        elements = self._elements(molecule)
        order = np.argsort(elements, kind="stable")
        species = tuple(elements[order].tolist())
        chosen = molecule.coordinates[structures][:, order].astype(np.float32, order="C")
        coordinates = to_device(torch.from_numpy(chosen), self._device)
        length = len(columns_of_set(self._config, species))
        aevs = torch.empty((len(coordinates), molecule.atoms, length), device=self._device)
        with _one_thread():
            for begin in range(0, len(coordinates), self.chunk(molecule)):
                chunk = slice(begin, begin + self.chunk(molecule))
                self._compute_chunk(species, coordinates[chunk], aevs[chunk])
        return aevs

    def of_columns(
        self,
        molecule: Molecule,
        structures: npt.NDArray[np.int64] | slice,
        kept: Sequence[npt.NDArray[np.int64]],
    ) -> list[Tensor]:
        """Compute as :meth:`compute`, but only some columns for each element of the molecule.

        Parameters
        ----------
        kept : for each element, (F_e,) ascending: some of the :func:`columns_of_set` of the molecule

        Returns
        -------
        For each element, (n, c, F_e) for its c atoms, contiguous.
        """
        elements, counts = np.unique(self._elements(molecule), return_counts=True)
        of_set = columns_of_set(self._config, elements.tolist())
        by_element = torch.split(self.compact(molecule, structures), counts.tolist(), dim=1)
        return [
            torch.cat([aevs[..., begin:end] for begin, end in _runs(np.searchsorted(of_set, some))], -1)
            for aevs, some in zip(by_element, kept, strict=True)
        ]

    def _elements(self, molecule: Molecule) -> npt.NDArray[np.int64]:
        """Return the element of each atom, (Na,), as index into ``AEVConfig.elements``."""
        elements: npt.NDArray[np.int64] = np.argmax(molecule.atomic_numbers[:, None] == self._numbers, axis=1)
        return elements

    def _compute_chunk(self, species: tuple[int, ...], coordinates: Tensor, aevs: Tensor) -> None:
        """Write the AEVs of structures with atoms of these species into ``aevs``."""
        structures, atoms, _ = coordinates.shape
        radial, angular = self._computer.radial, self._computer.angular
        terms = _Terms(*(to_device(indices, self._device) for indices in _terms(species, structures)))
        vectors = coordinates.view(-1, 3).index_select(0, terms.others)
        vectors -= coordinates.view(-1, 3).index_select(0, terms.atoms)
        distances = vectors.norm(dim=-1)

        near, begins = _kept(distances <= radial.cutoff, terms.first_pairs)
        values = radial(distances.index_select(0, _fill_up(near)))
        # A sum of adjacent rows has the same order on every device, unlike a sum by index_add.
        sums = functional.embedding_bag(
            torch.arange(len(near), device=self._device), values, begins, mode="sum"
        )
        length = len(set(species)) * radial.num_feats
        aevs[..., :length] = sums.view(structures, atoms, length)

        within = distances <= angular.cutoff
        reached = within.index_select(0, terms.one_side) & within.index_select(0, terms.other_side)
        near, begins = _kept(reached, terms.first_angles)
        angles = _fill_up(near)
        sides = torch.cat([terms.one_side.index_select(0, angles), terms.other_side.index_select(0, angles)])
        one, other = distances.index_select(0, sides).view(2, -1, 1)
        one_vector, other_vector = vectors.index_select(0, sides).view(2, -1, 3)
        cosines = (one_vector * other_vector).sum(1, keepdim=True) / (one * other).clamp(min=1e-10)
        by_angle = angular.compute_cos_angles(cosines)
        by_distance = angular.compute_radial(one, other)
        by_distance *= angular.cutoff_fn(one, angular.cutoff) * angular.cutoff_fn(other, angular.cutoff)
        # torchani's module computes the product for each angle: many numbers, of which only sums are needed.
        each = torch.arange(len(near), device=self._device)
        products = [
            functional.embedding_bag(each, by_angle, begins, mode="sum", per_sample_weights=weights)
            for weights in by_distance[: len(near)].T.contiguous()
        ]
        aevs[..., length:] = torch.stack(products, 1).view(structures, atoms, aevs.shape[2] - length)


def _runs(numbers: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Divide ascending numbers into runs of consecutive numbers, from the first to one after the last."""
    if not len(numbers):
        return [(0, 0)]
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts]


def _kept(mask: Tensor, firsts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices where ``mask`` is true, and how many of them are before each of ``firsts``."""
    return mask.nonzero().flatten(), functional.pad(mask.cumsum(0), (1, 0)).index_select(0, firsts)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Stop torch from dividing operations of the calling thread, as each share would have a remainder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fill_up(indices: Tensor) -> Tensor:
    """Repeat the first index until the length is a multiple of ``ROWS``."""
    missing = -len(indices) % ROWS
    return torch.cat([indices, indices[:1].expand(missing)])


class _Terms(NamedTuple):
    """The terms of the AEVs of structures with the same atoms, sorted by the sums that they belong to.

    Atoms are numbered through all structures. A pair is an atom with another atom of its structure. An angle
    has two pairs of the same atom, its vertex, as sides. There is a radial sum for each atom and
    element of the molecule, and an angular one for each atom and pair of these elements.

    Attributes
    ----------
    atoms, others : (P,) the atoms of each pair
    first_pairs : for each radial sum, its first pair
    one_side, other_side : (T,) the sides of each angle
    first_angles : for each angular sum, its first angle
    """

    atoms: Tensor
    others: Tensor
    first_pairs: Tensor
    one_side: Tensor
    other_side: Tensor
    first_angles: Tensor


@lru_cache(maxsize=8)
def _terms(species: tuple[int, ...], structures: int) -> _Terms:
    """Return the terms of this many structures whose atoms are of these species, in sorted order."""
    one, atoms = _terms_of_one(species), len(species)
    pairs, angles = len(one.atoms), len(one.one_side)
    return _Terms(
        atoms=_of_each(one.atoms, structures, atoms),
        others=_of_each(one.others, structures, atoms),
        first_pairs=_of_each(one.first_pairs, structures, pairs),
        one_side=_of_each(one.one_side, structures, pairs),
        other_side=_of_each(one.other_side, structures, pairs),
        first_angles=_of_each(one.first_angles, structures, angles),
    )


@lru_cache(maxsize=1024)
def _terms_of_one(species: tuple[int, ...]) -> _Terms:
    count, present = len(species), sorted(set(species))
    kinds, kind_pairs = len(present), math.comb(len(present) + 1, 2)
    kind = torch.tensor([present.index(element) for element in species])
    kind_pair = torch.zeros((kinds, kinds), dtype=torch.int64)
    upper = tuple(torch.triu_indices(kinds, kinds))
    kind_pair[upper] = kind_pair.T[upper] = torch.arange(kind_pairs)

    atoms, others = (~torch.eye(count, dtype=torch.bool)).nonzero().T
    pair_sums = atoms * kinds + kind[others]
    # The pairs of an atom are adjacent, and any two of them are the sides of an angle.
    sides = _of_each(torch.triu_indices(count - 1, count - 1, 1), count, count - 1)
    angle_sums = atoms[sides[0]] * kind_pairs + kind_pair[tuple(kind[others[sides]])]
    angle_sums, order = angle_sums.sort(stable=True)
    return _Terms(
        atoms=atoms,
        others=others,
        first_pairs=torch.searchsorted(pair_sums, torch.arange(count * kinds)),
        one_side=sides[0, order],
        other_side=sides[1, order],
        first_angles=torch.searchsorted(angle_sums, torch.arange(count * kind_pairs)),
    )


def _of_each(indices: Tensor, things: int, count: int) -> Tensor:
    """Repeat (..., n) indices into the ``count`` parts of a thing for this many things: (..., things * n)."""
    begins = torch.arange(things)[:, None] * count
    return (begins + indices[..., None, :]).flatten(-2)
