"""The state of one training, and what an epoch does to it."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainer.config import TrainConfig, dump_config
from trainer.errors import ConfigError, TrainingFailed
from trainer.evaluation.evaluate import predict
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.features.source import PartFeatures
from trainer.fitting.averages import WeightAverage
from trainer.fitting.checkpoints import Checkpoint, Identity
from trainer.fitting.devices import find_device
from trainer.fitting.losses import LOSSES
from trainer.fitting.optimizers import make_optimizer
from trainer.fitting.randomness import dropout_seed, epoch_order
from trainer.fitting.schedules import next_learning_rate
from trainer.fitting.weights import FlatWeights, load_weights
from trainer.networks.files import warm_start as load_warm_start
from trainer.networks.model import DTYPES, ElementNetworks
from trainer.reporting import EpochRecord
from trainer.task import Task

#: Raised with each change after which an old checkpoint would not go on as it began.
CHECKPOINT_FORMAT = 1

#: How the names of the optimizer's tensors begin in a checkpoint.
OPTIMIZER = "optimizer/"


class _Part:
    """The training or the validation part on the device: features, targets and numbers of atoms."""

    features: PartFeatures
    targets: torch.Tensor  # (n,) hartree
    atoms: torch.Tensor  # (n,)

    def __init__(
        self, task: Task, structures: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.features = task.features.part(structures, device, dtype)
        self.targets = torch.from_numpy(task.energies[structures]).to(device, dtype)
        atoms = np.array([m.atoms for m in task.dataset.molecules])
        self.atoms = torch.from_numpy(atoms[task.dataset.molecule_of(structures)]).to(device, dtype)

    def __len__(self) -> int:
        return len(self.targets)


class Training:
    """One training between two epochs.

    Parameters
    ----------
    warm_start : a model file whose weights are the initial ones

    Attributes
    ----------
    identity : what a checkpoint must share with this training
    history : the epochs so far
    """

    def __init__(self, task: Task, config: TrainConfig, warm_start: Path | None) -> None:
        self.identity = _identity(task, config, warm_start)
        self.history: tuple[EpochRecord, ...] = ()
        self._config = config
        self._device = find_device(config.device)
        # A sum over more threads has other last bits: their number is a setting, and so part of the record.
        torch.set_num_threads(config.threads)
        self._task = task
        self._train = _Part(task, task.split.train, self._device, DTYPES[config.precision])
        self._validation = _Part(task, task.split.validation, self._device, DTYPES[config.precision])

        self._model = self._network()
        if warm_start is not None:
            load_warm_start(self._model, task.aev, warm_start)
        self._weights = FlatWeights(self._model)
        self._optimizer = make_optimizer(config, self._weights.vector)
        # What is evaluated and kept: the average of the weights if there is one.
        self._evaluated, self._evaluated_weights, self._average = self._model, self._weights, None
        if config.ema_decay is not None:
            self._evaluated = self._network()
            self._evaluated_weights = FlatWeights(self._evaluated)
            self._evaluated_weights.load(self._weights.vector)
            self._average = WeightAverage(self._evaluated_weights.vector.detach(), config.ema_decay)
        self._best_weights = self._evaluated_weights.copy()

    @property
    def epoch(self) -> int:
        """Number of epochs done."""
        return len(self.history)

    @property
    def best(self) -> EpochRecord:
        """The (first) epoch of least validation MAE. There is one after the first epoch."""
        return min(self.history, key=lambda record: record.val_mae)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or so many passed without a better validation MAE."""
        if self.epoch == 0:
            return False
        patience = self._config.patience
        waited = self.epoch - self.best.epoch
        return self.epoch == self._config.epochs or (patience is not None and waited >= patience)

    def best_model(self) -> ElementNetworks:
        """A network with the weights of the best epoch, in evaluation mode."""
        model = self._network()
        # Into tensors of its own, as in a model that is read from a file: where a matrix begins in memory
        # decides the last bits of its products.
        load_weights(model, self._best_weights)
        return model.eval()

    def _network(self) -> ElementNetworks:
        features = self._task.features
        return ElementNetworks(self._config, features.elements, features.length, self._device)

    def train_epoch(self) -> None:
        """Go through the training part once, and evaluate on the validation part.

        Raises
        ------
        TrainingFailed
            if a loss is not finite.
        """
        started = time.perf_counter()
        epoch = self.epoch + 1
        rate = next_learning_rate(self._config, [record.val_mae for record in self.history])
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        train_loss = self._pass_over_training_part(epoch)
        # The only time in an epoch that the host waits for the device.
        losses = torch.stack([train_loss, *self._validate()]).tolist()
        for name, loss in zip(("training", "validation"), losses, strict=False):
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"the {name} loss is {loss} in epoch {epoch}; a learning rate below {rate:.3g} may help"
                )
        record = EpochRecord(
            epoch=epoch,
            train_loss=losses[0],
            val_loss=losses[1],
            val_mae=losses[2] * HARTREE_TO_KCALMOL,
            val_rmse=losses[3] * HARTREE_TO_KCALMOL,
            val_max_error=losses[4] * HARTREE_TO_KCALMOL,
            learning_rate=rate,
            seconds=time.perf_counter() - started,
            finished_at=time.time(),
        )
        if not self.history or record.val_mae < self.best.val_mae:
            self._best_weights = self._evaluated_weights.copy()
        self.history = (*self.history, record)

    def _pass_over_training_part(self, epoch: int) -> torch.Tensor:
        """Mean loss of the epoch, a float64 scalar on the device."""
        part, batch_size = self._train, self._config.batch_size
        loss_of = LOSSES[self._config.loss]
        order = torch.from_numpy(epoch_order(len(part), self._config.seed, epoch))
        targets, atoms = (
            torch.split(of_all[order.to(self._device)], batch_size) for of_all in (part.targets, part.atoms)
        )
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        step = (epoch - 1) * math.ceil(len(part) / batch_size)
        self._model.train()
        self._model.dropout_generator.manual_seed(dropout_seed(self._config.seed, epoch))
        for positions, target, atom_count in zip(torch.split(order, batch_size), targets, atoms, strict=True):
            step += 1
            loss = loss_of(self._model(part.features.batch(positions)) - target, atom_count)
            self._weights.backward(loss)
            self._optimizer.step()
            if self._average is not None:
                self._average.update(self._weights.vector.detach(), step)
            total.add_(loss.detach(), alpha=len(positions))
        return total / len(part)

    def _validate(self) -> tuple[torch.Tensor, ...]:
        """Loss (hartree^2), MAE, RMSE and largest error (hartree), float64 scalars on the device."""
        part = self._validation
        predicted = predict(self._evaluated, part.features, len(part))
        errors = (predicted - part.targets).double()
        loss = LOSSES[self._config.loss](errors, part.atoms.double())
        return loss, errors.abs().mean(), errors.square().mean().sqrt(), errors.abs().max()

    def snapshot(self) -> Checkpoint:
        """All that the following epochs depend on."""
        tensors = {"weights": self._weights.vector, "best": self._best_weights}
        if self._average is not None:
            tensors["average"] = self._evaluated_weights.vector
        (state,) = self._optimizer.state_dict()["state"].values()
        tensors |= {f"{OPTIMIZER}{name}": tensor for name, tensor in state.items()}
        on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        return Checkpoint(self.identity, self.history, on_cpu)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a training with this identity was at ``checkpoint``."""
        self.history = checkpoint.history
        tensors = checkpoint.tensors
        self._weights.load(tensors["weights"])
        self._best_weights = tensors["best"].to(self._device)
        if self._average is not None:
            self._evaluated_weights.load(tensors["average"])
        state = {n.removeprefix(OPTIMIZER): t for n, t in tensors.items() if n.startswith(OPTIMIZER)}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": {0: state}, "param_groups": groups})


def _identity(task: Task, config: TrainConfig, warm_start: Path | None) -> Identity:
    settings = dump_config(config)
    # Where it runs and how often it is saved do not decide what is trained.
    del settings["device"], settings["checkpoint_seconds"]
    started_from = {}
    if warm_start is not None:
        try:
            started_from["digest"] = hashlib.sha256(warm_start.read_bytes()).hexdigest()
        except OSError as error:
            raise ConfigError(f"warm start from {warm_start}: cannot be read: {error.strerror}") from error
    return {
        "checkpoint": {"format": CHECKPOINT_FORMAT},
        "training": settings,
        "task": task.fingerprints,
        "warm_start": started_from,
    }
