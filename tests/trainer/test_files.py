from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.errors import OutputError
from trainer.files import put_in_place, remove_leftovers, replacing, write_by_rename


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """A limit on the size of files stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.csv"
    path.write_bytes(b"before")
    return path


def test_a_file_takes_the_place_of_the_earlier_one_at_the_end(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_bytes(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_made(tmp_path: Path) -> None:
    write_by_rename(tmp_path / "new" / "folder" / "x", b"content")
    assert (tmp_path / "new" / "folder" / "x").read_bytes() == b"content"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_changes_nothing(error: type[BaseException], path: Path) -> None:
    def write_half() -> None:
        with replacing(path) as partial:
            partial.write_bytes(b"half of")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_reported_in_a_line_and_changes_nothing(path: Path) -> None:
    with full_disk(free=3), pytest.raises(OutputError) as caught:
        write_by_rename(path, b"more than there is room for")
    said = str(caught.value)
    assert said.startswith(f"{path}: cannot be written: ")
    assert "free space" in said
    assert "\n" not in said
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_read_only_folder_is_reported() -> None:
    with pytest.raises(OutputError, match=r"^/proc/anitune/x: cannot be written"):  # not even by root
        write_by_rename(Path("/proc/anitune/x"), b"content")


def test_a_finished_file_moves(path: Path) -> None:
    finished = path.with_name("finished")
    finished.write_bytes(b"whole")
    put_in_place(finished, path)
    assert path.read_bytes() == b"whole"
    assert not finished.exists()


def test_what_a_killed_process_left_is_removed(path: Path) -> None:
    path.with_name(f".{path.name}.4711.partial").write_bytes(b"half of")
    remove_leftovers(path.parent)
    assert list(path.parent.iterdir()) == [path]
