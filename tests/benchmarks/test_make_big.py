from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.make_big import FULL_SIZE, make_big, read_shapes, structure_counts
from trainer.data.readers import read_dataset


def test_molecules_are_as_many_as_in_ani1() -> None:
    shapes = read_shapes()
    heavy = [shape.heavy_atoms for shape in shapes]
    assert [heavy.count(n) for n in (1, 2, 3, 4)] == [3, 13, 20, 61]
    assert len({shape.smiles for shape in shapes}) == 97
    assert {symbol for shape in shapes for symbol in shape.symbols} == {"H", "C", "N", "O"}
    for shape in shapes:
        distances = np.linalg.norm(shape.coordinates[:, None] - shape.coordinates, axis=-1)
        assert distances[np.triu_indices_from(distances, 1)].min() > 0.9


@pytest.mark.parametrize("structures", [1, 97, 5000, FULL_SIZE])
def test_counts_sum_to_what_is_asked_for(structures: int) -> None:
    counts = structure_counts(read_shapes(), structures)
    assert sum(counts) == structures
    assert min(counts) >= 0


def test_our_reader_reads_what_is_made(tmp_path: Path) -> None:
    make_big(tmp_path / "a.h5", 1000, seed=5)
    make_big(tmp_path / "b.h5", 1000, seed=5)
    dataset = read_dataset([tmp_path / "a.h5"])
    assert dataset.structures == 1000
    assert len(dataset.molecules) == 97
    assert dataset.elements == ("H", "C", "N", "O")
    assert dataset.fingerprint == read_dataset([tmp_path / "b.h5"]).fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]
