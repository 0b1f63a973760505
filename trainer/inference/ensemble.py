"""Several trained networks as one model: their mean is the prediction, their spread an uncertainty."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor

from trainer.config import STRICT, load_config
from trainer.data.dataset import Molecule, formula_of
from trainer.data.stoichiometry import balance_text, broken
from trainer.errors import ConfigError, DataError, ModelFileError
from trainer.features.aev import MoleculeFeatures, aev_length, make_aev_computer
from trainer.features.batches import AtomBatch, EqualStructures
from trainer.files import MODEL, cannot_be_written, partial_name
from trainer.inference.domain import TrainingDomain
from trainer.inference.structures import Structure, group_alike
from trainer.networks.files import CPU, SavedModel, load_model, save_model
from trainer.progress import Progress, no_progress
from trainer.strict_json import read_json

#: Files in the folder of an ensemble: its record, its networks, and the domain of its training data.
RECORD: Final = "ensemble.json"
MEMBER: Final = "member-{:02d}.safetensors"
DOMAIN: Final = "domain.safetensors"

FORMAT: Final = 1


@pydantic_dataclass(frozen=True, config=STRICT)
class _Record:
    """Record of the contents of an ensemble's folder."""

    format: int
    members: Annotated[int, Field(ge=1)]
    domain: bool


#: File of the network in the folder of a training.

#: Numbers of the AEVs that are in memory at once: 64 MiB.
MOST_NUMBERS: Final = 2**24

#: Molecules with more atoms than this use torchani's own neighbor list: ours lists all angles of a molecule,
#: near or far, which is designed for many structures of small molecules.
LARGE: Final = 120


@dataclass(frozen=True, eq=False)
class Predictions:
    """Energies of S structures by M members, self-energies included.

    Attributes
    ----------
    energies : (S,) float64, hartree: mean of the members
    spread : (S,) float64, hartree: sample standard deviation of the members; NaN for a single member
    members : (M, S) float64, hartree
    novelty : (S,) float64: novelty of the environment that is farthest from the training data, see
        :class:`trainer.inference.domain.TrainingDomain`; above 1 it is far; NaN if no domain is stored
    largest_novelty_atom : (S,) int64: index of the atom with that environment, from 0, in the structure
    """

    energies: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    members: npt.NDArray[np.float64]
    novelty: npt.NDArray[np.float64]
    largest_novelty_atom: npt.NDArray[np.int64]

    @property
    def far(self) -> npt.NDArray[np.bool_]:
        """Which structures have an environment unlike the training data, (S,)."""
        far: npt.NDArray[np.bool_] = self.novelty > 1
        return far


