from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.normal_modes import (
    BOHR_IN_ANGSTROM,
    BOLTZMANN_HARTREE_PER_KELVIN,
    NormalModes,
    normal_modes,
    sample_structure,
)
from trainer.data.readers import read_dataset
from trainer.data.sample import SHIPPED_COUNTS, SHIPPED_SEED, generate_sample, sample_plan
from trainer.data.shipped import sample_file
from trainer.errors import DataError, MissingExtraError, OutputError, TrainerError
from trainer.evaluation.units import HARTREE_TO_KCALMOL
from trainer.progress import no_progress

FloatArray = npt.NDArray[np.float64]

WATER = np.array([[0.0, 0.0, 0.117], [0.0, 0.757, -0.469], [0.0, -0.757, -0.469]])
HYDROGEN_CYANIDE = np.array([[0.0, 0.0, -1.57], [0.0, 0.0, -0.5], [0.0, 0.0, 0.65]])
MASSES = {3: np.array([15.995, 1.008, 1.008])}


def springs(geometry: FloatArray, seed: int = 0) -> FloatArray:
    """Hessian, hartree/bohr^2, of springs between all atoms, each at rest: rigid motions cost nothing.

    Across the axis of a linear molecule the springs are slack: it gets a stiffness against bending.
    """
    rng = np.random.default_rng(seed)
    atoms = len(geometry)
    hessian = np.zeros((3 * atoms, 3 * atoms))
    for i in range(atoms):
        for j in range(i):
            direction = np.zeros((atoms, 3))
            direction[i] = (geometry[i] - geometry[j]) / np.linalg.norm(geometry[i] - geometry[j])
            direction[j] = -direction[i]
            hessian += rng.uniform(0.2, 0.6) * np.outer(direction, direction)
    if np.allclose(geometry[:, :2], 0.0):
        lengths = np.diff(geometry[:, 2])
        for axis in (0, 1):
            bend = np.zeros((atoms, 3))
            bend[:, axis] = [1 / lengths[0], -1 / lengths[0] - 1 / lengths[1], 1 / lengths[1]]
            hessian += 0.05 * np.outer(bend, bend)
    return hessian


def harmonic_energy(geometry: FloatArray, hessian: FloatArray, structure: FloatArray) -> float:
    moved = (structure - geometry).ravel() / BOHR_IN_ANGSTROM
    return float(0.5 * moved @ hessian @ moved)


@pytest.fixture(params=["bent", "linear"])
def vibrating(request: pytest.FixtureRequest) -> tuple[FloatArray, FloatArray, NormalModes]:
    geometry = WATER if request.param == "bent" else HYDROGEN_CYANIDE
    hessian = springs(geometry)
    modes = normal_modes(geometry, MASSES[3], hessian)
    assert len(modes.force_constants) == (3 if request.param == "bent" else 4)
    return geometry, hessian, modes


Vibrating = tuple[FloatArray, FloatArray, NormalModes]


def test_modes_carry_the_energy_of_the_hessian(vibrating: Vibrating) -> None:
    """Displaced along all modes at once, the energy is the sum of K R^2 / 2: they do not couple."""
    geometry, hessian, modes = vibrating
    lengths = np.random.default_rng(1).normal(size=len(modes.force_constants)) * 0.1
    structure = geometry + np.einsum("m,mac->ac", lengths, modes.displacements)
    expected = 0.5 * np.sum(modes.force_constants * lengths**2)
    assert harmonic_energy(geometry, hessian, structure) == pytest.approx(expected, rel=1e-9)


def test_modes_do_not_move_the_molecule_as_a_whole(vibrating: Vibrating) -> None:
    geometry, _, modes = vibrating
    masses = MASSES[3]
    centred = geometry - np.average(geometry, axis=0, weights=masses)
    for mode in modes.displacements:
        assert np.linalg.norm(mode) == pytest.approx(1.0)
        np.testing.assert_allclose(masses @ mode, 0.0, atol=1e-9)
        np.testing.assert_allclose(masses @ np.cross(centred, mode), 0.0, atol=1e-6)


def test_a_saddle_point_is_no_minimum() -> None:
    with pytest.raises(ValueError, match="not a minimum"):
        normal_modes(WATER, MASSES[3], -springs(WATER))


@given(st.integers(0, 2**32 - 1))
def test_a_structure_has_at_most_the_thermal_energy(seed: int) -> None:
    hessian = springs(WATER)
    modes = normal_modes(WATER, MASSES[3], hessian)
    structure, temperature = sample_structure(modes, (300.0, 2000.0), np.random.default_rng(seed))
    assert 300.0 <= temperature <= 2000.0
    limit = 1.5 * len(WATER) * BOLTZMANN_HARTREE_PER_KELVIN * temperature
    assert 0.0 < harmonic_energy(WATER, hessian, structure) <= limit * (1 + 1e-9)


