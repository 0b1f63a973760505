"""Checkpoints of one training, each a single file that appears by rename.

The tensors and the record (JSON in the header of the safetensors file) share one digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError

from trainer.config import default_settings
from trainer.errors import CheckpointError
from trainer.evaluation.metrics import MAE, METRICS
from trainer.files import write_by_rename
from trainer.reporting import EpochRecord
from trainer.strict_json import parse_json
from trainer.tensor_files import TensorKind, misfit, tensor_kinds

CHECKPOINT: Final = "checkpoint.safetensors"

REFUSED: Final = "refused-"
"""Prefix of the name of a rejected checkpoint."""

Identity = Mapping[str, Any]
"""What a training and its checkpoint must have in common: plain JSON values, in sections."""


@dataclass(frozen=True)
class _Record:
    identity: dict[str, dict[str, Any]]
    history: list[Any]


_RECORD: Final = TypeAdapter(_Record)
_EPOCH: Final = TypeAdapter(EpochRecord)


def weights_precision(precision: str) -> str:
    """Return the precision of the weights, which stays the same where another device continues."""
    return "float32" if precision in ("tf32", "bfloat16") else precision


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training after an epoch.

    Attributes
    ----------
    identity : the settings and data of the training
    history : the epochs so far; they determine the schedule, the permutation of the data and the best epoch
    tensors : weights, best weights, average, optimizer and generators, by name, on the CPU
    """

    identity: Identity
    history: tuple[EpochRecord, ...]
    tensors: Mapping[str, torch.Tensor]

    def copy(self) -> Checkpoint:
        """Return a copy with its own tensors: a training on the CPU goes on to change the originals."""
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return Checkpoint(self.identity, self.history, tensors)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at ``path``.

    Raises
    ------
    OutputError
        if it cannot be written; the earlier checkpoint is kept.
    """
    record = json.dumps(
        {
            "identity": checkpoint.identity,
            "history": [asdict(epoch) for epoch in checkpoint.history],
        }
    )
    tensors = dict(checkpoint.tensors)
    write_by_rename(
        path, safetensors.torch.save(tensors, {"record": record, "digest": _digest(record, tensors)})
    )


def load_checkpoint(
    path: Path, identity: Identity, wanted: Mapping[str, TensorKind] | None = None
) -> Checkpoint | None:
    """Return the checkpoint at ``path``, or None if there is none.

    Parameters
    ----------
    wanted : the tensors that it must have, and no others; None: any tensors

    Raises
    ------
    CheckpointError
        if it is damaged, has other tensors, or belongs to a training with another identity.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata()
            record = _read_record(header["record"])
            if differing := _differences(record.identity, identity):
                raise CheckpointError(
                    f"{path}: belongs to another training (other {', '.join(differing)}); "
                    "choose another folder, or delete it to train from the start"
                )
            found = tensor_kinds(file)
            if wanted is not None and (fault := misfit(found, wanted)):
                raise damaged(path, fault)
            tensors = {name: file.get_tensor(name) for name in found}
        if header["digest"] != _digest(header["record"], tensors):
            raise damaged(path, "its digest does not match")
        # A digest guards against accidents only: a forged file has a matching digest.
        history = tuple(_epoch(number, epoch) for number, epoch in enumerate(record.history, 1))
    except (safetensors.SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    return Checkpoint(record.identity, history, tensors)


def _read_record(text: str) -> _Record:
    """Parse the record of an untrusted file; its epochs are not checked yet."""
    try:
        record = _RECORD.validate_python(parse_json(text))
    except ValueError as error:
        raise ValueError(f"its record cannot be read: {_first_line(error)}") from None
    if "precision" in (settings := record.identity.get("training", {})):
        # Version 0.1.0 recorded the precision of the products.
        settings["precision"] = weights_precision(settings["precision"])
    return record


def damaged(path: Path, why: object) -> CheckpointError:
    """Return the error to raise for a checkpoint that cannot be resumed from."""
    return CheckpointError(f"{path}: damaged ({why}); delete it to train from the start")


def set_aside(path: Path) -> Path:
    """Move a rejected checkpoint aside and return its new path."""
    aside = path.with_name(f"{REFUSED}{path.name}")
    path.replace(aside)
    return aside


def _epoch(number: int, values: object) -> EpochRecord:
    try:
        epoch = _EPOCH.validate_python(_with_val_errors(values))
    except ValidationError as error:
        raise ValueError(f"epoch {number} is not a valid record: {_first_line(error)}") from None
    if epoch.epoch != number or MAE not in epoch.val_errors:
        raise ValueError(f"epoch {number} is not a valid record")
    # The file is untrusted, and names become those of files and trackers.
    known = {name: epoch.val_errors[name] for name in METRICS if name in epoch.val_errors}
    return replace(epoch, val_errors=known)


def _with_val_errors(values: object) -> object:
    """Return an epoch of a checkpoint, in which version 0.1.0 had a field for each of its metrics."""
    if not isinstance(values, Mapping) or "val_errors" in values:
        return values
    fields = {"val_mae": MAE, "val_rmse": "rmse_kcalmol", "val_max_error": "max_error_kcalmol"}
    errors = {name: values[field] for field, name in fields.items() if field in values}
    return {name: value for name, value in values.items() if name not in fields} | {"val_errors": errors}


def _first_line(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc']))!r:.80}: {fault['msg']}"


def saved_epoch(path: Path) -> int:
    """Return the last epoch of the checkpoint at ``path``; 0 if there is none, or it cannot be read."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return len(_read_record(file.metadata()["record"]).history)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
        return 0


def _digest(record: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _differences(found: Identity, wanted: Identity) -> list[str]:
    """Return the names, ``section.name``, of the values that differ between the two.

    A setting of the training that the checkpoint lacks was added later, and had its default.
    """
    names = [(section, name) for section in sorted(wanted) for name in sorted(wanted[section])]
    known = {**found, "training": {**default_settings(), **found.get("training", {})}}
    differing = [
        f"{section}.{name}"
        for section, name in names
        if name not in known.get(section, {}) or known[section][name] != wanted[section][name]
    ]
    # Names in a file are untrusted, and there may be any number of them: the message does not repeat them.
    unknown = {(section, name) for section, values in found.items() for name in values} - set(names)
    return differing + (["settings that are not known here"] if unknown else [])
