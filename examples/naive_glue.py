"""Optuna and MLflow glued together by hand: what anitune is measured against, and does not need.

A search for the best network of an ANI potential as it is usually written: ``study.optimize`` around a
training loop of torchani, AEVs computed in every padded batch, one ``mlflow.log_metric`` call for each metric
and epoch, plots by matplotlib. It imports nothing of anitune and runs alone:

    python examples/naive_glue.py --trials 3 --epochs 5

With ``--configurations FILE`` it trains the rows of a study file, as ``anitune study run FILE`` does.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import mlflow
import optuna
import torch
import yaml
from torch import Tensor, nn
from torchani import legacy_data
from torchani.aev import AEVComputer
from torchani.nn import ANINetworks, AtomicNetwork
from torchani.utils import EnergyShifter

SAMPLE = Path(__file__).resolve().parent.parent / "trainer" / "data" / "ani1_sample.h5"
ELEMENTS = ("H", "C", "N", "O")
HARTREE_TO_KCALMOL = 627.5094738898777
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "celu": lambda: nn.CELU(0.1),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

Batch = tuple[Tensor, Tensor, Tensor]
"""Species (B, A), coordinates (B, A, 3) in Å, energies (B,) in hartree less self-energies."""


@dataclass(frozen=True)
class Settings:
    """One configuration."""

    hidden: tuple[int, ...]
    activation: str
    learning_rate: float
    batch_size: int
    weight_decay: float


class Potential(nn.Module):
    """AEVs and a network for each element."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.aev_computer = AEVComputer.like_1x()
        dims = (self.aev_computer.out_dim, *settings.hidden, 1)
        activation = ACTIVATIONS[settings.activation]
        self.networks = ANINetworks(
            {e: AtomicNetwork(dims, activation=activation(), bias=True) for e in ELEMENTS}
        )

    def forward(self, species: Tensor, coordinates: Tensor) -> Tensor:
        energies: Tensor = self.networks(species, self.aev_computer(species, coordinates))
        return energies


class Data:
    """Training and validation structures of a file, loaded once for all trials."""

    def __init__(self, path: Path, seed: int, device: torch.device) -> None:
        legacy_data.verbose = False
        random.seed(seed)
        self.device = device
        self.training, self.validation, _ = (
            legacy_data.load(path)
            .subtract_self_energies(EnergyShifter(None), ELEMENTS)
            .species_to_indices(ELEMENTS)
            .shuffle()
            .split(0.8, 0.1, None)
        )

    def batches(self, part: Any, batch_size: int) -> list[Batch]:
        """Padded batches of a part on the device."""
        return [
            (
                batch["species"].to(self.device),
                batch["coordinates"].to(self.device),
                batch["energies"].to(self.device, torch.float32),
            )
            for batch in part.collate(batch_size)
        ]


