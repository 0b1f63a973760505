from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from search.cli.data import describe as anitune_describe
from search.cli.main import app
from search.cli.progress import progress_bar
from trainer.data.fetch import ANI1_ARCHIVE
from trainer.data.readers import read_dataset
from trainer.errors import DataError, DownloadError, OutputError


def anitune_data(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["--debug", "data", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Water (4 structures and 2 of high energy) and hydrogen peroxide (3 structures)."""
    path = tmp_path / "data.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, symbols, low, suffix in (
            ("s01/0", "OHH", [-76.0, -76.25, -76.5, -76.125], ""),
            ("s01/0", "OHH", [-75.0, -75.5], "HE"),
            ("s02/0", "OOHH", [-151.0, -151.5, -151.25], ""),
        ):
            group = file.require_group(name)
            if not suffix:
                group["species"] = np.array(list(symbols), dtype="S1")
            group[f"coordinates{suffix}"] = rng.normal(size=(len(low), len(symbols), 3)).astype(np.float32)
            group[f"energies{suffix}"] = np.array(low)
    return path


def test_info_as_json(file: Path) -> None:
    summary = json.loads(anitune_data("describe", file, "--json").stdout)
    assert summary["molecules"] == 2
    assert summary["structures"] == 7
    assert summary["atoms"] == 4 * 3 + 3 * 4
    assert summary["elements"] == ["H", "O"]
    assert summary["energy_min_hartree"] == -151.5
    assert summary["energy_max_hartree"] == -76.0
    assert summary["fingerprint"] == read_dataset([file]).fingerprint
    one, two = summary["by_heavy_atoms"]
    assert (one["heavy_atoms"], one["molecules"], one["structures"]) == (1, 1, 4)
    assert one["widest_kcalmol"] == pytest.approx(0.5 * 627.5094738898777)
    assert (two["heavy_atoms"], two["atoms_min"], two["atoms_max"]) == (2, 4, 4)


def test_its_old_name_still_works(file: Path) -> None:
    assert anitune_data("info", file).stdout == anitune_data("describe", file).stdout
    assert " info " not in anitune_data("--help").stdout


def test_info_with_high_energies(file: Path) -> None:
    summary = json.loads(anitune_data("describe", file, "--json", "--high-energy").stdout)
    assert summary["structures"] == 9
    assert summary["energy_max_hartree"] == -75.0


def test_info_for_people(file: Path) -> None:
    lines = anitune_data("describe", file).stdout.splitlines()
    assert lines[0] == "2 molecules, 7 structures, 24 atoms (3.4 a structure), elements H O"
    rows = [" ".join(line.split()) for line in lines[1:] if line.strip()[:1].isdigit()]
    assert rows == ["1 1 4 3 to 3 -76.5000 -76.0000 313.8", "2 1 3 4 to 4 -151.5000 -151.0000 313.8"]
    assert all(len(line) <= 80 for line in lines)


def test_info_tells_which_elements_cannot_be_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["m/species"] = np.array(list("OHH"), "S1")
        file["m/coordinates"] = random.normal(size=(4, 3, 3))
        file["m/energies"] = -76.0 + random.normal(scale=0.1, size=4)
    assert "In all molecules H = 2 O: the energies of these elements cannot be separated" in " ".join(
        anitune_data("describe", path).stdout.split()
    )
    assert json.loads(anitune_data("describe", path, "--json").stdout)["balances"] == ["H = 2 O"]


@pytest.mark.parametrize("command", ["describe", "features"])
def test_structures_that_are_there_twice(
    command: str,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    with h5py.File(file, "a") as opened:
        opened["again"] = h5py.ExternalLink("copy.h5", "/s02")
    shutil.copy(file, tmp_path / "copy.h5")
    with pytest.raises(DataError, match="3 of 10 structures are duplicates"):
        anitune_data(command, file, "--duplicates", "refuse")
    with caplog.at_level(logging.WARNING, logger="anitune"):
        for choice, structures in (("drop", 7), ("keep", 10)):
            result = anitune_data(command, file, "--duplicates", choice)
            assert f"{structures} structures" in result.stdout
        assert (
            anitune_data(command, file).stdout == anitune_data(command, file, "--duplicates", "drop").stdout
        )
    assert anitune_data(command, file, "--duplicates", "perhaps").exit_code == 2


def test_links_that_lead_outside_are_followed_when_asked_for(file: Path, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    path = tmp_path / "below" / "a.h5"
    with h5py.File(path, "w") as opened:
        opened["all"] = h5py.ExternalLink(f"../{file.name}", "/")
    with pytest.raises(DataError, match="--links-outside"):
        anitune_data("describe", path)
    assert anitune_data("describe", path, "--links-outside").stdout.startswith("2 molecules, 7 structures")


def test_a_bar_shows_while_many_groups_are_read(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    anitune_describe(files=[str(file)])
    assert "reading data.h5" in capsys.readouterr().err


def test_info_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        anitune_data("describe", tmp_path / "none.h5")


@pytest.mark.parametrize("structures", ["2:100", "two=100", "2"])
def test_sample_with_counts_that_cannot_be_read(structures: str, tmp_path: Path) -> None:
    result = anitune_data("sample", tmp_path / "out.h5", "--structures", structures)
    assert result.exit_code == 2
    assert "HEAVY=COUNT" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_sample_with_a_molecule_that_is_not_in_the_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such molecule"):
        anitune_data("sample", tmp_path / "out.h5", "--molecule", "CCCCCC")


@pytest.mark.dft
@pytest.mark.slow
def test_sample_makes_a_file_that_can_be_read(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    options = ["--molecule", "O", "--structures", "1=2", "--seed", "5", "--workers", "1"]
    result = anitune_data("sample", output, *options)
    assert result.exit_code == 0
    assert f"{output}: 1 molecules, 2 structures" in result.stdout
    (water,) = read_dataset([output]).molecules
    assert water.formula == "H2O"
    assert water.smiles == "O"
    assert np.all((water.energies > -76.39) & (water.energies < -76.3))


def test_fetch_of_what_is_already_there(tmp_path: Path) -> None:
    (tmp_path / ANI1_ARCHIVE).write_bytes(b"archive")
    result = anitune_data("fetch", "ani1", "--to", tmp_path)
    assert result.exit_code == 0
    assert "complete and checked" in result.stdout
    assert (tmp_path / f"{ANI1_ARCHIVE}.sha256").exists()


def test_fetch_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(DownloadError, match="is there a network") as caught:
        anitune_data("fetch", "ani1", "--to", tmp_path)
    assert "\n" not in str(caught.value)


def test_fetch_of_an_unknown_archive(tmp_path: Path) -> None:
    result = anitune_data("fetch", "ani7", "--to", tmp_path)
    assert result.exit_code == 2
    assert "ani1" in result.stderr


def test_features_are_stored_in_the_home_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    result = anitune_data("features", file)
    assert result.exit_code == 0
    assert "the features of 7 structures are stored" in result.stdout
    stored = {p: p.stat().st_mtime_ns for p in (tmp_path / "home" / "features").rglob("*.npy")}
    assert stored
    anitune_data("features", file)
    assert {p: p.stat().st_mtime_ns for p in stored} == stored


def test_features_that_would_be_too_large(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    result = anitune_data("features", file, "--limit-gib", "0")
    assert "stored" not in result.stdout
    assert "batch by batch" in result.stderr


@pytest.mark.parametrize(("terminal", "shown"), [("1", True), ("0", False)])
@pytest.mark.parametrize(("unit", "amount"), [("steps", "7/9"), ("bytes", "7/9 bytes")])
def test_a_bar_is_for_terminals_only(
    terminal: str,
    shown: bool,
    unit: str,
    amount: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar(unit) as progress:
        progress("energies", 7, 9)
    written = capsys.readouterr()
    assert ("energies" in written.err and amount in written.err) == shown
    assert written.out == ""


def test_convert_writes_what_is_read_again_as_the_same(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    result = anitune_data("convert", file, "--out", out)
    assert result.stdout.strip() == f"{out}: 2 molecules, 7 structures"
    assert read_dataset([out]).fingerprint == read_dataset([file]).fingerprint
    with pytest.raises(OutputError, match="this file exists"):
        anitune_data("convert", file, "--out", out)
    with pytest.raises(OutputError, match="this file exists"):
        anitune_data("convert", file, "--out", file)


def test_convert_of_frames_keeps_their_order(tmp_path: Path) -> None:
    """Molecules stay in the order of the file, which is not that of their names: so a split is the same."""
    frames = tmp_path / "a.xyz"
    text = ""
    for number in range(4):
        z = 0.1 + 0.01 * number
        text += f'4\nkcal={-96400 - number} of=z/{number % 2} pbc="F F F"\nO 0 0.7 0\nO 0 -0.7 0\n'
        text += f"H 0.83 0.9 {z}\nH -0.83 -0.9 {z}\n"
        text += f"3\nkcal={-47900 - number} of=a\nO 0 0 {z}\nH 0 0.76 -0.47\nH 0 -0.76 -0.47\n"
    frames.write_text(text)
    options = ["--energy", "kcal", "--unit", "kcal/mol", "--molecule", "of"]
    read = read_dataset([frames], energy="kcal", unit="kcal/mol", molecule="of")
    assert [m.name for m in read.molecules] == ["z/0", "a", "z/1"]
    anitune_data("convert", frames, "--out", tmp_path / "a.h5", *options)
    again = read_dataset([tmp_path / "a.h5"])
    assert [m.name for m in again.molecules] == ["0 z 0", "1 a", "2 z 1"]
    for one, other in zip(again.molecules, read.molecules, strict=True):
        np.testing.assert_array_equal(one.coordinates, other.coordinates)
        np.testing.assert_array_equal(one.energies, other.energies)
    info = anitune_data("describe", frames, *options, "--leave-out", "charged", "--leave-out", "periodic")
    assert info.stdout.startswith("3 molecules, 8 structures")
    assert anitune_data("describe", frames, "--energy", "kcal", "--unit", "cal").exit_code == 2
