"""The state of one training, and what an epoch does to it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainer.config import SAME_TRAINING, Loss, TrainConfig, compared_settings, dump_config
from trainer.errors import ConfigError, TrainingFailed
from trainer.evaluation.evaluate import predict
from trainer.evaluation.metrics import epoch_metric_names, measure_epoch
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.features.micro_batches import SubsetFeatures
from trainer.features.static_batches import DeviceFeatures
from trainer.fitting.averages import new_share
from trainer.fitting.checkpoints import Checkpoint, Identity, weights_precision
from trainer.fitting.device_predictions import BATCH
from trainer.fitting.devices import find_device
from trainer.fitting.gradients import OPERAND_DTYPES
from trainer.fitting.losses import LOSSES
from trainer.fitting.optimizers import make_optimizer, set_rate
from trainer.fitting.randomness import first_permutation
from trainer.fitting.schedules import next_learning_rate
from trainer.fitting.threads import Threads
from trainer.fitting.weights import FlatWeights, load_weights
from trainer.networks.files import warm_start as load_warm_start
from trainer.networks.model import WEIGHT_DTYPES, ElementNetworks
from trainer.reporting import EpochRecord
from trainer.task import Task
from trainer.tensor_files import TensorKind

#: Increased with each change after which a resumed training would differ from an uninterrupted one.
CHECKPOINT_FORMAT = 3

#: Prefix of the names of the optimizer's tensors in a checkpoint.
OPTIMIZER = "optimizer/"


class Subset:
    """The training or the validation set on the device.

    Attributes
    ----------
    targets : (n,) hartree
    weights : (n,) weight of the squared error of each structure in the loss
    """

    def __init__(
        self,
        task: Task,
        structures: npt.NDArray[np.int64],
        device: torch.device,
        dtype: torch.dtype,
        loss: Loss,
        batch_size: int,
        aev_dtype: torch.dtype | None = None,
    ) -> None:
        self._features: SubsetFeatures | DeviceFeatures
        if device.type == "cuda":
            self._features = task.features.device_subset(structures, device, aev_dtype or dtype)
        else:
            self._features = task.features.subset(structures, aev_dtype or dtype, batch_size)
        self.targets = torch.from_numpy(task.energies[structures]).to(device, dtype)
        atoms = np.array([m.atoms for m in task.dataset.molecules])[task.dataset.molecule_of(structures)]
        self.weights = LOSSES[loss].weights(torch.from_numpy(atoms).to(device, dtype))

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def features(self) -> SubsetFeatures:
        """The features for a training on the CPU."""
        assert not isinstance(self._features, DeviceFeatures)
        return self._features

    @property
    def device_features(self) -> DeviceFeatures:
        """The features for a training on a GPU."""
        assert isinstance(self._features, DeviceFeatures)
        return self._features

    def errors(self, predicted: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the errors of K networks from the energies (n, K) that they predict.

        Returns
        -------
        Loss (hartree^2) and the metrics of an epoch (hartree), each (K,) float64.
        """
        errors = (predicted - self.targets[:, None]).double()
        loss = (errors.square() * self.weights[:, None]).mean(0)
        return loss, *measure_epoch(errors)