def test_modes_are_displaced_to_both_sides() -> None:
    modes = normal_modes(WATER, MASSES[3], springs(WATER))
    rng = np.random.default_rng(0)
    moved = np.array([sample_structure(modes, (300.0, 2000.0), rng)[0] - WATER for _ in range(200)])
    along = np.linalg.lstsq(modes.displacements.reshape(3, 9).T, moved.reshape(200, 9).T, rcond=None)[0]
    assert np.all((along > 0).sum(axis=1) > 60)
    assert np.all((along < 0).sum(axis=1) > 60)


# The plan.


def test_the_plan_of_the_shipped_sample() -> None:
    plan = sample_plan(SHIPPED_COUNTS, SHIPPED_SEED)
    by_heavy = [plan.heavy_atoms.count(heavy) for heavy in (1, 2, 3)]
    assert by_heavy[:2] == [3, 13]
    assert by_heavy[2] >= 8
    assert sum(plan.structures) >= 5000


def test_the_micro_batches_hold_every_structure_once() -> None:
    plan = sample_plan({1: 23, 2: 10}, 0)
    found = [(molecule, i) for molecule, first, end in plan.tasks() for i in range(first, end)]
    assert sorted(found) == [(m, i) for m, count in enumerate(plan.structures) for i in range(count)]


@pytest.mark.parametrize(
    ("counts", "molecules", "what"),
    [
        ({1: 5}, ["O", "CCCCCC"], "no such molecule in the sample's list: CCCCCC"),
        ({1: 5}, ["O", "CCO"], "molecules like CCO"),
        ({4: 5}, None, "no molecules of 4 heavy atoms"),
        ({1: -5}, None, "number of structures below 0"),
        ({1: 0}, None, "would hold no structure"),
    ],
)
def test_a_plan_that_cannot_be(counts: dict[int, int], molecules: list[str] | None, what: str) -> None:
    with pytest.raises(DataError, match=what):
        sample_plan(counts, 0, molecules)


