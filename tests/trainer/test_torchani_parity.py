from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.config import Activation, AEVConfig, FeatureConfig, TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.readers import read_dataset
from trainer.data.shipped import SAMPLE
from trainer.evaluation.evaluate import predict
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.features.aev import AEVComputer
from trainer.features.source import ComputedFeatures, open_features
from trainer.fitting.threads import Threads
from trainer.networks.activations import ACTIVATIONS
from trainer.networks.model import ElementNetworks
from trainer.networks.torchani_bridge import to_torchani
from trainer.progress import no_progress

CPU = torch.device("cpu")
CONFIG = AEVConfig()


def torchani_energies(model: ElementNetworks, dataset: Dataset, structures: np.ndarray) -> Tensor:
    """Energies in hartree, (n,), by torchani alone: molecules of all sizes together, padded."""
    molecules = [dataset.molecules[m] for m in dataset.molecule_of(structures)]
    within = structures - dataset.offsets[dataset.molecule_of(structures)]
    most = max(m.atoms for m in molecules)
    species = torch.full((len(structures), most), -1)
    coordinates = torch.zeros(len(structures), most, 3)
    for i, (molecule, number) in enumerate(zip(molecules, within, strict=True)):
        species[i, : molecule.atoms] = torch.tensor([(1, 6, 7, 8).index(n) for n in molecule.atomic_numbers])
        coordinates[i, : molecule.atoms] = torch.from_numpy(molecule.coordinates[number])
    computer = AEVComputer.like_1x().to(next(model.parameters()).dtype)
    with torch.no_grad():
        energies: Tensor = to_torchani(model)(
            species, computer(species, coordinates.to(computer.radial.shifts))
        )
    return energies


@pytest.mark.parametrize("batch_size", [32, 8192], ids=["by element", "by element set"])
@torch.no_grad()
def test_energies_of_every_structure_of_the_sample_are_those_of_torchani(
    tmp_path: Path, batch_size: int
) -> None:
    dataset = read_dataset([SAMPLE])
    features = open_features(dataset, FeatureConfig(), tmp_path, no_progress)
    model = ElementNetworks(
        TrainConfig(hidden=(128, 64), precision="float32"), features.elements, features.length
    ).eval()
    for layers in model.networks.values():
        # Untrained energies differ by little: make them differ as much as those of real structures.
        list(layers.children())[-1].weight.mul_(3)
    part = features.subset(np.arange(dataset.structures), torch.float32, batch_size)
    ours = predict(model, part, dataset.structures, Threads(2)) * HARTREE_TO_KCALMOL
    theirs = []
    for structures in np.array_split(np.arange(dataset.structures), 21):
        theirs.append(torchani_energies(model, dataset, structures) * HARTREE_TO_KCALMOL)
    assert torch.cat(theirs).std() > 50
    assert (ours - torch.cat(theirs)).abs().max() < 1e-3


@pytest.mark.parametrize("activate_output", [False, True], ids=["plain", "activated output"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_every_network_can_be_given_to_torchani(
    data_file: Path, activation: Activation, activate_output: bool
) -> None:
    dataset = read_dataset([data_file])
    config = TrainConfig(
        hidden=(16, 8, 4),
        activation=activation,
        activate_output=activate_output,
        dropout=0.4,
        precision="float64",
    )
    features = ComputedFeatures(dataset, CONFIG)
    model = ElementNetworks(config, features.elements, features.length).eval()
    structures = np.array([5, 50, 100])
    ours = predict(model, features.subset(structures, torch.float64, 3), 3, Threads(1))
    # The AEVs are rounded to float32 on our side only.
    torch.testing.assert_close(ours, torchani_energies(model, dataset, structures), rtol=1e-6, atol=1e-8)


def test_the_copy_does_not_follow_the_original(data_file: Path) -> None:
    dataset = read_dataset([data_file])
    model = ElementNetworks(TrainConfig(precision="float32"), CONFIG.elements, 384)
    copied = to_torchani(model)
    before = [parameter.clone() for parameter in copied.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, copied.parameters(), strict=True))
    assert torchani_energies(model, dataset, np.array([0])).item() == 0
