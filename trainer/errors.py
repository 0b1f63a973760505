"""Errors of one training run, in the user's terms."""

from __future__ import annotations


class TrainerError(Exception):
    """The training run cannot go on."""


class ConfigError(TrainerError):
    """A setting is unknown or out of its range."""


class DataError(TrainerError):
    """A data file cannot be used as it is."""


class FeatureStoreError(TrainerError):
    """The feature store cannot be built or read."""


class CheckpointError(TrainerError):
    """A checkpoint does not belong to this training, or is damaged."""


class ModelFileError(TrainerError):
    """A model file is damaged, or anitune did not write it."""


class TrainingFailed(TrainerError):  # noqa: N818  (an outcome, not a fault of the program)
    """The training ended without a usable network: the message is the reason."""


class TrainingCutOff(TrainingFailed):
    """The machine ended the training, for example for lack of memory; it may succeed at another time."""


class DeviceError(TrainerError):
    """The GPU has failed: this process trains nothing more. It is no fault of a training.

    Parameters
    ----------
    message : None: the first sentences of this docstring
    device : the GPU, as ``cuda:0``
    """

    def __init__(self, message: str | None = None, device: object = None) -> None:
        super().__init__(message or str(type(self).__doc__).partition("\n")[0])
        self.device = None if device is None else str(device)


class MemoryTakenError(TrainerError):
    """Other processes use the memory of the GPU: no training fits beside them."""


class MissingExtraError(TrainerError):
    """A package of an extra is not installed."""


class OutputError(TrainerError):
    """A file cannot be written: the folder is read-only, or the disk is full."""


class ExportError(TrainerError):
    """An exported model does not predict what the original model does."""


class DownloadError(TrainerError):
    """A file cannot be downloaded."""
