"""Checkpoints that somebody has made on purpose: their digests fit, what is in them does not."""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from trainer.config import TrainConfig
from trainer.errors import CheckpointError, ModelFileError
from trainer.fitting.checkpoints import (
    CHECKPOINT,
    REFUSED,
    Checkpoint,
    _digest,
    save_checkpoint,
    saved_epoch,
    set_aside,
)
from trainer.fitting.devices import resolve_precision
from trainer.fitting.loop import fit
from trainer.fitting.training import Training
from trainer.networks.files import load_model
from trainer.reporting import SilentReporter
from trainer.task import Task

CONFIG = TrainConfig(hidden=(8,), batch_size=32, epochs=3, ema_decay=0.9, device="cpu")

Forge = Callable[[Checkpoint], Checkpoint]


class StopAtOnce(SilentReporter):
    def should_stop(self) -> bool:
        return True


class Canary:
    """Un-pickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self._file,)


@pytest.fixture
def checkpoint(task: Task, tmp_path: Path) -> Checkpoint:
    """Of a training that was stopped after its first epoch."""
    fit(task, CONFIG, tmp_path, StopAtOnce())
    training = Training(task, resolve_precision(CONFIG), None)
    with safetensors.safe_open(tmp_path / CHECKPOINT, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    history = fit(task, CONFIG, tmp_path, StopAtOnce()).history
    return Checkpoint(training.identity, history[:1], tensors)


def refused(task: Task, folder: Path) -> str:
    """What is said of the checkpoint in a folder; the training must not go on from it."""
    with pytest.raises(CheckpointError) as error:
        fit(task, CONFIG, folder, SilentReporter())
    assert str(folder / CHECKPOINT) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_that_fits_is_gone_on_from(task: Task, tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / CHECKPOINT, checkpoint)
    assert fit(task, CONFIG, tmp_path, SilentReporter()).history[0] == checkpoint.history[0]


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Forge:
    def forge(checkpoint: Checkpoint) -> Checkpoint:
        return replace(checkpoint, tensors={**checkpoint.tensors, name: change(checkpoint.tensors[name])})

    return forge


def in_val_errors(**errors: object) -> Forge:
    def forge(checkpoint: Checkpoint) -> Checkpoint:
        (epoch,) = checkpoint.history
        changed: Any = {**epoch.val_errors, **errors}
        return replace(checkpoint, history=(replace(epoch, val_errors=changed),))

    return forge


def without(name: str) -> Forge:
    def forge(checkpoint: Checkpoint) -> Checkpoint:
        return replace(checkpoint, tensors={n: t for n, t in checkpoint.tensors.items() if n != name})

    return forge


@pytest.mark.parametrize(
    ("forge", "fault"),
    [
        (tensor("weights", lambda t: t[:-1]), "weights is"),
        (tensor("weights", lambda t: t.reshape(1, -1)), "weights is"),
        (tensor("best", lambda t: t.double()), "best is torch.float64"),
        (tensor("average", lambda t: t.repeat(2)), "average is"),
        (tensor("optimizer/exp_avg", lambda t: t[:1]), "optimizer/exp_avg is"),
        (tensor("optimizer/step", lambda t: t.repeat(3)), "optimizer/step is"),
        (without("best"), "best is missing"),
        (without("optimizer/exp_avg_sq"), "optimizer/exp_avg_sq is missing"),
        (
            lambda c: replace(c, tensors={**c.tensors, "optimizer/hook": torch.zeros(1)}),
            "'optimizer/hook' is not one of its tensors",
        ),
        (lambda c: replace(c, history=()), "it has 0 epochs of 3"),
        (
            lambda c: replace(c, history=tuple(replace(c.history[0], epoch=n) for n in range(1, 5))),
            "4 epochs",
        ),
        (lambda c: replace(c, history=(replace(c.history[0], epoch=2),)), "epoch 1 is not a valid record"),
        (in_val_errors(mae_kcalmol="0"), "epoch 1 is not a valid record"),
        (in_val_errors(mae_kcalmol=-1.0), "epoch 1 is not a valid record"),
        (
            lambda c: replace(c, history=(replace(c.history[0], val_errors={}),)),
            "epoch 1 is not a valid record",
        ),
        (lambda c: replace(c, identity={**c.identity, "task": {"data": "x"}}), "another training"),
        (lambda c: replace(c, identity=["no mapping"]), "its record cannot be read"),  # type: ignore[arg-type]
    ],
)
def test_one_whose_parts_do_not_fit_is_refused(
    task: Task, tmp_path: Path, checkpoint: Checkpoint, forge: Forge, fault: str
) -> None:
    save_checkpoint(tmp_path / CHECKPOINT, forge(checkpoint))
    assert fault in refused(task, tmp_path)


def write_record(path: Path, record: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """A checkpoint with this record, whose digest fits."""
    header = {"record": record, "digest": _digest(record, tensors)}
    path.write_bytes(safetensors.torch.save(dict(tensors), header))


RECORDS = {
    "empty": "",
    "list": "[]",
    "no keys": "{}",
    "deep": "[" * 100_000,
    "deep, and closed": '{"identity": ' + "[" * 900 + "]" * 900 + "}",
    "no list": '{"identity": {}, "history": 3}',
    "a mapping for a list": '{"identity": {}, "history": {"0": 1}}',
    "sections that are none": '{"identity": {"training": [1]}, "history": []}',
    "a key twice": '{"identity": {}, "identity": {}, "history": []}',
    "not a number": '{"identity": {"training": {"seed": NaN}}, "history": []}',
    "an endless number": '{"identity": {"training": {"seed": ' + "9" * 10_000 + '}}, "history": []}',
    "one key more": '{"identity": {}, "history": [], "more": ' + "[" * 150 + "]" * 150 + "}",
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_one_whose_record_is_another_is_refused(
    task: Task, tmp_path: Path, checkpoint: Checkpoint, record: str
) -> None:
    write_record(tmp_path / CHECKPOINT, record, checkpoint.tensors)
    assert saved_epoch(tmp_path / CHECKPOINT) == 0
    said = refused(task, tmp_path)
    assert "its record cannot be read" in said or "belongs to another training" in said
    assert len(said) < 1000


EPOCHS: dict[str, Callable[[dict[str, Any]], object]] = {
    "time without end": lambda epoch: epoch.update(finished_at=math.inf),
    "time beyond all dates": lambda epoch: epoch.update(finished_at=1e300),
    "time before 1970": lambda epoch: epoch.update(finished_at=-1e18),
    "no time": lambda epoch: epoch.update(finished_at=math.nan),
    "null": lambda epoch: epoch.update(finished_at=None),
    "text": lambda epoch: epoch["val_errors"].update(mae_kcalmol="inf"),
    "another MAE, as in an earlier version": lambda epoch: epoch.update(val_mae=0.0),
    "true": lambda epoch: epoch.update(epoch=True),
    "a fraction": lambda epoch: epoch.update(order=0.5),
    "an order for no generator": lambda epoch: epoch.update(order=-1),
    "an order for no column": lambda epoch: epoch.update(order=10**30),
    "seconds": lambda epoch: epoch.update(seconds=-math.inf),
    "a list": lambda epoch: epoch.update(train_loss=[[[]]]),
    "a key less": lambda epoch: epoch.pop("order"),
    "a key more": lambda epoch: epoch.update({"\x1b[31m\n": 1}),
    "no keys": lambda epoch: epoch.clear(),
}


@pytest.mark.parametrize("change", EPOCHS.values(), ids=EPOCHS)
def test_one_with_an_epoch_that_cannot_be_is_refused(
    task: Task, tmp_path: Path, checkpoint: Checkpoint, change: Callable[[dict[str, Any]], object]
) -> None:
    epoch = asdict(checkpoint.history[0])
    change(epoch)
    record = json.dumps({"identity": checkpoint.identity, "history": [epoch]})
    write_record(tmp_path / CHECKPOINT, record, checkpoint.tensors)
    said = refused(task, tmp_path)
    assert "epoch 1 is not a valid record" in said or "its record cannot be read" in said
    assert said.isprintable()


def test_metrics_that_are_not_known_are_not_recorded(
    task: Task, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    save_checkpoint(tmp_path / CHECKPOINT, in_val_errors(**{"../x": 1.0})(checkpoint))
    assert fit(task, CONFIG, tmp_path, SilentReporter()).history[0] == checkpoint.history[0]


def test_names_of_unknown_settings_are_not_repeated(
    task: Task, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    many = {f"\x1b[31m{number}": number for number in range(10_000)}
    save_checkpoint(tmp_path / CHECKPOINT, replace(checkpoint, identity={**checkpoint.identity, "x": many}))
    assert "(other settings that are not known here)" in refused(task, tmp_path)


def test_weights_that_do_not_fit_are_not_read(task: Task, tmp_path: Path, checkpoint: Checkpoint) -> None:
    record = json.dumps({"identity": checkpoint.identity, "history": []})
    tensors, end = {}, 0
    for name in checkpoint.tensors:
        begin, end = end, end + 4 * 10**8
        tensors[name] = {"dtype": "F32", "shape": [10**8], "data_offsets": [begin, end]}
    header = json.dumps({"__metadata__": {"record": record, "digest": ""}, **tensors}).encode()
    with (tmp_path / CHECKPOINT).open("wb") as file:  # its holes take no place on the disk
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(8 + len(header) + end)
        except OSError:
            pytest.skip("this file system has no such large files")
    assert "is torch.float32 (100000000,) instead of" in refused(task, tmp_path)


@pytest.mark.parametrize("by", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_executed(task: Task, tmp_path: Path, by: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / CHECKPOINT
    if by == "pickle":
        file.write_bytes(pickle.dumps(Canary(canary)))
    else:
        torch.save({"weights": Canary(canary)}, file)
    assert "damaged" in refused(task, tmp_path)
    with pytest.raises(ModelFileError, match="not a model file of anitune, or damaged"):
        load_model(file)
    assert not canary.exists()
    # It would have done harm: this is what such a file does to a program that un-pickles it.
    harmful = file.rename(tmp_path / "weights.pt")
    torch.load(harmful, weights_only=False) if by == "torch" else pickle.loads(harmful.read_bytes())
    assert canary.exists()


def test_one_that_was_set_aside_stands_in_nobodys_way(
    task: Task, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"poison")
    refused(task, tmp_path)
    assert set_aside(tmp_path / CHECKPOINT) == tmp_path / f"{REFUSED}{CHECKPOINT}"
    assert len(fit(task, CONFIG, tmp_path, SilentReporter()).history) == 3
