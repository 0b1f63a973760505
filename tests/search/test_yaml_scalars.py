"""What plain words in a study file mean: those of YAML 1.2, where 1.1 makes other values of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from search.documents import read_document, read_value, resolve_path, write_document
from search.errors import StudyFileError
from search.propose.enqueued import setting_value
from search.study import StudyConfig, load_study, study_from_values
from trainer.config import Choices, Range
from trainer.errors import ConfigError

HEAD = "name: tiny\nlimits: {trials: 3}\n"

#: The files that people stumbled over.
CASES = Path(__file__).parents[2] / "../shared/cases/10-yaml"


def load(folder: Path, text: str) -> StudyConfig:
    file = folder / "study.yaml"
    file.write_text(text)
    return load_study(file)


def refused(folder: Path, text: str) -> str:
    with pytest.raises((ConfigError, StudyFileError)) as error:
        load(folder, text)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("24:00:00", "24:00:00"),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("on", "on"),
        ("No", "No"),
        ("true", True),
        ("FALSE", False),
        ("2026-11-29", "2026-11-29"),
        ("2026-11-29 10:00:00", "2026-11-29 10:00:00"),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("5.", 5.0),
        (".inf", float("inf")),
        ("~", None),
        ("", None),
        ("~/x", "~/x"),
        ("'010'", "010"),
        ("!!str 010", "010"),
        ("!!float 3", 3.0),
        ("<<", "<<"),
        ('"\\ud83d\\ude00"', "\N{GRINNING FACE}"),  # as JSON has it
    ],
)
def test_plain_values(text: str, value: object) -> None:
    found = read_value(text)
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("{No: 1, on: 2, 1: 3, 010: 4, ~: 5, null: 6}")
    assert list(read_document(tmp_path / "f").values) == ["No", "on", "1", "010", "~", "null"]


def test_mappings_are_merged_as_before(tmp_path: Path) -> None:
    text = "base: &a {x: 1, y: 2}\nother: &b {y: 3, z: 4}\nall:\n  <<: [*a, *b]\n  x: 9\n"
    (tmp_path / "f").write_text(text)
    document = read_document(tmp_path / "f")
    assert document.values == yaml.safe_load(text)
    assert list(document.values["all"]) == list(yaml.safe_load(text)["all"])
    assert document.lines["all", "x"] == 5
    assert document.lines["all", "z"] == 2


def test_what_is_written_is_read_again_in_either_version(tmp_path: Path) -> None:
    words = ["1e5", "yes", "1:30", "010", "0o7", "0x1F", "2026-11-29", "~", "", "<<", "1_000", ".inf", "a: b"]
    values = {"words": words, "numbers": [1e-5, 1e22, 5e-324, 3.0, 3], "all": True, "none": None, "e": "é\n"}
    assert read_value(write_document(values)) == values
    assert yaml.safe_load(write_document(values)) == values


FAULTS = {
    "hours": (
        "limits: {hours: 1:30}\nname: a\n",
        "limits.hours (line 1): input should be a number (got '1:30')",
    ),
    "yes for hours": (
        "limits: {hours: yes}\nname: a\n",
        "limits.hours (line 1): input should be a number (got 'yes')",
    ),
    "true for hours": (
        "limits: {hours: true}\nname: a\n",
        "limits.hours (line 1): input should be a number (got true)",
    ),
    "on for a rate": (
        HEAD + "space: {learning_rate: on}\n",
        "space.learning_rate (line 3): input should be a number",
    ),
    "true for a rate": (
        HEAD + "space: {learning_rate: true}\n",
        "space.learning_rate (line 3): input should be a number",
    ),
    "false for epochs": (
        HEAD + "training: {epochs: false}\n",
        "training.epochs (line 3): input should be a number (got false)",
    ),
    "true in a list": (
        HEAD + "training: {hidden: [8, true]}\n",
        "training.hidden.1 (line 3): input should be a number",
    ),
    "true in choices": (
        HEAD + "space: {batch_size: {choices: [true, 64]}}\n",
        "space.batch_size.choices.0 (line 3): input should be a number (got true)",
    ),
    "a number for a switch": (
        HEAD + "training: {activate_output: 1}\n",
        "training.activate_output (line 3): input should be true or false (got 1)",
    ),
    "a number for a name": (
        "name: 010\nlimits: {trials: 3}\n",
        "name (line 1): input should be text: put it in quotes (got 10)",
    ),
    "a switch for a name": (
        "name: true\nlimits: {trials: 3}\n",
        "name (line 1): input should be text: put it in quotes (got true)",
    ),
    "a list in the space": (
        HEAD + "space: {batch_size: [32, 64, 128]}\n",
        "space.batch_size (line 3): a list alone is not a search range: write {choices: [32, 64, 128]}",
    ),
    "a pair in the space": (
        HEAD + "space: {dropout: [0.0, 0.3]}\n",
        "write {choices: [0.0, 0.3]}, or {low: 0.0, high: 0.3} for all values between",
    ),
    "words in the space": (HEAD + "space: {activation: [silu, celu]}\n", "write {choices: [silu, celu]}"),
    "one file": (
        HEAD + "data: {files: a.h5}\n",
        "data.files (line 3): input should be a list: write ['a.h5']",
    ),
    "one width": (
        HEAD + "training: {hidden: 64}\n",
        "training.hidden (line 3): input should be a list: write [64]",
    ),
    "a pruner in a word": (
        HEAD + "pruner: none\n",
        "pruner (line 3): a single word is not a section: write {kind: none}",
    ),
    "Python's nothing": (
        HEAD + "training: {patience: None}\n",
        "whole number, or null for none (got 'None')",
    ),
    "a percentage": (
        HEAD + "training: {dropout: 10%}\n",
        "training.dropout (line 3): input should be a number (got '10%')",
    ),
    "an indentation": (
        HEAD + "training:\n  epochs: 3\n   dropout: 0\n",
        "line 5: unexpected colon",
    ),
    "a tab": (HEAD + "training:\n\tepochs: 3\n", "line 4: a tab: indent with spaces"),
    "a quote without end": ('name: "tiny\nlimits: {trials: 3}\n', "that starts in line 1"),
    "a bracket without end": (HEAD + "training: {hidden: [8}\nseed: 3\n", "line 3: "),
    "no blank after a colon": ("name:tiny\nlimits:3\n", "with a space after the colon"),
    "two documents": (
        HEAD + "---\nname: b\n",
        "line 3: expected a single document in the stream, but found another",
    ),
    "an item at fault": ("name: r\nrows: [a]\n", "rows.0 (line 2): input should be a mapping (got 'a')"),
    "a key with an end of line": (HEAD + '"a\\nb": 3\n', r"a\nb (line 3): no such setting"),
    "many faults": (
        HEAD + "".join(f"k{n}: 1\n" for n in range(50)),
        "k9 (line 12): no such setting; and 40 more",
    ),
    "a long value": (
        HEAD + f"seed: {'x' * 5000}\n",
        "seed (line 3): input should be a whole number (got 'xxx",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_line_says_what_to_write(fault: str, tmp_path: Path) -> None:
    text, expected = FAULTS[fault]
    message = refused(tmp_path, text)
    assert expected in message
    assert len(message) < 1000


def test_one_fault_is_reported_once(tmp_path: Path) -> None:
    assert refused(tmp_path, "name: r\nrows: [a]\n").count("rows") == 1


def test_numbers_are_taken_as_before(tmp_path: Path) -> None:
    space = "{batch_size: 1_000, weight_decay: {low: 1e-8, high: 1e-3, log: true}}"
    text = f"{HEAD}training: {{epochs: 1e2, hidden: [010]}}\nspace: {space}\n"
    config = load(tmp_path, text)
    assert (config.training["epochs"], config.training["hidden"]) == (100, (10,))
    assert config.space is not None
    assert config.space["batch_size"] == 1000
    assert config.space["weight_decay"] == Range(1e-8, 1e-3, log=True)
    assert load(tmp_path, HEAD + "space: {batch_size: {choices: [32, 64]}}\n").space["batch_size"] == Choices(
        (32, 64)
    )  # type: ignore[index]
    assert load(tmp_path, HEAD + "training: {activate_output: yes}\n").training["activate_output"] is True
    assert load(tmp_path, "\ufeff" + HEAD).name == "tiny"
    assert load(tmp_path, "name: 2026-11-29\nlimits: {trials: 3}\n").name == "2026-11-29"


def test_paths_are_those_of_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", "/scratch/ann")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "rows.yaml").write_text("name: r\nrows: [{label: a}]\n")
    files = "[~/a.h5, $HOME/b.h5, '${SCRATCH}/c.h5', d.h5, /e.h5, $NOBODY/f.h5, sample]"
    config = load(tmp_path, HEAD + f"data: {{files: {files}}}\nreference: ~/rows.yaml\n")
    assert config.data.files == (
        f"{tmp_path}/home/a.h5",
        f"{tmp_path}/home/b.h5",
        "/scratch/ann/c.h5",
        f"{tmp_path}/d.h5",
        "/e.h5",
        f"{tmp_path}/$NOBODY/f.h5",
        "sample",
    )
    assert config.reference is not None
    # A record has the paths that were meant where it was made.
    record = study_from_values({"name": "tiny", "data": {"files": ["/a/$HOME/~/b.h5"]}}, "the record")
    assert record.data.files == ("/a/$HOME/~/b.h5",)
    assert resolve_path("~", tmp_path) == tmp_path / "home"
    # Nor is a name with a dollar another one, where this file exists.
    (tmp_path / "$SCRATCH").mkdir()
    assert resolve_path("$SCRATCH", tmp_path) == tmp_path / "$SCRATCH"
    assert resolve_path("x" * 5000, tmp_path) == tmp_path / ("x" * 5000)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("hidden", "20", [20]),
        ("hidden", "64, 32", [64, 32]),
        ("hidden", "[64, 32]", [64, 32]),
        ("dropout", "0.1", 0.1),
        ("activation", "silu", "silu"),
        ("nosuch", "1", 1),
    ],
)
def test_brackets_of_a_setting_may_be_left_out(name: str, text: str, value: object) -> None:
    assert setting_value(name, text) == value


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected cases are not here")
def test_the_files_that_people_stumbled_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    expected = {
        "bs_list": "space.batch_size (line 3): a list alone is not a search range: write {choices: [32, 64]}",
        "hours_1_30": "limits.hours (line 7): input should be a number (got '1:30')",
        "hours_yes": "limits.hours (line 7): input should be a number (got 'yes')",
        "lr_on": "space.learning_rate (line 3): input should be a number (got 'on')",
    }
    for name, line in expected.items():
        with pytest.raises(ConfigError) as error:
            load_study(CASES / f"{name}.yaml")
        assert line in str(error.value)
    assert load_study(CASES / "epochs_010.yaml").epochs == 10
    assert load_study(CASES / "name_date.yaml").name == "2026-11-29"
    assert load_study(CASES / "tilde.yaml").data.files == ("/home/ann/base.h5",)
