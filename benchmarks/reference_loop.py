"""The training loop that anitune is measured against: torchani's own way, with AEVs computed in every batch.

This is the loop of the notebook that the project grew out of, written for torchani 2.9 and without its
mistakes in speed or substance: structures are padded to batches once and kept on the device, a batch's AEVs
come from ``AEVComputer.like_1x()``, each element's network runs once on the atoms that its mask selects,
Adam adds L2 to the gradient, the validation set is evaluated and the best weights are saved after each
epoch, and the host waits for the device once an epoch.

    python -m benchmarks.reference_loop FILE.h5 --epochs 30
"""

from __future__ import annotations

import argparse
import math
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    # torchani warns that its CUDA extensions were not compiled; the notebook had none either.
    warnings.filterwarnings("ignore", message="The extensions", category=UserWarning)
    from torchani import legacy_data
    from torchani.aev import AEVComputer
    from torchani.nn import ANINetworks, AtomicNetwork
    from torchani.utils import EnergyShifter

ELEMENTS: Final = ("H", "C", "N", "O")
HARTREE_TO_KCALMOL: Final = 627.5094738898777
SHARES: Final = (0.8, 0.1)
"""Shares of the structures for training and for validation; the rest is the test set."""

Subset = Any
"""torchani's iterable of structures in memory, one dictionary each."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B structures, padded to A atoms.

    Attributes
    ----------
    species : (B, A) int64 positions in ELEMENTS, -1 for padding
    coordinates : (B, A, 3) float32, Å
    energies : (B,) float32, hartree, without self-energies
    """

    species: Tensor
    coordinates: Tensor
    energies: Tensor


@dataclass(frozen=True)
class Epoch:
    """One epoch: losses in hartree^2, error in kcal/mol, duration in s."""

    train_loss: float
    val_loss: float
    val_mae: float
    seconds: float


class Potential(nn.Module):
    """Computes energies of padded structures, without self-energies."""

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        self.aev_computer = AEVComputer.like_1x()
        dims = (self.aev_computer.out_dim, *hidden, 1)
        self.networks = ANINetworks(
            {e: AtomicNetwork(dims, activation=nn.ReLU(), bias=True) for e in ELEMENTS}
        )

    def forward(self, species: Tensor, coordinates: Tensor) -> Tensor:
        """Return energies, (B,) hartree."""
        energies: Tensor = self.networks(species, self.aev_computer(species, coordinates))
        return energies


def load_subsets(path: Path, seed: int = 0) -> tuple[Subset, Subset]:
    """Training and validation set of a file in the layout of ANI-1, with fitted self-energies subtracted."""
    legacy_data.verbose = False
    random.seed(seed)
    training, validation, _ = (
        legacy_data.load(path)
        .subtract_self_energies(EnergyShifter(None), ELEMENTS)
        .species_to_indices(ELEMENTS)
        .shuffle()
        .split(*SHARES, None)
    )
    return training, validation


def make_batches(subset: Subset, batch_size: int, device: torch.device) -> list[Batch]:
    """Pad the structures of a subset, batch by batch in their order."""
    return [
        Batch(
            batch["species"].to(device),
            batch["coordinates"].to(device),
            batch["energies"].to(device, torch.float32),
        )
        for batch in subset.collate(batch_size)
    ]


def evaluate(model: Potential, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Mean squared error in hartree^2 and mean absolute error in hartree, on the device."""
    model.eval()
    with torch.no_grad():
        errors = torch.cat([model(b.species, b.coordinates) - b.energies for b in batches])
    return errors.square().mean(), errors.abs().mean()


def train(
    model: Potential,
    training: Sequence[Batch],
    validation: Sequence[Batch],
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    checkpoint: Path,
) -> list[Epoch]:
    """Train, and keep the weights of the epoch of least validation MAE in the file ``checkpoint``."""
    optimizer = torch.optim.Adam(model.networks.parameters(), lr=learning_rate, weight_decay=weight_decay)
    loss_function = nn.MSELoss()
    structures = sum(len(batch.energies) for batch in training)
    best, history = math.inf, []
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        total = torch.zeros((), device=training[0].energies.device)
        for batch in training:
            loss = loss_function(model(batch.species, batch.coordinates), batch.energies)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch.energies)
        train_loss, val_loss, mae = torch.stack([total / structures, *evaluate(model, validation)]).tolist()
        if mae < best:
            best = mae
            torch.save(model.networks.state_dict(), checkpoint)
        history.append(Epoch(train_loss, val_loss, mae * HARTREE_TO_KCALMOL, time.perf_counter() - started))
    return history


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train an ANI network as torchani's examples do.")
    parser.add_argument("file", type=Path, help="HDF5 file in the layout of ANI-1")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128], metavar="WIDTH")
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoint", type=Path, default=Path("best.pt"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    training, validation = (
        make_batches(subset, options.batch_size, device)
        for subset in load_subsets(options.file, options.seed)
    )
    history = train(
        Potential(options.hidden).to(device),
        training,
        validation,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        checkpoint=options.checkpoint,
    )
    for number, epoch in enumerate(history, start=1):
        print(
            f"epoch {number:3}  training loss {epoch.train_loss:.3e}  validation loss {epoch.val_loss:.3e}  "
            f"MAE {epoch.val_mae:.3f} kcal/mol  {epoch.seconds:.2f} s"
        )


if __name__ == "__main__":
    main()