class Training:
    """The state of one training between two epochs.

    Parameters
    ----------
    warm_start : a model file whose weights are the initial weights

    Attributes
    ----------
    identity : what a checkpoint must have in common with this training
    history : the epochs so far
    config, task : the settings and the data of the training
    device, threads : where it runs
    split_seed : decides the permutations in which it goes through the data
    train, validation : the subsets
    model, weights, optimizer : the network that is trained
    evaluated_model, evaluated : the network that is evaluated and kept, with averaged weights if that is on
    """

    def __init__(self, task: Task, config: TrainConfig, warm_start: Path | None) -> None:
        task = task.of(config)
        self.identity = training_identity(task, config, warm_start)
        self.history: tuple[EpochRecord, ...] = ()
        self.config = config
        self.device = find_device(config.device)
        # The number of threads changes the last bits of a sum, so it is a setting and part of the record.
        self.threads = Threads(config.threads)
        self.split_seed = task.config.split.seed
        self.task = task
        dtype = WEIGHT_DTYPES[config.precision]
        self.train = Subset(
            task,
            task.split.train,
            self.device,
            dtype,
            config.loss,
            config.batch_size,
            # Stored rounded if each product would round it anyway.
            OPERAND_DTYPES.get(config.precision),
        )
        self.validation = Subset(task, task.split.validation, self.device, dtype, config.loss, BATCH)

        self.model = self._network()
        if warm_start is not None:
            load_warm_start(self.model, task.aev, warm_start)
        self.weights = FlatWeights(self.model)
        self.optimizer = make_optimizer(config, self.weights.vector)
        self._rate = config.learning_rate
        self.evaluated_model, self.evaluated = self.model, self.weights
        if config.ema_decay is not None:
            self.evaluated_model = self._network()
            self.evaluated = FlatWeights(self.evaluated_model)
            self.evaluated.load(self.weights.vector)
        self._best_weights = self.evaluated.copy()

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def next_permutation(self) -> int:
        """Number of the permutation of the next epoch, unless a pack sets another one."""
        return self.history[-1].order + 1 if self.history else first_permutation(self.config.seed)

    @property
    def best(self) -> EpochRecord:
        """The first epoch with the least validation MAE; at least one epoch must have ended."""
        return best_of(self.history)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or ``patience`` epochs passed without a better validation MAE."""
        if self.epoch == 0:
            return False
        patience = self.config.patience
        waited = self.epoch - self.best.epoch
        return self.epoch == self.config.epochs or (patience is not None and waited >= patience)

    @property
    def average(self) -> torch.Tensor | None:
        """The moving average of the weights, (N,), if it is on."""
        return None if self.config.ema_decay is None else self.evaluated.vector.detach()

    def best_model(self) -> ElementNetworks:
        """Return a network with the weights of the best epoch, in evaluation mode."""
        model = self._network()
        # Copied into separate tensors, as in a model read from a file: the address where a matrix begins
        # affects the last bits of its products.
        load_weights(model, self.evaluated.compact(self._best_weights))
        return model.eval()

    def _network(self) -> ElementNetworks:
        features = self.task.features
        return ElementNetworks(self.config, features.elements, features.length, self.device)

    def start_epoch(self) -> None:
        """Set the learning rate of the next epoch."""
        self._rate = next_learning_rate(self.config, [record.val_mae for record in self.history])
        set_rate(self.optimizer, self._rate)

    def step(self, gradient: torch.Tensor, number: int) -> None:
        """Update the weights on the CPU.

        Parameters
        ----------
        gradient : (P,) gradient of the loss of a batch
        number : number of the step in the whole training, from 1
        """
        self.weights.vector.grad = gradient
        self.optimizer.step()
        if self.average is not None:
            assert self.config.ema_decay is not None
            self.average.lerp_(self.weights.vector.detach(), new_share(self.config.ema_decay, number))

    def validate(self) -> list[float]:
        """Return :meth:`Subset.errors` of the network that is evaluated, on the CPU."""
        subset = self.validation
        predicted = predict(self.evaluated_model, subset.features, len(subset), self.threads)
        return [float(error) for error in subset.errors(predicted[:, None])]

    def end_epoch(self, losses: Sequence[float], permutation: int, started: float) -> None:
        """Record an epoch.

        Parameters
        ----------
        losses : mean training loss, and :meth:`Subset.errors` of the validation set
        permutation : number of the permutation in which it went through the data
        started : ``time.perf_counter()`` at its beginning

        Raises
        ------
        TrainingFailed
            if a loss is not finite.
        """
        epoch = self.epoch + 1
        for name, loss in zip(("training", "validation"), losses, strict=False):
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"the {name} loss is {loss} in epoch {epoch}; "
                    f"a learning rate below {self._rate:.3g} may help"
                )
        record = EpochRecord(
            epoch=epoch,
            order=permutation,
            train_loss=losses[0],
            val_loss=losses[1],
            val_errors={
                name: error * HARTREE_TO_KCALMOL
                for name, error in zip(epoch_metric_names(), losses[2:], strict=True)
            },
            learning_rate=self._rate,
            seconds=time.perf_counter() - started,
            finished_at=time.time(),
        )
        if not self.history or record.val_mae < self.best.val_mae:
            self._best_weights = self.evaluated.copy()
        self.history = (*self.history, record)

    def snapshot(self) -> Checkpoint:
        """Return a checkpoint of everything that the following epochs depend on."""
        tensors = self._own_tensors()
        for state in self.optimizer.state_dict()["state"].values():
            tensors |= {f"{OPTIMIZER}{name}": tensor for name, tensor in state.items()}
        compact = self.weights.compact
        on_cpu = {name: (compact(t) if t.ndim else t).detach().cpu() for name, t in tensors.items()}
        return Checkpoint(self.identity, self.history, on_cpu)

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint holds besides the optimizer's state, each (N,) here and (P,) there."""
        tensors = {"weights": self.weights.vector, "best": self._best_weights}
        if self.average is not None:
            tensors["average"] = self.evaluated.vector
        return tensors

    def checkpoint_tensors(self) -> dict[str, TensorKind]:
        """Return the shapes and types of the tensors of a checkpoint of this training."""
        shape: tuple[int, ...] = (self.model.parameter_count,)
        kinds = {name: TensorKind(shape, tensor.dtype) for name, tensor in self._own_tensors().items()}
        # The optimizer has no state before its first step, so an optimizer of two weights shows what it has.
        weights = torch.nn.Parameter(torch.zeros(2, dtype=self.weights.vector.dtype, device=self.device))
        weights.grad = torch.zeros_like(weights)
        example = make_optimizer(self.config, weights)
        example.step()
        for name, tensor in example.state[weights].items():
            kinds[f"{OPTIMIZER}{name}"] = TensorKind(shape if tensor.ndim else (), tensor.dtype)
        return kinds

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``, whose identity and tensors must match this training."""
        self.history = checkpoint.history
        tensors = checkpoint.tensors
        spread = self.weights.spread
        self.weights.load(spread(tensors["weights"]))
        self._best_weights = spread(tensors["best"])
        if self.average is not None:
            self.evaluated.load(spread(tensors["average"]))
        state = {
            name.removeprefix(OPTIMIZER): spread(tensor) if tensor.ndim else tensor
            for name, tensor in tensors.items()
            if name.startswith(OPTIMIZER)
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {0: state}, "param_groups": groups})


def best_of(history: Sequence[EpochRecord]) -> EpochRecord:
    """Return the first epoch with the least validation MAE; the history must not be empty."""
    return min(history, key=lambda record: record.val_mae)


def training_identity(task: Task, config: TrainConfig, warm_start: Path | None) -> Identity:
    """Return what a checkpoint must have in common with a training; the precision of ``config`` is resolved.

    Raises
    ------
    ConfigError
        if the warm start cannot be read.
    """
    settings = compared_settings(dump_config(config), SAME_TRAINING)
    # Another device that continues the training may not support the precision of the operands.
    settings["precision"] = weights_precision(config.precision)
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