def predict(model: Potential, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Predicted and true energies, hartree."""
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(species, coordinates) for species, coordinates, _ in batches])
    return predicted, torch.cat([energies for _, _, energies in batches])


def train(settings: Settings, data: Data, epochs: int, seed: int, trial: optuna.Trial) -> float:
    """Train one configuration inside of an MLflow run: the best validation MAE, kcal/mol."""
    torch.manual_seed(seed)
    training = data.batches(data.training, settings.batch_size)
    validation = data.batches(data.validation, 2048)
    model = Potential(settings).to(data.device)
    optimizer = torch.optim.AdamW(
        model.networks.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    loss_function = nn.MSELoss()
    best, train_losses, val_losses = math.inf, [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for epoch in range(1, epochs + 1):
            started = time.perf_counter()
            learning_rate = optimizer.param_groups[0]["lr"]
            model.train()
            total = torch.zeros((), device=data.device)
            random.shuffle(training)
            for species, coordinates, energies in training:
                loss = loss_function(model(species, coordinates), energies)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(energies)
            schedule.step()
            predicted, target = predict(model, validation)
            errors = predicted - target
            train_losses.append(total.item() / len(data.training))
            val_losses.append(errors.square().mean().item())
            mae = errors.abs().mean().item() * HARTREE_TO_KCALMOL
            if mae < best:
                best = mae
                torch.save(model.networks.state_dict(), folder / "model.pt")
            mlflow.log_metric("train/loss", train_losses[-1], step=epoch)
            mlflow.log_metric("val/loss", val_losses[-1], step=epoch)
            mlflow.log_metric("val/mae_kcalmol", mae, step=epoch)
            mlflow.log_metric("val/rmse_kcalmol", math.sqrt(val_losses[-1]) * HARTREE_TO_KCALMOL, step=epoch)
            largest = errors.abs().max().item() * HARTREE_TO_KCALMOL
            mlflow.log_metric("val/max_error_kcalmol", largest, step=epoch)
            mlflow.log_metric("train/learning_rate", learning_rate, step=epoch)
            mlflow.log_metric("train/epoch_seconds", time.perf_counter() - started, step=epoch)
            trial.report(mae, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        model.networks.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        predicted, target = predict(model, validation)
        plot(folder, train_losses, val_losses, predicted, target)
        for file in sorted(folder.iterdir()):
            mlflow.log_artifact(str(file))
    return best


def plot(
    folder: Path, train_losses: list[float], val_losses: list[float], predicted: Tensor, target: Tensor
) -> None:
    """Draw the losses, predicted against true energies, and the distribution of the errors."""
    figure, axes = plt.subplots()
    axes.plot(train_losses, label="training")
    axes.plot(val_losses, label="validation")
    axes.set(xlabel="epoch", ylabel="loss, hartree²", yscale="log")
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)
    plt.close(figure)

    x, y = (energies.cpu().numpy() * HARTREE_TO_KCALMOL for energies in (target, predicted))
    figure, axes = plt.subplots()
    axes.scatter(x, y, s=8)
    axes.set(xlabel="DFT energy, kcal/mol", ylabel="predicted energy, kcal/mol")
    figure.savefig(folder / "parity.png", dpi=120)
    plt.close(figure)

    figure, axes = plt.subplots()
    axes.hist(y - x, bins=41)
    axes.set(xlabel="error, kcal/mol", ylabel="structures")
    figure.savefig(folder / "errors.png", dpi=120)
    plt.close(figure)


def suggest(trial: optuna.Trial) -> Settings:
    """The space of ``quickstart.yaml``, a little wider."""
    layers = trial.suggest_int("layers", 1, 3)
    return Settings(
        hidden=tuple(trial.suggest_int(f"width_{n}", 64, 256, step=32) for n in range(1, layers + 1)),
        activation=trial.suggest_categorical("activation", list(ACTIVATIONS)),
        learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        batch_size=trial.suggest_categorical("batch_size", [16, 24, 32, 48, 64]),
        weight_decay=trial.suggest_float("weight_decay", 1e-8, 1e-4, log=True),
    )


def read_configurations(path: Path) -> list[tuple[dict[str, Any], int | None]]:
    """The rows of a study file: parameters of Optuna trials, and their own numbers of epochs."""
    study = yaml.safe_load(path.read_text())
    configurations = []
    for row in study["rows"]:
        values = {**study["training"], **row["training"]}
        hidden = values["hidden"]
        names = ("activation", "learning_rate", "batch_size", "weight_decay")
        parameters = (
            {"layers": len(hidden)}
            | {f"width_{n}": width for n, width in enumerate(hidden, start=1)}
            | {name: values[name] for name in names}
        )
        configurations.append((parameters, row["training"].get("epochs")))
    return configurations


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Search an ANI network with Optuna and MLflow, glued by hand."
    )
    parser.add_argument("--data", type=Path, default=SAMPLE, help="HDF5 file in the layout of ANI-1")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=100, help="of each trial")
    parser.add_argument(
        "--configurations", type=Path, help="study file whose rows are trained, without pruning"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/naive-glue"), help="for the databases and artifacts"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = mlflow.get_experiment_by_name("naive-glue")
    experiment_id = (
        experiment.experiment_id
        if experiment is not None
        else mlflow.create_experiment("naive-glue", artifact_location=(folder / "artifacts").as_uri())
    )
    data = Data(options.data, options.seed, torch.device(options.device))
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'optuna.db'}",
        sampler=optuna.samplers.TPESampler(seed=options.seed, n_startup_trials=8),
        pruner=optuna.pruners.NopPruner() if options.configurations else optuna.pruners.MedianPruner(),
        direction="minimize",
    )
    trials = options.trials
    epochs_of: dict[int, int] = {}
    if options.configurations is not None:
        configurations = read_configurations(options.configurations)
        trials = len(configurations)
        for number, (parameters, own_epochs) in enumerate(configurations):
            study.enqueue_trial(parameters)
            epochs_of[number] = own_epochs or options.epochs

    def objective(trial: optuna.Trial) -> float:
        settings = suggest(trial)
        epochs = epochs_of.get(trial.number, options.epochs)
        with mlflow.start_run(experiment_id=experiment_id, run_name=f"trial-{trial.number}"):
            mlflow.log_params({**trial.params, "epochs": epochs, "optimizer": "adamw", "schedule": "cosine"})
            return train(settings, data, epochs, options.seed + trial.number, trial)

    study.optimize(objective, n_trials=trials)
    print(f"best validation MAE {study.best_value:.3f} kcal/mol with {study.best_params}")


if __name__ == "__main__":
    main()