# The generator.


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    output.write_text("precious")
    with pytest.raises(DataError, match="exists: choose another name"):
        generate_sample(output, sample_plan({1: 1}, 0), 1, no_progress)
    assert output.read_text() == "precious"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def not_installed(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("trainer.data.dft.version", not_installed)
    with pytest.raises(MissingExtraError, match=r"needs pyscf: install it with pip install 'anitune\[dft\]'"):
        generate_sample(tmp_path / "out.h5", sample_plan({1: 1}, 0), 1, no_progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dft
def test_a_folder_that_cannot_be_written() -> None:
    output = Path("/proc/anitune/out.h5")  # not even root can write there
    with pytest.raises(OutputError, match=r"/proc/anitune/out\.h5: cannot be written"):
        generate_sample(output, sample_plan({1: 1}, 0), 1, no_progress)


@pytest.mark.dft
def test_an_unfinished_sample_of_other_settings(tmp_path: Path) -> None:
    work = tmp_path / "out.h5.work"
    work.mkdir()
    (work / "plan.json").write_text("{}")
    with pytest.raises(DataError, match="holds an unfinished sample with other settings"):
        generate_sample(tmp_path / "out.h5", sample_plan({1: 1}, 0), 1, no_progress)


@pytest.mark.dft
def test_a_worker_that_was_killed(tmp_path: Path) -> None:
    def kill_workers(stage: str, done: int, total: int) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    with pytest.raises(TrainerError, match="start it again to continue"):
        generate_sample(tmp_path / "out.h5", sample_plan({1: 1}, 0), 1, kill_workers)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.dft
def test_a_full_disk_at_the_end_leaves_nothing_beside_the_work_folder(tmp_path: Path) -> None:
    """Its pieces are there already; a limit on the size of files stands for the disk."""
    work, output = tmp_path / "out.h5.work", tmp_path / "out.h5"
    work.mkdir()
    np.savez(
        work / "molecule-0.npz",
        symbols=np.array(["O", "H", "H"], dtype="S2"),
        equilibrium=WATER,
        energy=-76.0,
        displacements=np.zeros((3, 3, 3)),
        force_constants=np.ones(3),
    )
    np.savez(
        work / "energies-0-0.npz",
        coordinates=np.zeros((1, 3, 3), np.float32),
        energies=np.full(1, -76.0),
        temperatures=np.full(1, 300.0),
    )
    plan = sample_plan({1: 1}, 0, ["O"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"out\.h5: cannot be written: .*; free space") as caught:
            generate_sample(output, plan, 1, no_progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5.work"]
    assert generate_sample(output, plan, 1, no_progress).structures == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


def content(path: Path) -> dict[str, object]:
    """All that is in an HDF5 file: datasets bit for bit, and attributes."""
    found: dict[str, object] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found[name] = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
        if isinstance(item, h5py.Dataset):
            found[f"{name} values"] = (item.dtype.str, item.shape, item[()].tobytes())

    with h5py.File(path, "r") as file:
        visit("/", file)
        file.visititems(visit)
    return found


def wait_until(condition: object, seconds: float) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.dft
@pytest.mark.slow
def test_killed_and_gone_on_with_other_workers_the_file_is_the_same(tmp_path: Path) -> None:
    plan = sample_plan({1: 12}, 3, ["O"])
    whole = tmp_path / "whole.h5"
    summary = generate_sample(whole, plan, 1, no_progress)
    assert summary.structures + summary.high_energy + summary.unconverged == 12

    output, work = tmp_path / "killed.h5", tmp_path / "killed.h5.work"
    program = (
        "from pathlib import Path; from trainer.data.sample import generate_sample, sample_plan;"
        "from trainer.progress import no_progress;"
        f"generate_sample(Path({str(output)!r}), sample_plan({{1: 12}}, 3, ['O']), 2, no_progress)"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        # The second piece, of two structures, is done long before the first, of ten.
        second = work / "energies-0-10.npz"
        wait_until(second.exists, 120)
        workers = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    assert len(workers) >= 2
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 30)
    assert not output.exists()
    assert not (work / "energies-0-0.npz").exists()
    written = second.stat().st_mtime_ns

    def not_written_again(stage: str, done: int, total: int) -> None:
        assert second.stat().st_mtime_ns == written

    generate_sample(output, plan, 2, not_written_again)
    assert content(output) == content(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.h5", "whole.h5"]


# The shipped file.


def test_the_shipped_sample_is_what_it_must_be() -> None:
    data = read_dataset(["sample"])
    heavy = data.heavy_atoms().tolist()
    assert heavy.count(1) == 3
    assert heavy.count(2) == 13
    assert heavy.count(3) >= 8
    assert data.structures >= 5000
    assert data.elements == ("H", "C", "N", "O")
    assert len(set(data.identities())) == len(data.molecules) >= 24
    assert sample_file().stat().st_size < 5_000_000
    for molecule in data.molecules:
        assert molecule.structures >= (200 if molecule.heavy_atoms < 3 else 90)


def test_the_shipped_sample_tells_where_it_comes_from() -> None:
    with h5py.File(sample_file(), "r") as file:
        attributes = dict(file.attrs)
    assert attributes["functional"] == "omegaB97X"
    assert attributes["seed"] == SHIPPED_SEED
    assert {"basis", "grid", "pyscf", "scf_tolerance_hartree", "sampling", "units"} <= set(attributes)


def shipped_groups() -> list[str]:
    found: list[str] = []
    with h5py.File(sample_file(), "r") as file:
        file.visit(
            lambda name: found.append(name.removesuffix("/species")) if name.endswith("species") else None
        )
    return found


def test_high_energies_are_kept_apart() -> None:
    with h5py.File(sample_file(), "r") as file:
        for name in shipped_groups():
            group = file[name]
            above = {
                key: (group[key][()] - group.attrs["equilibrium_energy_hartree"]) * HARTREE_TO_KCALMOL
                for key in ("energies", "energiesHE")
            }
            # The equilibrium is the minimum to the tolerance of its optimization.
            assert np.all((above["energies"] > -1e-3) & (above["energies"] <= 275.0)), name
            assert np.all(above["energiesHE"] > 275.0), name


def test_structures_were_drawn_about_the_minimum_as_the_file_says() -> None:
    """Along its normal modes each structure's harmonic energy is at most 3/2 Na kB T."""
    with h5py.File(sample_file(), "r") as file:
        for name in shipped_groups():
            group = file[name]
            moved = group["coordinates"][()].astype(np.float64) - group["equilibrium"][()]
            count, atoms, _ = moved.shape
            modes = group["normal_modes"][()].reshape(-1, 3 * atoms).astype(np.float64)
            lengths, *_ = np.linalg.lstsq(modes.T, moved.reshape(count, -1).T, rcond=None)
            np.testing.assert_allclose(modes.T @ lengths, moved.reshape(count, -1).T, atol=1e-5)
            energies = 0.5 * group["force_constants"][()] @ lengths**2
            limits = 1.5 * atoms * BOLTZMANN_HARTREE_PER_KELVIN * group["temperatures"][()]
            assert np.all(energies <= limits * 1.001), name


@pytest.mark.dft
@pytest.mark.slow
@pytest.mark.parametrize(("heavy", "structure"), [(1, 0), (1, -1), (2, 5), (3, 7)])
def test_stored_energies_are_found_again(heavy: int, structure: int) -> None:
    """From PySCF's own starting guess, where the generator began at the density of the minimum."""
    from trainer.data.dft import single_point

    group = next(name for name in shipped_groups() if name.startswith(f"gdb11_s{heavy:02d}/"))
    with h5py.File(sample_file(), "r") as file:
        symbols = tuple(s.decode() for s in file[group]["species"][()])
        coordinates = file[group]["coordinates"][structure].astype(np.float64)
        energy = float(file[group]["energies"][structure])
    point = single_point(symbols, coordinates)
    assert point.converged
    assert point.energy == pytest.approx(energy, abs=1e-6)
