from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import reference_loop
from trainer.config import TrainConfig
from trainer.data.elements import ATOMIC_NUMBERS
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.networks.model import ElementNetworks
from trainer.networks.torchani_bridge import to_torchani
from trainer.task import Task

CPU = torch.device("cpu")


def test_energies_are_those_of_our_network(task: Task) -> None:
    # A comparison of speeds is fair where both sides compute the same.
    ours = ElementNetworks(
        TrainConfig(hidden=(24, 8), activation="relu", precision="float32", seed=3),
        task.features.elements,
        task.features.length,
    )
    reference = reference_loop.Potential((24, 8))
    reference.networks.load_state_dict(to_torchani(ours).state_dict())
    predicted = evaluate(ours, task, task.split.validation).predicted
    kinds = {ATOMIC_NUMBERS[e]: kind for kind, e in enumerate(reference_loop.ELEMENTS)}
    for structure, expected in zip(task.split.validation, predicted, strict=True):
        (owner,) = task.dataset.molecule_of(np.array([structure]))
        molecule = task.dataset.molecules[owner]
        species = torch.tensor([[kinds[z] for z in molecule.atomic_numbers.tolist()] + [-1, -1]])
        coordinates = torch.zeros(1, molecule.atoms + 2, 3)
        coordinates[0, : molecule.atoms] = torch.from_numpy(
            molecule.coordinates[structure - task.dataset.offsets[owner]]
        )
        energy = reference(species, coordinates).item() * HARTREE_TO_KCALMOL
        assert energy == pytest.approx(expected, abs=2e-3, rel=1e-5)


def test_loads_and_learns(data_file: Path, tmp_path: Path) -> None:
    parts = reference_loop.load_subsets(data_file)
    assert [len(part) for part in parts] == [96, 12]
    training, validation = (reference_loop.make_batches(part, 32, CPU) for part in parts)
    assert [len(batch.energies) for batch in training] == [32, 32, 32]
    torch.manual_seed(0)
    checkpoint = tmp_path / "best.pt"
    model = reference_loop.Potential((16,))
    history = reference_loop.train(
        model, training, validation, epochs=5, learning_rate=1e-3, weight_decay=1e-5, checkpoint=checkpoint
    )
    assert history[-1].train_loss < history[0].train_loss
    best = reference_loop.Potential((16,))
    best.networks.load_state_dict(torch.load(checkpoint, weights_only=True))
    _, mae = reference_loop.evaluate(best, validation)
    assert mae.item() * HARTREE_TO_KCALMOL == pytest.approx(min(epoch.val_mae for epoch in history))
