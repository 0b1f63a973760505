from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from search.cli.main import app
from storage.settings import Settings

TRAINING = {"hidden": [8], "epochs": 3, "batch_size": 16, "device": "cpu"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_home: Callable[[Path], Settings]) -> Path:
    make_home(tmp_path / "home")
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def config(tmp_path: Path, data_file: Path) -> Path:
    path = tmp_path / "water.yaml"
    path.write_text(yaml.safe_dump({"data": {"files": [str(data_file)]}, "training": TRAINING}))
    return path


def train(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def complaint(result: Result) -> str:
    """The one line that a person reads after bad input."""
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert result.stdout == ""
    return line.removeprefix("anitune: ")


def test_a_training_prints_its_result_and_where_it_is(config: Path, home: Path, tmp_path: Path) -> None:
    result = train(config)
    assert result.exit_code == 0, result.stderr
    folder = home / "trainings" / "water"
    assert (folder / "plots" / "loss.png").exists()
    mae, epoch, place = result.stdout.splitlines()
    assert mae.startswith("validation MAE")
    assert mae.endswith("kcal/mol")
    assert epoch.endswith(" of 3")
    assert place.endswith(str(folder))


def test_the_folder_can_be_chosen_and_its_settings_trained_again(config: Path, tmp_path: Path) -> None:
    first = train(config, "--out", tmp_path / "first")
    again = train(tmp_path / "first" / "config.json", "--out", tmp_path / "again")
    assert first.exit_code == again.exit_code == 0
    assert first.stdout.splitlines()[:2] == again.stdout.splitlines()[:2]
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("first", "again")]
    assert models[0] == models[1]


def test_a_warm_start_is_taken_up(config: Path, tmp_path: Path) -> None:
    train(config, "--out", tmp_path / "first")
    warm = train(config, "--out", tmp_path / "warm", "--warm-start", tmp_path / "first" / "model.safetensors")
    assert warm.exit_code == 0, warm.stderr
    histories = [
        list(csv.DictReader((tmp_path / run / "history.csv").read_text().splitlines()))
        for run in ("first", "warm")
    ]
    first_epoch_losses = [float(history[0]["train/loss"]) for history in histories]
    assert first_epoch_losses[1] < first_epoch_losses[0] / 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {epoch: 3}", "training.epoch (line 1): no such setting"),
        ("training:\n  dropout: 1.5", "training.dropout (line 2): input should be less than 1 (got 1.5)"),
        ("training:\n  learning_rate: fast", "training.learning_rate (line 2)"),
        ("model: {}", "model (line 1): no such setting"),
        ("split: {fractions: [0.5, 0.2, 0.2]}", "split.fractions must be three shares that sum to 1"),
        ("training: [", "line 1"),
        ("", "contains no settings"),
    ],
)
def test_a_faulty_file_is_named_with_key_and_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "faulty.yaml"
    path.write_text(text)
    line = complaint(train(path))
    assert line.startswith(str(path))
    assert expected in line


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert complaint(train(tmp_path / "nowhere.yaml")).startswith(f"{tmp_path / 'nowhere.yaml'}: ")


def test_a_data_file_is_looked_for_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {files: [mine.h5]}")
    assert f"{tmp_path / 'mine.h5'}: no such file" in complaint(train(tmp_path / "run.yaml"))


def test_energies_that_are_no_numbers_are_refused(tmp_path: Path, home: Path) -> None:
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        group = file.create_group("water")
        group["species"] = np.array([b"O", b"H", b"H"])
        group["coordinates"] = np.zeros((4, 3, 3), dtype=np.float32)
        group["energies"] = np.array([-76.4, np.nan, -76.3, -76.2])
    (tmp_path / "run.yaml").write_text("data: {files: [bad.h5]}")
    line = complaint(train(tmp_path / "run.yaml"))
    assert "bad.h5" in line
    assert "water" in line
    assert not (home / "trainings").exists()


def test_a_folder_of_another_training_is_left_as_it_is(config: Path, tmp_path: Path) -> None:
    train(config, "--out", tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(settings | {"training": TRAINING | {"seed": 7}}))
    result = train(config, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "belongs to another training (other training.seed)" in result.stderr
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = train(config, "--out", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"anitune: {tmp_path / 'file' / 'out' / 'checkpoint.safetensors'}: ")
    assert len(result.stderr.splitlines()) == 1
