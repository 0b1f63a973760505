"""AEVs on disk: computed once, mapped into the memory of every process that trains on them.

A store is a folder ``<root>/<key>`` with a NumPy file for each element, whose rows are the AEVs of the
element's atoms in the order of the structures, and a manifest with sizes and digests. The key is a digest
of all that decides the content. The folder appears by rename once it is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from trainer.config import AEVConfig, dump_config
from trainer.data.dataset import Dataset
from trainer.errors import FeatureStoreError
from trainer.features.aev import MoleculeFeatures, aev_length
from trainer.features.batches import atom_counts
from trainer.progress import Progress

logger = logging.getLogger("anitune")

#: To be raised when the same data and constants give other files.
FORMAT: Final = 1

MANIFEST: Final = "manifest.json"


def store_bytes(dataset: Dataset, config: AEVConfig) -> int:
    """Size of the AEVs of all atoms of a data set."""
    return sum(m.structures * m.atoms for m in dataset.molecules) * aev_length(config) * 4


def open_store(dataset: Dataset, config: AEVConfig, root: Path, progress: Progress) -> tuple[Tensor, ...]:
    """Map the AEVs of a data set, after building or rebuilding the store if it is missing or damaged.

    Returns
    -------
    For each element of ``config``, (N_e, F) float32 tensors that share the memory of the mapped files.

    Raises
    ------
    FeatureStoreError
        if the store cannot be built or read; nothing half-built stays.
    """
    content = {"format": FORMAT, "dataset": dataset.fingerprint, "aev": dump_config(config)}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    folder = root / key
    try:
        if fault := _fault(folder, content):
            with _only_builder(root, key):
                # Another process may have built it while this one waited.
                if fault := _fault(folder, content):
                    if folder.exists():
                        logger.warning(
                            "%s: the feature store is damaged (%s): it is built anew", folder, fault
                        )
                        shutil.rmtree(folder)
                    _build(folder, content, dataset, config, progress)
        return tuple(_map(folder / f"{element}.npy") for element in config.elements)
    except OSError as error:
        raise FeatureStoreError(
            f"{root}: the feature store cannot be built or read: {error.strerror or error}; "
            f"it takes {store_bytes(dataset, config) / 2**30:.3g} GiB: free space, or choose another folder"
        ) from error


def _fault(folder: Path, content: dict[str, Any]) -> str | None:
    """What is wrong with the store, in words, or None if every byte is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["content"] != content:
            return f"{MANIFEST} describes other features"
        files = [
            (folder / name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
        ]
        for path, size, _ in files:
            if path.stat().st_size != size:
                return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    with ThreadPoolExecutor(max_workers=4) as pool:
        for (path, _, wanted), found in zip(files, pool.map(_sha256, [f[0] for f in files]), strict=True):
            if found != wanted:
                return f"{path.name} has other bytes than were written"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _only_builder(root: Path, key: str) -> Iterator[None]:
    """Keep other processes from building the same store, or wait until one of them has."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: waiting for another process that builds the feature store", root / key)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(
    folder: Path, content: dict[str, Any], dataset: Dataset, config: AEVConfig, progress: Progress
) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    # What a killed process left; no other one is building now.
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        files = _write_tables(unfinished, dataset, config, progress)
        manifest = {"content": content, "files": files}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_tables(
    folder: Path, dataset: Dataset, config: AEVConfig, progress: Progress
) -> dict[str, dict[str, int | str]]:
    """Write the files of all elements side by side, a chunk of structures at a time."""
    features = MoleculeFeatures(config, torch.device("cpu"))
    counts = atom_counts(dataset, config.elements)
    rows = np.diff(dataset.offsets) @ counts
    with ExitStack() as stack:
        tables = [
            stack.enter_context(_Table(folder / f"{element}.npy", (int(n), aev_length(config))))
            for element, n in zip(config.elements, rows, strict=True)
        ]
        done = 0
        progress("computing features", done, dataset.structures)
        for molecule, composition in zip(dataset.molecules, counts.tolist(), strict=True):
            chunk = features.chunk(molecule)
            for begin in range(0, molecule.structures, chunk):
                aevs = features.compute(molecule, slice(begin, begin + chunk))
                for table, atoms in zip(tables, aevs.split_with_sizes(composition, dim=1), strict=True):
                    table.write(atoms.numpy().tobytes())
                done += len(aevs)
                progress("computing features", done, dataset.structures)
    return {table.path.name: {"bytes": table.bytes, "sha256": table.digest.hexdigest()} for table in tables}


class _Table:
    """A NumPy file of float32 that is written from its beginning to its end."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path = path
        self.bytes = 0
        self.digest = hashlib.sha256()
        self._file = path.open("wb")
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        self.write(header.getvalue())

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)
        self.bytes += len(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _map(path: Path) -> Tensor:
    # Copy-on-write, as torch has no tensors that cannot be written: the file stays as it is.
    return torch.from_numpy(np.load(path, mmap_mode="c"))
