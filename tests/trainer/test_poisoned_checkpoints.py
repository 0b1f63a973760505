"""Checkpoints that somebody has made on purpose: their digests fit, what is in them does not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from trainer.config import TrainConfig
from trainer.errors import CheckpointError, ModelFileError
from trainer.fitting.checkpoints import CHECKPOINT, REFUSED, Checkpoint, _digest, save_checkpoint, set_aside
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
            "'optimizer/hook' is none of its parts",
        ),
        (lambda c: replace(c, history=()), "it has 0 epochs of 3"),
        (
            lambda c: replace(c, history=tuple(replace(c.history[0], epoch=n) for n in range(1, 5))),
            "4 epochs",
        ),
        (lambda c: replace(c, history=(replace(c.history[0], epoch=2),)), "epoch 1 is no record"),
        (lambda c: replace(c, history=(replace(c.history[0], val_mae="0"),)), "epoch 1 is no record"),
        (lambda c: replace(c, identity={**c.identity, "task": {"data": "x"}}), "another training"),
        (lambda c: replace(c, identity=["no mapping"]), "its record cannot be read"),  # type: ignore[arg-type]
    ],
)
def test_one_whose_parts_do_not_fit_is_refused(
    task: Task, tmp_path: Path, checkpoint: Checkpoint, forge: Forge, fault: str
) -> None:
    save_checkpoint(tmp_path / CHECKPOINT, forge(checkpoint))
    assert fault in refused(task, tmp_path)


@pytest.mark.parametrize("record", ["", "[]", "{}", "[" * 1000, json.dumps({"identity": {}, "history": 3})])
def test_one_whose_record_is_another_is_refused(
    task: Task, tmp_path: Path, checkpoint: Checkpoint, record: str
) -> None:
    tensors = dict(checkpoint.tensors)
    header = {"record": record, "digest": _digest(record, tensors)}
    (tmp_path / CHECKPOINT).write_bytes(safetensors.torch.save(tensors, header))
    assert "its record cannot be read" in refused(task, tmp_path)


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
