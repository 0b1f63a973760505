from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from trainer.errors import CheckpointError, OutputError
from trainer.fitting.checkpoints import (
    CHECKPOINT,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    saved_epoch,
)
from trainer.reporting import EpochRecord

ERRORS = {"mae_kcalmol": 1 / 3, "rmse_kcalmol": 2 / 3, "max_error_kcalmol": 5.0}
IDENTITY = {"training": {"seed": 1, "hidden": [8, 8], "dropout": 0.1}, "task": {"data": "abc"}}


def make_checkpoint(epochs: int = 2) -> Checkpoint:
    random = torch.Generator().manual_seed(epochs)
    history = tuple(
        EpochRecord(n, 70 + n, 0.1 / 3, 0.2 / 3, ERRORS, 1e-3, 0.123456789, 1.7e9 + 1 / 3)
        for n in range(1, epochs + 1)
    )
    tensors = {
        "weights": torch.randn(1000, generator=random),
        "best": torch.randn(1000, generator=random, dtype=torch.float64),
        "optimizer/step": torch.tensor(7.0),
    }
    return Checkpoint(IDENTITY, history, tensors=tensors)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trial" / CHECKPOINT


def test_what_is_saved_comes_back_to_the_last_bit(path: Path) -> None:
    saved = make_checkpoint()
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path, IDENTITY)
    assert loaded is not None
    assert loaded.history == saved.history
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_where_there_is_none_nothing_is_resumed(path: Path) -> None:
    assert load_checkpoint(path, IDENTITY) is None


def test_a_later_checkpoint_takes_the_place_of_the_earlier_one(path: Path) -> None:
    save_checkpoint(path, make_checkpoint(2))
    save_checkpoint(path, make_checkpoint(3))
    loaded = load_checkpoint(path, IDENTITY)
    assert loaded is not None
    assert len(loaded.history) == 3
    assert [file.name for file in path.parent.iterdir()] == [CHECKPOINT]


def test_its_last_epoch_is_known_without_reading_the_rest(path: Path) -> None:
    assert saved_epoch(path) == 0
    save_checkpoint(path, make_checkpoint(3))
    assert saved_epoch(path) == 3
    for damaged in (b"", b"no checkpoint", path.read_bytes()[:100]):
        path.write_bytes(damaged)
        assert saved_epoch(path) == 0


def flip(at: float) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        position = int(at * (len(content) - 1))
        return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
        pytest.param(lambda content: content[:-1], id="a byte short"),
        pytest.param(lambda content: b"\0" * len(content), id="zeros"),
        pytest.param(flip(1.0), id="a bit of the last weight"),
        pytest.param(flip(0.6), id="a bit of a weight"),
        pytest.param(
            lambda content: content.replace(b"0.123456789", b"0.123456780"), id="a number of the history"
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused(path: Path, damage: Callable[[bytes], bytes]) -> None:
    save_checkpoint(path, make_checkpoint())
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    with pytest.raises(CheckpointError, match="damaged") as refused:
        load_checkpoint(path, IDENTITY)
    assert str(path) in str(refused.value)
    assert "delete it to train from the start" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_file_is_no_checkpoint(path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir()
    save_file({"weights": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path, IDENTITY)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"training": {**IDENTITY["training"], "seed": 2}, "task": {"data": "abc"}}, "training.seed"),
        ({"training": IDENTITY["training"], "task": {"data": "abd"}}, "task.data"),
        ({**IDENTITY, "warm_start": {"digest": "f"}}, "warm_start.digest"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    path: Path, other: dict[str, dict[str, object]], named: str
) -> None:
    save_checkpoint(path, make_checkpoint())
    with pytest.raises(CheckpointError, match="another training") as refused:
        load_checkpoint(path, other)
    assert named in str(refused.value)
    assert str(path) in str(refused.value)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let the kernel refuse to write more than ``size`` bytes to a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_the_earlier_checkpoint_stays(path: Path) -> None:
    save_checkpoint(path, make_checkpoint(2))
    with files_limited_to(4096), pytest.raises(OutputError, match="cannot be written") as failed:
        save_checkpoint(path, make_checkpoint(3))
    assert str(path) in str(failed.value)
    loaded = load_checkpoint(path, IDENTITY)
    assert loaded is not None
    assert len(loaded.history) == 2
    assert [file.name for file in path.parent.iterdir()] == [CHECKPOINT]


def test_where_no_folder_can_be_made_the_error_names_the_place(path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=f"{path}: cannot be written"):
        save_checkpoint(path, make_checkpoint())
