"""Export of a model as a file that runs without this package; it is first compared with the model."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from trainer.data.elements import ATOMIC_NUMBERS
from trainer.data.readers import read_dataset
from trainer.data.shipped import SAMPLE
from trainer.errors import DataError, ExportError
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.files import write_by_rename
from trainer.inference.ensemble import Ensemble
from trainer.inference.portable import PortableModel
from trainer.inference.structures import Structure, structures_of
from trainer.inference.torchani_model import describe, weights_of

with warnings.catch_warnings():
    # torchani warns that its CUDA extensions were not compiled; they are not used here.
    warnings.filterwarnings("ignore", message="The extensions", category=UserWarning)
    from trainer.inference import torchani_loader

Format = Literal["torchani", "torch-export"]

#: Largest difference of the total energies of an exported model, kcal/mol.
TOLERANCE: Final = 1e-3

#: Name of the loader that is written beside a file for torchani.
LOADER: Final = "load_torchani.py"

#: Number of structures on which an exported model is compared, and how many are of one molecule.
COMPARED: Final = 200
OF_EACH: Final = 4

Energies = npt.NDArray[np.float64]


def sample_structures(ensemble: Ensemble) -> list[Structure]:
    """Return structures of the shipped sample whose elements the model knows.

    Raises
    ------
    DataError
        if there are none.
    """
    known = set(ensemble.elements)
    molecules = [m for m in read_dataset([SAMPLE]).molecules if set(m.composition) <= known]
    structures = [s for m in molecules for s in structures_of(m)[:: max(1, m.structures // OF_EACH)]]
    if not structures:
        raise DataError(
            f"no molecule of the sample consists of {', '.join(ensemble.elements)}: name a file of structures"
            " to compare on with --check"
        )
    return structures[:: -(-len(structures) // COMPARED)]


def export_model(ensemble: Ensemble, to: Format, out: Path, structures: Sequence[Structure]) -> float:
    """Write the model in a format, and return the largest difference of its energies, kcal/mol.

    Parameters
    ----------
    structures : structures that the written and reloaded model and the ensemble predict

    Raises
    ------
    ExportError
        if the energies differ by more than ``TOLERANCE``, or the loader for torchani lacks an activation;
        then nothing is written.
    OutputError
        if it cannot be written.
    """
    expected = ensemble.predict(structures, any_composition=True).energies
    write, load = _FORMATS[to]
    with tempfile.TemporaryDirectory(prefix="anitune-") as folder:
        draft = Path(folder) / out.name
        write(ensemble, draft)
        difference = float(np.abs(load(draft)(structures) - expected).max() * HARTREE_TO_KCALMOL)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the exported model differs by {difference:.2g} kcal/mol, more than {TOLERANCE}: nothing was"
                " written; please report this with the model"
            )
        write_by_rename(out, draft.read_bytes())
    if to == "torchani":
        write_by_rename(out.with_name(LOADER), Path(torchani_loader.__file__).read_bytes())
    return difference


def _write_torchani(ensemble: Ensemble, path: Path) -> None:
    for name in {member.model.config.activation for member in ensemble.members}:
        if name not in torchani_loader.ACTIVATIONS:
            raise ExportError(f"{LOADER} has no activation {name}: use --to torch-export")
    record = json.dumps(describe(ensemble))
    path.write_bytes(safetensors.torch.save(weights_of(ensemble), {"torchani": record}))


def _load_torchani(path: Path) -> Callable[[Sequence[Structure]], Energies]:
    model = torchani_loader.load_model(path)

    def energies(structures: Sequence[Structure]) -> Energies:
        return _by_padding(structures, -1, lambda n, x: model((n, x)).energies)

    return energies


def _write_program(ensemble: Ensemble, path: Path) -> None:
    batch, atoms = torch.export.Dim("batch"), torch.export.Dim("atoms", min=2)
    # Distinct lengths identify the dimensions; torch would treat lengths 0 and 1 as fixed.
    numbers = torch.ones((2, 5), dtype=torch.int64)
    coordinates = torch.arange(30, dtype=torch.float64).view(2, 5, 3).cos()
    program = torch.export.export(
        PortableModel(ensemble).eval(),
        (numbers, coordinates),
        dynamic_shapes=({0: batch, 1: atoms}, {0: batch, 1: atoms}),
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    archive = io.BytesIO()
    torch.export.save(program, archive)
    _write_without_pickles(archive, path)


def _write_without_pickles(archive: io.BytesIO, path: Path) -> None:
    """Write an archive of torch.export without its optional example input, the only entry that is pickled."""
    with zipfile.ZipFile(archive) as every, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as kept:
        for entry in every.infolist():
            example = "/sample_inputs/" in entry.filename
            kept.writestr(entry.filename, b"" if example else every.read(entry))


def _load_program(path: Path) -> Callable[[Sequence[Structure]], Energies]:
    program = torch.export.load(path).module()

    def energies(structures: Sequence[Structure]) -> Energies:
        return _by_padding(structures, 0, lambda n, x: program(n, x)[0])

    return energies


def _by_padding(
    structures: Sequence[Structure],
    padding: int,
    energies: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Energies:
    """Compute the energies of structures of all sizes, padded, some at a time, (S,) hartree."""
    every = []
    for begin in range(0, len(structures), 20):
        some = structures[begin : begin + 20]
        most = max(2, *(len(s.symbols) for s in some))
        numbers = torch.full((len(some), most), padding)
        coordinates = torch.zeros((len(some), most, 3), dtype=torch.float64)
        for row, structure in enumerate(some):
            count = len(structure.symbols)
            numbers[row, :count] = torch.tensor([ATOMIC_NUMBERS[symbol] for symbol in structure.symbols])
            coordinates[row, :count] = torch.from_numpy(structure.coordinates)
        with torch.no_grad():
            every.append(energies(numbers, coordinates).numpy())
    return np.concatenate(every)


_FORMATS: Final[
    Mapping[
        Format,
        tuple[Callable[[Ensemble, Path], None], Callable[[Path], Callable[[Sequence[Structure]], Energies]]],
    ]
] = {
    "torchani": (_write_torchani, _load_torchani),
    "torch-export": (_write_program, _load_program),
}