class Ensemble:
    """Networks with the same features.

    Parameters
    ----------
    members : one or more networks
    domain : domain of their training data; without it no novelty is computed

    Attributes
    ----------
    aev : constants of the features
    self_energies : energy of a single atom by element, hartree: mean of the members, whose self-energies may
        differ if they were fitted separately

    Raises
    ------
    ModelFileError
        if their features or elements differ.
    """

    def __init__(self, members: Sequence[SavedModel], domain: TrainingDomain | None = None) -> None:
        self.members = tuple(members)
        self.domain = domain
        first = self.members[0]
        if any(each.aev != first.aev for each in self.members):
            raise ModelFileError(
                "the members of an ensemble have different features: train them with the same"
            )
        if any(each.self_energies.keys() != first.self_energies.keys() for each in self.members):
            raise ModelFileError(
                "the members of an ensemble know different elements: train them on the same data"
            )
        self.aev = first.aev
        self.self_energies = {
            element: float(np.mean([each.self_energies[element] for each in self.members]))
            for element in first.self_energies
        }

    @classmethod
    def open(cls, path: Path | str) -> Ensemble:
        """Open the model in a model file, the folder of a training, or the folder of an ensemble.

        Raises
        ------
        ModelFileError
            if there is no model, or a file is damaged.
        """
        if str(path).startswith("models:/"):
            raise ModelFileError(
                f"{path}: a folder is needed here: get it with"
                f" `mlflow artifacts download --artifact-uri {path}/artifacts/ensemble --dst-path FOLDER`"
            )
        path = Path(path)
        if not path.is_dir():
            return cls([load_model(path)])
        if (path / RECORD).exists():
            return cls._open_folder(path)
        if (path / MODEL).exists():
            return cls([load_model(path / MODEL)])
        raise ModelFileError(f"{path}: there is neither {RECORD} nor {MODEL} in this folder")

    @classmethod
    def _open_folder(cls, folder: Path) -> Ensemble:
        file = folder / RECORD
        try:
            values = read_json(file)
            if values["format"] != FORMAT:
                raise ModelFileError(
                    f"{file}: has format {values['format']!r:.40}; this version reads {FORMAT}"
                )
            record = load_config(_Record, values, str(file))
        except OSError as error:
            raise ModelFileError(f"{file}: cannot be read: {error.strerror}") from error
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ModelFileError(f"{file}: not an ensemble of anitune ({error})") from error
        ensemble = cls([load_model(folder / MEMBER.format(number)) for number in range(record.members)])
        if record.domain:
            try:
                content = (folder / DOMAIN).read_bytes()
            except OSError as error:
                raise ModelFileError(f"{folder / DOMAIN}: cannot be read: {error.strerror}") from error
            ensemble.domain = TrainingDomain.from_bytes(content, ensemble.aev, str(folder / DOMAIN))
        return ensemble

    def save(self, folder: Path) -> None:
        """Write the ensemble as a folder, which appears by rename and replaces an earlier ensemble.

        Raises
        ------
        OutputError
            if it cannot be written, or something else is there; no partial folder is left.
        """
        partial = partial_name(folder)
        record = {"format": FORMAT, "members": len(self.members), "domain": self.domain is not None}
        try:
            try:
                partial.mkdir(parents=True)
                for number, each in enumerate(self.members):
                    path = partial / MEMBER.format(number)
                    save_model(path, each.model, each.aev, each.self_energies, each.balances)
                if self.domain is not None:
                    (partial / DOMAIN).write_bytes(self.domain.to_bytes())
                (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
                if (folder / RECORD).exists():
                    shutil.rmtree(folder)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise cannot_be_written(folder, error) from error

    def predict(
        self,
        structures: Sequence[Structure],
        progress: Progress = no_progress,
        *,
        any_composition: bool = False,
    ) -> Predictions:
        """Predict the energies of structures.

        Parameters
        ----------
        any_composition : also predict compositions that the training data do not determine

        Raises
        ------
        DataError
            if the training data do not determine the energies of a structure's atoms.
        """
        self.refuse_unknown(structures, any_composition)
        members = np.empty((len(self.members), len(structures)))
        novelty = np.full(len(structures), np.nan)
        largest_novelty_atom = np.zeros(len(structures), np.int64)
        done = 0
        for alike in group_alike(structures, self.aev.elements):
            molecule = alike.molecule
            for some, aevs in self._environments(molecule):
                places, permutations = alike.places[some], alike.permutations[some]
                by_element = self._by_element(molecule, aevs)
                for number, each in enumerate(self.members):
                    members[number, places] = _energies(each, molecule, by_element)
                if self.domain is not None:
                    most, atom = self._novelties(by_element, len(places)).max(dim=1)
                    novelty[places] = most.numpy()
                    largest_novelty_atom[places] = permutations[np.arange(len(places)), atom.numpy()]
                done += len(places)
                progress("structures", done, len(structures))
        spread = members.std(axis=0, ddof=1) if len(members) > 1 else np.full(len(structures), np.nan)
        return Predictions(members.mean(axis=0), spread, members, novelty, largest_novelty_atom)

    def unknown_elements(self, structure: Structure) -> list[str]:
        """Return the elements of a structure that were not in the training data."""
        return sorted(set(structure.symbols) - set(self.elements))

    def unknown(self, structure: Structure, any_composition: bool = False) -> str | None:
        """Explain why the energies of a structure's atoms are not known; None if they are.

        A composition is known if it is a linear combination of those of the training data: if all of them
        are H2O, OH is not known. With ``any_composition`` it may be predicted all the same.
        """
        if unknown := self.unknown_elements(structure):
            return (
                f"it contains {', '.join(unknown)}, but the model was trained on {', '.join(self.elements)}"
                " only"
            )
        counts = Counter(structure.symbols)
        known = [balance for member in self.members for balance in member.balances]
        if not any_composition and (balance := broken(known, counts)) is not None:
            return (
                f"{formula_of(counts)} cannot be predicted from the training data, where"
                f" {balance_text(balance)}"
                " in all molecules"
            )
        return None

    def refuse_unknown(self, structures: Sequence[Structure], any_composition: bool = False) -> None:
        """Raise an error if the energies of the atoms of a structure are not known.

        Raises
        ------
        DataError
            if they are not.
        """
        for number, structure in enumerate(structures):
            if unknown := self.unknown(structure, any_composition):
                raise DataError(
                    f"structure {number} (from 0): {unknown}: leave it out, or train on data with it"
                )

    @property
    def elements(self) -> tuple[str, ...]:
        """The elements whose energies can be predicted."""
        trained = self.self_energies if self.domain is None else self.domain.elements
        return tuple(element for element in self.aev.elements if element in trained)

    def _environments(self, molecule: Molecule) -> Iterator[tuple[slice, Tensor]]:
        """Yield some of the molecule's structures at a time, with their AEVs, (n, Na, F)."""
        step = max(1, MOST_NUMBERS // (molecule.atoms * aev_length(self.aev)))
        features = MoleculeFeatures(self.aev, CPU)
        for begin in range(0, molecule.structures, step):
            some = slice(begin, begin + step)
            yield (
                some,
                self._large(molecule, some) if molecule.atoms > LARGE else features.compute(molecule, some),
            )

    def _large(self, molecule: Molecule, some: slice) -> Tensor:
        computer = make_aev_computer(self.aev)
        kinds = [
            self.aev.elements.index(e) for e, count in molecule.composition.items() for _ in range(count)
        ]
        species = torch.tensor([sorted(kinds)])
        with torch.no_grad():
            each = [computer(species, one[None]) for one in torch.from_numpy(molecule.coordinates[some])]
        return torch.cat(each)

    def _by_element(self, molecule: Molecule, aevs: Tensor) -> dict[str, Tensor]:
        """Return the AEVs of the c atoms of each element of the molecule, (n, c, F)."""
        counts = {e: molecule.composition[e] for e in self.aev.elements if e in molecule.composition}
        return dict(zip(counts, aevs.split_with_sizes(list(counts.values()), dim=1), strict=True))

    def _novelties(self, by_element: dict[str, Tensor], structures: int) -> Tensor:
        """Return the novelty of each atom, (n, Na)."""
        assert self.domain is not None
        return torch.cat(
            [
                self.domain.novelty(element, aevs.flatten(0, 1)).view(structures, -1)
                for element, aevs in by_element.items()
            ],
            dim=1,
        )


@torch.no_grad()
def _energies(
    saved: SavedModel, molecule: Molecule, by_element: dict[str, Tensor]
) -> npt.NDArray[np.float64]:
    """Return the energies of a molecule's structures, (n,), hartree."""
    dtype = next(saved.model.parameters()).dtype
    aevs = tuple(some.flatten(0, 1).to(dtype) for some in by_element.values())
    batch = AtomBatch(
        positions=torch.arange(len(next(iter(by_element.values())))),
        elements=tuple(saved.aev.elements.index(element) for element in by_element),
        columns=(None,) * len(aevs),
        aevs=aevs,
        sums=EqualStructures([molecule.composition[element] for element in by_element]),
    )
    energies: npt.NDArray[np.float64] = saved.model(batch).double().numpy()
    atoms = sum(saved.self_energies[element] * count for element, count in molecule.composition.items())
    return energies + atoms
