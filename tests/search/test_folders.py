from __future__ import annotations

from pathlib import Path

import pytest

from search.work.folders import take_folder
from trainer.errors import OutputError
from trainer.files import replacing, write_by_rename


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    return tmp_path / "00007"


def checkpoint(trial: Path, attempt: int) -> Path:
    return trial / f"attempt-{attempt}" / "checkpoint"


def test_the_next_attempt_finds_the_checkpoint_of_the_one_before(trial: Path) -> None:
    write_by_rename(take_folder(trial / "attempt-1") / "checkpoint", b"epoch 3")
    # The second one died before it had begun.
    assert take_folder(trial / "attempt-3") == trial / "attempt-3"
    assert checkpoint(trial, 3).read_bytes() == b"epoch 3"
    assert [folder.name for folder in trial.iterdir()] == ["attempt-3"]


def test_a_worker_that_wakes_up_changes_nothing_that_a_later_one_reads(trial: Path) -> None:
    write_by_rename(take_folder(trial / "attempt-1") / "checkpoint", b"epoch 3")
    take_folder(trial / "attempt-2")
    write_by_rename(checkpoint(trial, 1), b"of a zombie")
    write_by_rename(checkpoint(trial, 2), b"epoch 5")

    take_folder(trial / "attempt-3")
    assert checkpoint(trial, 3).read_bytes() == b"epoch 5"
    assert not checkpoint(trial, 1).exists()


def test_a_worker_that_is_stopped_between_write_and_rename_leaves_nothing(trial: Path) -> None:
    write_by_rename(take_folder(trial / "attempt-1") / "checkpoint", b"epoch 3")
    late = replacing(checkpoint(trial, 1))
    late.__enter__().write_bytes(b"of a zombie")
    take_folder(trial / "attempt-2")  # meanwhile
    with pytest.raises(OutputError):
        late.__exit__(None, None, None)
    assert checkpoint(trial, 2).read_bytes() == b"epoch 3"
    assert not checkpoint(trial, 1).exists()


def test_a_worker_that_lost_the_trial_before_it_began_takes_nothing_from_its_holder(trial: Path) -> None:
    write_by_rename(take_folder(trial / "attempt-1") / "checkpoint", b"epoch 3")
    take_folder(trial / "attempt-3")
    take_folder(trial / "attempt-2")
    assert checkpoint(trial, 3).read_bytes() == b"epoch 3"
    assert not checkpoint(trial, 2).exists()


def test_an_attempt_that_looks_again_keeps_its_folder(trial: Path) -> None:
    write_by_rename(take_folder(trial / "attempt-2") / "checkpoint", b"epoch 3")
    write_by_rename(checkpoint(trial, 1), b"of a zombie")
    take_folder(trial / "attempt-2")
    assert checkpoint(trial, 2).read_bytes() == b"epoch 3"
