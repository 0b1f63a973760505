"""Confines names that come from elsewhere (a record, MLflow, a link) to the folders of anitune.

Such a name can only delete, write or read a direct child of one of these folders.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from storage.errors import OutsideFolderError


def child(folder: Path, name: str) -> Path:
    """The path of a folder's direct child with this name, whether it exists or not.

    The folder itself may be a link, for example to a larger disk. Its child may not.

    Raises
    ------
    OutsideFolderError
        if the name is ``..`` or a path, or if the child is a link.
    """
    found = _named(folder, name)
    if found.is_symlink():
        raise OutsideFolderError(f"{found}: is a link, and links are not followed: remove it")
    return found


def descendant(folder: Path, path: str) -> Path:
    """Resolve a path of names separated by slashes below a folder; each name is checked by :func:`child`.

    Raises
    ------
    OutsideFolderError
        as :func:`child`, for each name.
    """
    found = folder
    for name in path.split("/"):
        found = child(found, name)
    return found


def remove_child(folder: Path, name: str) -> None:
    """Delete the direct child of that name and its contents; if it is a link, only the link.

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
    # For a path of several parts, "." and "", Path.name differs from the text.
    if not name or "\0" in name or name == ".." or Path(name).name != name:
        raise OutsideFolderError(f"{name!r} names nothing in {folder}")
    return folder / name
