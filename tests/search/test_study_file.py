from __future__ import annotations

from pathlib import Path

import pytest

from search.study import load_study, study_from_values
from trainer.config import Choices, Range, TrainConfig, dump_config
from trainer.errors import ConfigError

MINIMAL = "name: tiny\nlimits: {trials: 3}\n"


def write(folder: Path, text: str, name: str = "study.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_file_that_says_little_searches_the_default_space(tmp_path: Path) -> None:
    config = load_study(write(tmp_path, MINIMAL))
    assert config.space is not None
    assert list(config.space) == [
        "layers",
        "width",
        "activation",
        "dropout",
        "learning_rate",
        "batch_size",
        "weight_decay",
    ]
    assert config.space["layers"] == Range(1, 4, step=1)
    assert config.space["learning_rate"] == Range(1e-4, 1e-2, log=True)
    assert config.sampler is not None
    assert config.sampler.kind == "tpe"
    assert config.pruner is not None
    assert config.pruner.kind == "asha"
    assert config.data.files == ("sample",)


def test_settings_of_the_training_are_not_searched(tmp_path: Path) -> None:
    text = (
        MINIMAL
        + "training: {hidden: [64, 32], dropout: 0.1}\n"
        + "space: {activation: {choices: [silu, celu]}, batch_size: 64}\n"
    )
    config = load_study(write(tmp_path, text))
    assert config.space is not None
    assert set(config.space) == {"activation", "learning_rate", "batch_size", "weight_decay"}
    assert config.space["activation"] == Choices(("silu", "celu"))
    assert config.space["batch_size"] == 64


def test_numbers_may_be_written_as_everywhere_else(tmp_path: Path) -> None:
    # YAML 1.1 takes 1e-3 for a word.
    text = (
        MINIMAL
        + "space: {learning_rate: {choices: [1e-3, 5E-4]}, weight_decay: {low: 1e-6, high: 1, log: true}}\n"
    )
    config = load_study(write(tmp_path, text))
    assert config.space is not None
    assert config.space["learning_rate"] == Choices((1e-3, 5e-4))
    assert config.space["weight_decay"] == Range(1e-6, 1.0, log=True)


def test_the_record_of_a_study_gives_the_study_again(tmp_path: Path) -> None:
    write(
        tmp_path,
        "name: rows\ntraining: {hidden: [8]}\nrows: [{label: a}, {label: b, start_from: a}]\n",
        "rows.yaml",
    )
    text = MINIMAL + "reference: rows.yaml\nstorage: postgresql://me@host/db\nspace: {dropout: 0}\n"
    config = load_study(write(tmp_path, text))
    record = dump_config(config)
    again = study_from_values(record, "the record")
    assert again.reference == config.reference
    assert dump_config(again) == record
    assert "storage" not in record  # where a study is kept is not what it is


def test_the_reference_runs_on_the_data_and_split_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write(tmp_path, "name: rows\ndata: {files: [other.h5]}\nrows: [{label: a}]\n", "more/rows.yaml")
    text = MINIMAL + "reference: more/rows.yaml\ndata: {files: [mine.h5]}\nsplit: {by: molecule, seed: 7}\n"
    config = load_study(write(tmp_path, text))
    assert config.reference is not None
    assert config.reference.name == "tiny-rows"
    assert config.reference.data == config.data
    assert config.reference.split.by == "molecule"
    assert config.data.files == (str(tmp_path / "mine.h5"),)


def test_epochs_of_a_trial(tmp_path: Path) -> None:
    assert load_study(write(tmp_path, MINIMAL)).epochs == TrainConfig().epochs
    assert load_study(write(tmp_path, MINIMAL + "training: {epochs: 7}\n")).epochs == 7


def test_a_reference_must_be_a_study_of_rows(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "other.yaml")
    with pytest.raises(ConfigError, match="tiny-tiny is not a study of rows"):
        load_study(write(tmp_path, MINIMAL + "reference: other.yaml\n"))
