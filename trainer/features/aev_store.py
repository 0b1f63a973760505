"""AEVs on disk: computed once, and mapped into the memory of every process that trains on them.

A store is a folder ``<root>/<key>`` with a NumPy file for each element. It holds the AEVs of the element's
atoms, first those of all structures of the first composition, then those of the next, each with only the
columns that can differ from zero for that composition. A manifest holds sizes and digests. The key is a
digest of everything that decides the content. The folder appears by rename once it is complete.

Reading a large store takes seconds. So a successful check of the digests is recorded in the folder, with the
inode and change time of each file. The record is valid until a file changes or the system restarts, because
after a power cut a file may lack data that was written to it. Bit rot on the disk changes no time; only a
check of the digests finds it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import shutil
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from trainer.allocator import keep_freed_memory
from trainer.config import AEVConfig, dump_config
from trainer.data.dataset import Dataset
from trainer.errors import FeatureStoreError, OutputError
from trainer.features.aev import MoleculeFeatures, columns_of_set
from trainer.features.compositions import Compositions, find_compositions
from trainer.files import write_by_rename
from trainer.fingerprints import digest_of
from trainer.progress import Progress
from trainer.strict_json import read_json

logger = logging.getLogger("anitune")

#: To be increased when the same data and constants give different files.
FORMAT: Final = 3

MANIFEST: Final = "manifest.json"
CHECKED: Final = "checked.json"

#: Differs after each start of the system. Without this file, every opening checks the digests.
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

#: Bytes of AEVs that a thread computes at a time, and all memory that it takes to compute and pass them on.
CHUNK_BYTES: Final = 4 * 2**20
THREAD_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, eq=False)
class StoreTables:
    """The AEVs of all atoms of a data set.

    Attributes
    ----------
    compositions : the compositions of its molecules
    tables : by the index of each composition in ``compositions.each`` and each of its elements, (N, c, F_e)
        float32: the AEVs of the element's c atoms in the structures of the composition's molecules, in the
        order of the structures, and within a structure in the file's order; only the ``columns`` of the
        composition
    """

    compositions: Compositions
    tables: dict[tuple[int, int], Tensor]


def store_bytes(dataset: Dataset, config: AEVConfig) -> int:
    """Return the size of the tables of a data set."""
    compositions = find_compositions(dataset, config)
    lengths = np.array([sum(some.row_lengths) for some in compositions.each])
    return 4 * int(lengths[compositions.of_molecule] @ np.diff(dataset.offsets))


def open_tables(
    dataset: Dataset,
    config: AEVConfig,
    root: Path,
    progress: Progress,
    *,
    memory: int = 2**29,
    check: bool = False,
) -> StoreTables:
    """Map the AEVs of a data set; build or rebuild the store first if it is missing or damaged.

    Parameters
    ----------
    memory : bytes that building may take; it limits the number of threads, but at least one runs
    check : read all files and compare their digests, even if an earlier check is recorded

    Returns
    -------
    Tables that share the memory of the mapped files.

    Raises
    ------
    FeatureStoreError
        if the store cannot be built or read; no partial store is left.
    """
    content = {"format": FORMAT, "dataset": dataset.fingerprint, "aev": dump_config(config)}
    key = digest_of(content)
    folder = root / key
    compositions = find_compositions(dataset, config)
    try:
        if fault := _fault(folder, content, check):
            with _only_builder(root, key):
                # Another process may have built it while this one waited.
                if fault := _fault(folder, content, check):
                    if folder.exists():
                        logger.warning(
                            "%s: the feature store is damaged (%s): it is built again", folder, fault
                        )
                        shutil.rmtree(folder)
                    _build(folder, content, dataset, config, compositions, progress, memory)
        return StoreTables(compositions, _map(folder, dataset, config, compositions))
    except OSError as error:
        raise FeatureStoreError(
            f"{root}: the feature store cannot be built or read: {error.strerror or error}; "
            f"it takes {store_bytes(dataset, config) / 2**30:.3g} GiB: free space, or choose another folder"
        ) from error


def _names(dataset: Dataset, config: AEVConfig) -> dict[int, str]:
    """Return the file name of each element."""
    return {e: f"{symbol}.npy" for e, symbol in enumerate(config.elements) if symbol in dataset.elements}


def _shapes(dataset: Dataset, compositions: Compositions) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Return the shape of each table, by composition and element, in the order of the files."""
    structures = np.zeros(len(compositions.each), dtype=np.int64)
    np.add.at(structures, compositions.of_molecule, np.diff(dataset.offsets))
    return {
        (c, e): (int(structures[c]), count, len(some))
        for c, composition in enumerate(compositions.each)
        for e, count, some in zip(composition.elements, composition.counts, composition.columns, strict=True)
    }


