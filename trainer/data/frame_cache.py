"""Cache of the arrays of large files without groups, so that a file is parsed once.

The arrays are beside the feature stores, in a folder named by the digest of the file. ``anitune gc`` deletes
a folder that has not been used for a day.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Final

import numpy as np

from trainer.data.frames import Frames
from trainer.errors import OutputError
from trainer.files import replacing
from trainer.fingerprints import digest_of
from trainer.progress import Progress

logger = logging.getLogger("anitune")

#: Smaller files are parsed each time.
LARGE: Final = 2**24

#: Version of the cached content; other versions are not read.
FORMAT: Final = 1

ARRAYS: Final = "frames.npz"

_CHUNK: Final = 2**22


def cached_frames(
    path: Path, settings: object, cache: Path | None, progress: Progress, read: Callable[[], Frames]
) -> Frames:
    """Return the structures of a file, from the cache if it has been read before.

    Parameters
    ----------
    settings : what the arrays depend on besides the file, as plain JSON values
    cache : folder of the cache; None: no cache
    read : parses the file
    """
    if cache is None or path.stat().st_size < LARGE:
        return read()
    name = digest_of({"file": _digest(path, progress), "settings": settings, "format": FORMAT})
    kept = cache / f"structures-{name[:32]}" / ARRAYS
    if kept.exists():
        try:
            with kept.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = Frames(**{field.name: arrays[field.name] for field in fields(Frames)})
            os.utime(kept.parent)
            return found
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s: cannot be read (%s), so that %s is parsed again", kept, error, path)
    frames = read()
    try:
        with replacing(kept) as partial, partial.open("wb") as written:
            np.savez(written, **vars(frames))
    except OutputError as error:
        logger.warning("%s; %s will be parsed again next time", error, path)
    return frames


def _digest(path: Path, progress: Progress) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(f"checksum of {path.name}", done, max(done, total))
    return digest.hexdigest()
