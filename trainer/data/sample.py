"""The project's own data set: structures by normal-mode sampling, energies by density-functional theory.

The work is divided into small tasks (a molecule's geometry and vibrations; ten structures of it). Each
writes a file that appears by rename in a work folder beside the output. A killed run resumes from these.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from trainer.data.dft import initial_geometry, optimized_modes, provenance, single_point
from trainer.data.normal_modes import FloatArray, NormalModes, sample_structure
from trainer.errors import DataError, MissingExtraError, TrainerError
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.files import cannot_be_written, put_in_place, replacing, write_by_rename
from trainer.progress import Progress

HIGH_ENERGY_KCALMOL = 275.0
STRUCTURES_PER_TASK = 10

#: Closed-shell molecules of C, N and O (SMILES) by number of heavy atoms.
MOLECULES: dict[int, tuple[str, ...]] = {
    1: ("C", "N", "O"),
    2: ("CC", "C=C", "C#C", "CN", "C=N", "C#N", "CO", "C=O", "NN", "N=N", "NO", "N=O", "OO"),
    3: ("CCO", "CC=O", "CC#N", "NC=O", "OC=O", "C=C=O", "N=C=O", "CC#C", "O=C=O", "COC"),
}

#: Number of structures of each molecule, by number of heavy atoms, and the seed of the shipped sample.
SHIPPED_COUNTS: dict[int, int] = {1: 300, 2: 270, 3: 100}
SHIPPED_SEED = 20170217

#: Temperature ranges in K by number of heavy atoms. The upper ends are those of the ANI-1 paper.
TEMPERATURES: dict[int, tuple[float, float]] = {1: (300.0, 2000.0), 2: (300.0, 1500.0), 3: (300.0, 1000.0)}


@dataclass(frozen=True)
class SamplePlan:
    """The molecules, their numbers of structures, and the seed that decides each structure."""

    molecules: tuple[str, ...]
    structures: tuple[int, ...]
    heavy_atoms: tuple[int, ...]
    seed: int

    def tasks(self) -> Iterator[tuple[int, int, int]]:
        """Yield (molecule, first structure, end) of every task, cheap molecules first."""
        for molecule, count in enumerate(self.structures):
            for first in range(0, count, STRUCTURES_PER_TASK):
                yield molecule, first, min(first + STRUCTURES_PER_TASK, count)


@dataclass(frozen=True)
class SampleSummary:
    """The contents of a finished sample."""

    molecules: int
    structures: int
    high_energy: int
    unconverged: int


def sample_plan(counts: dict[int, int], seed: int, molecules: Iterable[str] | None = None) -> SamplePlan:
    """Plan ``counts[h]`` structures for every molecule of h heavy atoms (of ``molecules``, if given)."""
    listed = {smiles: heavy for heavy, group in MOLECULES.items() for smiles in group}
    wanted = list(listed) if molecules is None else list(molecules)
    if unknown := sorted(set(wanted) - set(listed)):
        raise DataError(f"no such molecule in the sample's list: {', '.join(unknown)}")
    if none := [heavy for heavy, count in counts.items() if heavy not in MOLECULES or count < 0]:
        raise DataError(f"no molecules of {none[0]} heavy atoms, or a number of structures below 0")
    if molecules is not None and (idle := [s for s in wanted if not counts.get(listed[s])]):
        raise DataError(f"no number of structures is given for molecules like {idle[0]}")
    chosen = [(s, counts[heavy], heavy) for s, heavy in listed.items() if s in wanted and counts.get(heavy)]
    if not chosen:
        raise DataError("the sample would hold no structure: ask for at least one per molecule")
    names, structures, heavies = zip(*chosen, strict=True)
    return SamplePlan(names, structures, heavies, seed)


def generate_sample(
    output: Path,
    plan: SamplePlan,
    workers: int,
    progress: Progress,
) -> SampleSummary:
    """Compute the sample and write it in the ANI-1 release layout.

    Parameters
    ----------
    output : the HDF5 file, which appears when everything has been computed
    plan : the molecules, counts and seed
    workers : number of processes, with one thread each
    progress : called with (stage, done, total) after every task

    Raises
    ------
    DataError
        if ``output`` exists, or the work folder beside it belongs to another plan.
    MissingExtraError
        if PySCF is not installed.
    OutputError
        if ``output`` or its work folder cannot be written.
    """
    if output.exists():
        raise DataError(f"{output} exists: choose another name, or delete it")
    try:
        level = provenance()
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"computing a sample needs {error.name}: install it with pip install 'anitune[dft]'"
        ) from error

    try:
        return _generate(output, plan, level, workers, progress)
    except OSError as error:
        raise cannot_be_written(output, error) from error


def _generate(
    output: Path, plan: SamplePlan, level: dict[str, str | int | float], workers: int, progress: Progress
) -> SampleSummary:
    work = output.with_name(output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    _claim_work_folder(work, plan, level)

    context = multiprocessing.get_context("spawn")
    parent_pipe, held = context.Pipe(duplex=False)
    with (
        parent_pipe,
        held,
        _one_thread_a_process(),
        ProcessPoolExecutor(workers, context, _exit_with_parent, (parent_pipe,)) as pool,
    ):
        try:
            geometries = {
                pool.submit(_prepare_molecule, work, i, smiles) for i, smiles in enumerate(plan.molecules)
            }
            _drain(geometries, "geometries", progress)
            tasks = {pool.submit(_compute_task, work, plan, *task) for task in plan.tasks()}
            _drain(tasks, "energies", progress)
        except BaseException as error:
            held.close()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise TrainerError(
                    "a process of the generator was killed (out of memory?): start it again to continue"
                ) from error
            raise
    summary = _assemble(output, work, plan, level)
    shutil.rmtree(work)
    return summary


@contextlib.contextmanager
def _one_thread_a_process() -> Iterator[None]:
    """Limit BLAS to one thread: spawned workers inherit the environment before they load it."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _exit_with_parent(parent_pipe: Connection) -> None:
    """Make a worker end with the generator, however that ends: the workers of a pool would wait forever.

    Nobody writes to the pipe. It reaches its end when the generator closes its side or dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the generator decides

    def watch() -> None:
        with contextlib.suppress(EOFError):
            parent_pipe.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _drain(futures: set[Future[None]], stage: str, progress: Progress) -> None:
    total, done = len(futures), 0
    progress(stage, 0, total)
    while futures:
        finished, futures = wait(futures, return_when=FIRST_COMPLETED)
        for future in finished:
            future.result()
        done += len(finished)
        progress(stage, done, total)


def _claim_work_folder(work: Path, plan: SamplePlan, level: dict[str, str | int | float]) -> None:
    """Claim a work folder for one plan and level of theory: mixing two would give a file of neither."""
    claim = json.dumps({"plan": asdict(plan), "level": level}, indent=1)
    stamp = work / "plan.json"
    if stamp.exists():
        if stamp.read_text() != claim:
            raise DataError(
                f"{work} holds an unfinished sample with other settings: finish it with those, or delete it"
            )
    else:
        write_by_rename(stamp, claim.encode())


def _save_arrays(path: Path, **arrays: object) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _prepare_molecule(work: Path, index: int, smiles: str) -> None:
    path = work / f"molecule-{index}.npz"
    if path.exists():
        return
    symbols, start = initial_geometry(smiles)
    try:
        modes = optimized_modes(symbols, start)
    except ValueError as error:
        raise DataError(f"{smiles}: {error}") from error
    minimum = single_point(symbols, modes.equilibrium)
    _save_arrays(
        path,
        symbols=np.array(symbols, dtype="S2"),
        equilibrium=modes.equilibrium,
        displacements=modes.displacements,
        force_constants=modes.force_constants,
        energy=minimum.energy,
        density=minimum.density,
    )


def _compute_task(work: Path, plan: SamplePlan, molecule: int, first: int, end: int) -> None:
    path = work / f"energies-{molecule}-{first}.npz"
    if path.exists():
        return
    prepared = _arrays(work / f"molecule-{molecule}.npz")
    symbols = tuple(s.decode() for s in prepared["symbols"])
    modes = NormalModes(prepared["equilibrium"], prepared["displacements"], prepared["force_constants"])
    temperatures = TEMPERATURES[plan.heavy_atoms[molecule]]
    coordinates, energies, kelvin = [], [], []
    for index in range(first, end):
        # A structure depends only on the plan's seed, the molecule and its index, not on workers or order.
        key = int.from_bytes(plan.molecules[molecule].encode(), "big")
        rng = np.random.default_rng([plan.seed, key, index])
        structure, temperature = sample_structure(modes, temperatures, rng)
        # The file stores float32 coordinates, so the energy is computed for exactly those.
        stored = structure.astype(np.float32)
        point = single_point(symbols, stored.astype(np.float64), prepared["density"])
        coordinates.append(stored)
        energies.append(point.energy if point.converged else np.nan)
        kelvin.append(temperature)
    _save_arrays(
        path, coordinates=np.array(coordinates), energies=np.array(energies), temperatures=np.array(kelvin)
    )


def _assemble(
    output: Path, work: Path, plan: SamplePlan, level: dict[str, str | int | float]
) -> SampleSummary:
    structures = high_energy = unconverged = 0
    numbers: dict[int, int] = {}
    # Built in memory, because HDF5 fails badly on a file that it cannot write, for example on a full disk.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for i, smiles in enumerate(plan.molecules):
            prepared = _arrays(work / f"molecule-{i}.npz")
            tasks = [_arrays(work / f"energies-{m}-{a}.npz") for m, a, _ in plan.tasks() if m == i]
            coordinates = np.concatenate([p["coordinates"] for p in tasks])
            energies = np.concatenate([p["energies"] for p in tasks])
            temperatures = np.concatenate([p["temperatures"] for p in tasks])
            converged = np.isfinite(energies)
            # A NaN compares false, so an unconverged structure is in neither group.
            high = (energies - float(prepared["energy"])) * HARTREE_TO_KCALMOL > HIGH_ENERGY_KCALMOL
            low = converged & ~high

            heavy = plan.heavy_atoms[i]
            number = numbers.get(heavy, 0)
            numbers[heavy] = number + 1
            group = file.create_group(f"gdb11_s{heavy:02d}/gdb11_s{heavy:02d}-{number}")
            group["species"] = np.array([s.decode() for s in prepared["symbols"]], dtype="S1")
            group["smiles"] = np.array(list(smiles), dtype="S1")
            _write_arrays(group, "", coordinates[low], energies[low], temperatures[low])
            _write_arrays(group, "HE", coordinates[high], energies[high], temperatures[high])
            group["equilibrium"] = prepared["equilibrium"]
            group["normal_modes"] = prepared["displacements"].astype(np.float32)
            group["force_constants"] = prepared["force_constants"]
            group.attrs["equilibrium_energy_hartree"] = float(prepared["energy"])
            group.attrs["temperature_range_K"] = TEMPERATURES[heavy]
            group.attrs["unconverged"] = int(np.sum(~converged))
            structures += int(low.sum())
            high_energy += int(high.sum())
            unconverged += int(np.sum(~converged))
        file.attrs.update(level)
        file.attrs["seed"] = plan.seed
        file.attrs["sampling"] = (
            "normal modes about optimized geometries, Smith, Isayev, Roitberg, Chem. Sci. 8, 3192 (2017)"
        )
        file.attrs["units"] = "coordinates Å, energies hartree, force constants hartree/Å^2, temperatures K"
        file.attrs["high_energy_above_kcalmol"] = HIGH_ENERGY_KCALMOL
        file.attrs["unconverged"] = unconverged
    # Moved from the work folder, so that a killed run leaves nothing beside the output.
    assembled = work / output.name
    write_by_rename(assembled, content.getvalue())
    put_in_place(assembled, output)
    return SampleSummary(len(plan.molecules), structures, high_energy, unconverged)


def _write_arrays(
    group: h5py.Group, suffix: str, coordinates: FloatArray, energies: FloatArray, temperatures: FloatArray
) -> None:
    for name, values in (
        ("coordinates", coordinates),
        ("energies", energies),
        ("temperatures", temperatures),
    ):
        group.create_dataset(name + suffix, data=values, compression="gzip", shuffle=True)


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return all arrays of a NumPy file."""
    with np.load(path) as file:
        return dict(file)