def _fault(folder: Path, content: dict[str, Any], check: bool) -> str | None:
    """Describe what is wrong with the store; None if every byte is as it was written."""
    try:
        manifest = read_json(folder / MANIFEST)
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
    # Taken before the files are read, so that a file which changes meanwhile does not count as checked.
    state = _state([path for path, _, _ in files])
    if not check and _is_checked(folder, state):
        return None
    with ThreadPoolExecutor(max_workers=4) as pool:
        for (path, _, wanted), found in zip(files, pool.map(_sha256, [f[0] for f in files]), strict=True):
            if found != wanted:
                return f"{path.name} has other content than was written"
    _remember_checked(folder, state)
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(paths: list[Path]) -> dict[str, Any]:
    """Return a state that differs once any of the files was changed, or may have been."""
    stats = {path.name: path.stat() for path in paths}
    # The change time, unlike the modification time, cannot be set.
    files = {name: [stat.st_ino, stat.st_ctime_ns] for name, stat in stats.items()}
    return {"boot": BOOT_ID.read_text().strip() if BOOT_ID.exists() else None, "files": files}


def _is_checked(folder: Path, state: dict[str, Any]) -> bool:
    if state["boot"] is None:
        return False
    try:
        return bool(read_json(folder / CHECKED) == state)
    except (OSError, ValueError):
        return False


def _remember_checked(folder: Path, state: dict[str, Any]) -> None:
    # If it cannot be recorded, as in a read-only shared store, every opening checks the digests.
    with suppress(OutputError):
        write_by_rename(folder / CHECKED, json.dumps(state).encode())


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
    folder: Path,
    content: dict[str, Any],
    dataset: Dataset,
    config: AEVConfig,
    compositions: Compositions,
    progress: Progress,
    memory: int,
) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    # Left by a killed process; no other process is building now.
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        files = _write_tables(unfinished, dataset, config, compositions, progress, memory)
        manifest = {"content": content, "files": files}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        _remember_checked(unfinished, _state([unfinished / name for name in files]))
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_tables(
    folder: Path,
    dataset: Dataset,
    config: AEVConfig,
    compositions: Compositions,
    progress: Progress,
    memory: int,
) -> dict[str, dict[str, int | str]]:
    """Write all files side by side, one chunk of structures at a time."""
    lengths = dict.fromkeys(_names(dataset, config), 0)
    for (_, e), shape in _shapes(dataset, compositions).items():
        lengths[e] += math.prod(shape)
    with ExitStack() as stack:
        tables = {
            e: stack.enter_context(_Table(folder / name, lengths[e]))
            for e, name in _names(dataset, config).items()
        }
        done = 0
        progress("computing features", done, dataset.structures)
        chunks = stack.enter_context(closing(_computed(dataset, config, compositions, memory)))
        for chunk in chunks:
            for e, aevs in chunk.aevs.items():
                tables[e].write(aevs.data)
            done += chunk.structures
            progress("computing features", done, dataset.structures)
    return {
        table.path.name: {"bytes": table.bytes, "sha256": table.digest.hexdigest()}
        for table in tables.values()
    }


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some structures of a molecule: for each of its elements, (n, c, F_e) float32."""

    structures: int
    aevs: dict[int, npt.NDArray[np.float32]]


def _computed(
    dataset: Dataset, config: AEVConfig, compositions: Compositions, memory: int
) -> Generator[_Chunk]:
    """Yield all structures, by composition; some chunks are computed ahead."""
    features = MoleculeFeatures(config, torch.device("cpu"))

    def compute(m: int, begin: int, end: int) -> _Chunk:
        composition = compositions.each[compositions.of_molecule[m]]
        some = features.of_columns(dataset.molecules[m], slice(begin, end), composition.columns)
        return _Chunk(
            len(some[0]),
            {e: aevs.numpy() for e, aevs in zip(composition.elements, some, strict=True)},
        )

    keep_freed_memory()
    threads = max(1, min(torch.get_num_threads(), memory // THREAD_BYTES))
    # One thread per chunk scales better than dividing each of many small operations.
    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
        ahead: deque[Future[_Chunk]] = deque()
        for m in np.argsort(compositions.of_molecule, kind="stable").tolist():
            molecule = dataset.molecules[m]
            length = len(columns_of_set(config, compositions.each[compositions.of_molecule[m]].elements))
            size = max(1, CHUNK_BYTES // (molecule.atoms * length * 4))
            for begin in range(0, molecule.structures, size):
                if len(ahead) == 2 * threads:
                    yield ahead.popleft().result()
                ahead.append(pool.submit(compute, m, begin, begin + size))
        while ahead:
            yield ahead.popleft().result()


class _Table:
    """A NumPy file of float32 that is written from its beginning to its end."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.bytes = 0
        self.digest = hashlib.sha256()
        self._file = path.open("wb")
        header = io.BytesIO()
        description = {"descr": "<f4", "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(header, description)
        self.write(header.getbuffer())

    def write(self, content: memoryview) -> None:
        self._file.write(content)
        self.digest.update(content)
        self.bytes += content.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _map(
    folder: Path, dataset: Dataset, config: AEVConfig, compositions: Compositions
) -> dict[tuple[int, int], Tensor]:
    # Copy-on-write, as torch has no read-only tensors: the files stay unchanged.
    files = {
        e: torch.from_numpy(np.load(folder / name, mmap_mode="c"))
        for e, name in _names(dataset, config).items()
    }
    tables, begins = {}, dict.fromkeys(files, 0)
    for (c, e), shape in _shapes(dataset, compositions).items():
        tables[c, e] = files[e].narrow(0, begins[e], math.prod(shape)).view(shape)
        begins[e] += math.prod(shape)
    return tables
