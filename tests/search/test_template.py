"""``anitune study init``: the study file that it writes suits the data, and runs."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from search.cli.main import app
from search.study import StudyConfig, load_study
from search.template import study_name, study_template
from storage.tracking import process
from trainer.config import DataConfig, TrainConfig
from trainer.data.dataset import Dataset, Molecule
from trainer.data.readers import read_data
from trainer.progress import no_progress

EXAMPLE = Path(__file__).parents[2] / "examples" / "small-molecules.extxyz"


def anitune(*words: str) -> str:
    answer = CliRunner().invoke(app, list(words))
    assert answer.exit_code == 0, answer.output
    return answer.output


def dataset(molecules: int, structures: int, elements: tuple[int, ...] = (6, 1)) -> Dataset:
    """Chains of different lengths, of so many structures each."""
    made = []
    for length in range(1, molecules + 1):
        numbers = np.array([*elements, *[6] * length], np.uint8)
        coordinates = np.zeros((structures, len(numbers), 3), np.float32)
        coordinates[:, :, 0] = 1.4 * np.arange(len(numbers))
        name = f"m{length}"
        made.append(Molecule(name, "", numbers, coordinates, np.zeros(structures), label=name))
    return Dataset(tuple(made))


def written(data: Dataset, folder: Path) -> tuple[StudyConfig, str]:
    text = study_template(data, DataConfig(("data.h5",)), "mine")
    (folder / "mine.yaml").write_text(text)
    return load_study(folder / "mine.yaml"), text


def test_what_it_writes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "molecules.extxyz").symlink_to(EXAMPLE)
    said = anitune("study", "init", "molecules.extxyz")
    assert "anitune study run molecules.yaml" in said
    text = Path("molecules.yaml").read_text()
    assert "480 structures of 8 molecules of H C N O, 4.5 atoms each." in text
    Path("molecules.yaml").write_text(
        text.replace("epochs: 300", "epochs: 2\n  device: cpu").replace("trials: 40", "trials: 1")
    )
    assert "Best architecture" in anitune("study", "run", "molecules.yaml", "--pack", "1")
    for relay in process._started:
        relay.kill()
        relay.wait(60)
    refused = CliRunner().invoke(app, ["study", "init", "molecules.extxyz"])
    assert refused.exit_code == 1
    assert "molecules.yaml: this file exists" in refused.output


def test_options_of_the_data_are_settings_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "frames.extxyz"
    file.write_text(EXAMPLE.read_text().replace("energy=", "REF_energy="))
    out = tmp_path / "mine.yaml"
    anitune("study", "init", str(file), "--energy", "REF_energy", "--name", "on", "--out", str(out))
    config = load_study(out)
    assert (config.name, config.data.energy, config.data.files) == ("on", "REF_energy", (str(file),))
    assert "files: [there/frames.extxyz]" in out.read_text()


def test_batches_networks_and_parts_grow_with_the_data(tmp_path: Path) -> None:
    few, text = written(dataset(4, 100), tmp_path)
    assert few.space is not None
    assert few.space["batch_size"].choices == (8, 16)
    assert few.split.fractions == (0.7, 0.15, 0.15)
    assert few.training["epochs"] == 300
    assert "60 validation structures: the error of a trial is known to about 10% of it." in text
    many, text = written(dataset(5, 60_000), tmp_path)
    assert many.space is not None
    assert many.space["batch_size"].choices == (512, 1024, 2048)
    assert (many.space["layers"].low, many.space["layers"].high) == (2, 3)
    assert many.split.fractions == (0.9, 0.05, 0.05)
    assert 30 <= many.training["epochs"] < TrainConfig.epochs
    assert "270,000 training structures: 264 steps per epoch with 1024." in text


def test_many_molecules_are_kept_whole(tmp_path: Path) -> None:
    config, text = written(dataset(60, 20), tmp_path)
    assert config.split.by == "molecule"
    assert "60 molecules, each in one subset" in text
    config, text = written(dataset(1, 200), tmp_path)
    assert config.split.by == "structure"
    assert "One molecule is too few to hold some out" in text
    assert "In all molecules" in text, "one composition: energies of elements cannot be told apart"


def test_other_elements_are_named_and_what_that_costs(tmp_path: Path) -> None:
    config, text = written(dataset(3, 100, (16, 9)), tmp_path)
    assert config.features.aev.elements == ("H", "C", "N", "O", "F", "S")
    assert "With F S they are 768 numbers per atom, instead of 384." in text


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("data/water box.extxyz.gz", "water-box"),
        ("/x/ani1x-release.h5", "ani1x-release"),
        ("/x/.h5", "my-study"),
        ("Ångström.db", "ngstr-m"),
    ],
)
def test_a_study_is_called_like_its_file(file: str, name: str) -> None:
    assert study_name(file) == name


def test_what_cannot_be_read_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with h5py.File("empty.h5", "w"):
        pass
    assert CliRunner().invoke(app, ["study", "init", "empty.h5"]).exit_code == 2
    assert not Path("empty.yaml").exists()


def test_the_shipped_sample(tmp_path: Path) -> None:
    data = DataConfig()
    (tmp_path / "sample.yaml").write_text(study_template(read_data(data, no_progress), data, "sample"))
    assert load_study(tmp_path / "sample.yaml").data.files == ("sample",)
