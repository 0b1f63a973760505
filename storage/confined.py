"""Keeps names that come from elsewhere inside our own folders, whoever wrote them: a record, MLflow, a link.

What is deleted, uploaded to or read from by such a name is a direct child of a folder of ours, or nothing.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from storage.errors import OutsideFolderError


def child(folder: Path, name: str) -> Path:
    """The direct child of a folder that a name stands for, whether it exists or not.

    The folder itself may be a link, as to a larger disk. What lies in it may not.

    Raises
    ------
    OutsideFolderError
        if the name is ``..``, a path, or that of a link.
    """
    found = _named(folder, name)
    if found.is_symlink():
        raise OutsideFolderError(f"{found}: is a link, and not followed: remove it")
    return found


def descendant(folder: Path, path: str) -> Path:
    """What a path of several names, divided by slashes, stands for below a folder; each as :func:`child`.

    Raises
    ------
    OutsideFolderError
        as :func:`child`, for each of the names.
    """
    found = folder
    for name in path.split("/"):
        found = child(found, name)
    return found


def remove_child(folder: Path, name: str) -> None:
    """Delete the direct child of that name with all that is in it; of a link the link alone.

    Raises
    ------
    OutsideFolderError
        if the name is ``..`` or a path.
    """
    found = _named(folder, name)
    if found.is_dir() and not found.is_symlink():
        shutil.rmtree(found, ignore_errors=True)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            found.unlink()


def _named(folder: Path, name: str) -> Path:
    # A path of more than one part, "." and "" have another name than themselves.
    if not name or "\0" in name or name == ".." or Path(name).name != name:
        raise OutsideFolderError(f"{name!r} names nothing in {folder}")
    return folder / name
