"""Make a data set shaped like ANI-1's molecules of one to four heavy atoms, to measure speed with.

The molecules are real, but their geometries are perturbed at random and the energies mean nothing: networks
trained on them are useful only for the time that the training takes.

    python -m benchmarks.make_big OUT.h5 --structures 864898
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import numpy.typing as npt

#: Structures of the ANI-1 release by number of heavy atoms.
#: Smith, Isayev, Roitberg, Sci. Data 4, 170193 (2017).
ANI1_STRUCTURES: Final = {1: 10_800, 2: 50_962, 3: 151_200, 4: 651_936}

FULL_SIZE: Final = sum(ANI1_STRUCTURES.values())

MOLECULES: Final = Path(__file__).with_name("molecules.xyz")

#: Standard deviation of an atom's displacement along each axis, Å.
DISPLACEMENT: Final = 0.08

#: Structures held in memory at once.
CHUNK: Final = 2**15

SELF_ENERGIES: Final = {"H": -0.5, "C": -37.8, "N": -54.6, "O": -75.0}  # hartree


@dataclass(frozen=True, eq=False)
class Shape:
    """A molecule: SMILES, chemical symbols of its atoms, and their coordinates, (Na, 3), Å."""

    smiles: str
    symbols: tuple[str, ...]
    coordinates: npt.NDArray[np.float64]

    @property
    def heavy_atoms(self) -> int:
        """Number of atoms other than hydrogen."""
        return sum(symbol != "H" for symbol in self.symbols)


def read_shapes(path: Path = MOLECULES) -> list[Shape]:
    """The molecules of an XYZ file whose comments are SMILES."""
    lines = iter(path.read_text().splitlines())
    shapes = []
    for count in lines:
        smiles = next(lines)
        atoms = [next(lines).split() for _ in range(int(count))]
        coordinates = np.array([[float(x) for x in atom[1:]] for atom in atoms])
        shapes.append(Shape(smiles, tuple(atom[0] for atom in atoms), coordinates))
    return shapes


def structure_counts(shapes: list[Shape], structures: int) -> list[int]:
    """Number of structures of each molecule: ``structures`` in all, in the proportions of ANI-1."""
    heavy = np.array([shape.heavy_atoms for shape in shapes])
    weights = np.array([ANI1_STRUCTURES[h] / np.sum(heavy == h) for h in heavy])
    ends = np.rint(np.cumsum(weights) * structures / weights.sum()).astype(np.int64)
    return [int(count) for count in np.diff(ends, prepend=0)]


def make_big(path: Path, structures: int, seed: int = 0) -> None:
    """Write a set in the layout of the ANI-1 release; the file appears only when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    shapes = read_shapes()
    places: dict[int, int] = {}
    try:
        with h5py.File(partial, "w") as file:
            for shape, count in zip(shapes, structure_counts(shapes, structures), strict=True):
                heavy = shape.heavy_atoms
                place = places[heavy] = places.get(heavy, -1) + 1
                if count:
                    group = file.create_group(f"gdb11_s{heavy:02d}/gdb11_s{heavy:02d}-{place}")
                    _write_molecule(group, shape, count, np.random.default_rng([seed, heavy, place]))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_molecule(group: h5py.Group, shape: Shape, count: int, random: np.random.Generator) -> None:
    group["species"] = np.array(shape.symbols, dtype="S1")
    group["smiles"] = np.array(list(shape.smiles), dtype="S1")
    atoms = len(shape.symbols)
    coordinates = group.create_dataset("coordinates", (count, atoms, 3), "<f4")
    energies = group.create_dataset("energies", (count,), "<f8")
    self_energy = sum(SELF_ENERGIES[symbol] for symbol in shape.symbols)
    for begin in range(0, count, CHUNK):
        size = min(CHUNK, count - begin)
        moved = random.standard_normal((size, atoms, 3), dtype=np.float32) * np.float32(DISPLACEMENT)
        # A spring for each atom: a smooth surface, so that losses fall as in a real training.
        energies[begin : begin + size] = self_energy + 0.2 * np.square(moved, dtype=np.float64).sum((1, 2))
        coordinates[begin : begin + size] = moved + shape.coordinates.astype(np.float32)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a data set for measurements of speed.")
    parser.add_argument("output", type=Path, metavar="OUT.h5")
    parser.add_argument(
        "--structures", type=int, default=FULL_SIZE, help="default: %(default)s, as ANI-1 has"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_big(options.output, options.structures, options.seed)
    print(f"{options.output}: {options.structures:,} structures")


if __name__ == "__main__":
    main()
