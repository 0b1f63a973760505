from __future__ import annotations

from pathlib import Path

import pytest

from search.errors import StudyFileError
from search.study import load_study
from trainer.errors import ConfigError

HEAD = "name: tiny\nlimits: {trials: 3}\n"

FAULTS = {
    "unknown key": (HEAD + "smapler: {}\n", "smapler (line 3): no such setting"),
    "unknown key deep": (HEAD + "data:\n  flies: [a.h5]\n", "data.flies (line 4): no such setting"),
    "unknown training setting": (HEAD + "training: {lr: 1e-3}\n", "training.lr (line 3): no such setting"),
    "unknown parameter": (HEAD + "space:\n  depth: 3\n", "space.depth (line 4): no such setting"),
    "not searchable": (
        HEAD + "space: {epochs: {low: 1, high: 9}}\n",
        "space.epochs (line 3): no such setting",
    ),
    "value out of range": (
        HEAD + "training:\n  dropout: 1.5\n",
        "training.dropout (line 4): input should be less than 1",
    ),
    "bound out of range": (
        HEAD + "space:\n  dropout: {low: -0.1, high: 0.3}\n",
        "space.dropout.low (line 4): input should be greater than or equal to 0",
    ),
    "choice out of range": (
        HEAD + "space: {activation: {choices: [silu, sillu]}}\n",
        "space.activation.choices.1 (line 3): input should be 'relu'",
    ),
    "range of words": (
        HEAD + "space: {activation: {low: 1, high: 2}}\n",
        "space.activation (line 3): give choices",
    ),
    "low above high": (
        HEAD + "space: {width: {low: 64, high: 32}}\n",
        "space.width (line 3): low must not be above high (64 > 32)",
    ),
    "step that misses high": (
        HEAD + "space: {width: {low: 32, high: 100, step: 32}}\n",
        "space.width (line 3): high must be low plus a multiple of step",
    ),
    "log from zero": (
        HEAD + "space: {weight_decay: {low: 0, high: 1, log: true}}\n",
        "log needs low above 0",
    ),
    "too many layers": (HEAD + "space: {layers: {low: 1, high: 5}}\n", "space.layers.high (line 3)"),
    "fixed and searched": (
        HEAD + "training: {dropout: 0}\nspace: {dropout: {low: 0, high: 0.2}}\n",
        "space.dropout and training.dropout exclude each other",
    ),
    "no limit": ("name: tiny\n", "limits: set trials, hours or epochs"),
    "name with a path": (
        "name: ../tiny\nlimits: {trials: 3}\n",
        "name (line 1): string should match pattern",
    ),
    "no name": ("limits: {trials: 3}\n", "name: is missing"),
    "unknown sampler": (
        HEAD + "sampler: {kind: cmaes}\n",
        "sampler.kind (line 3): input should be 'tpe', 'gp'",
    ),
    "gp with a pruner": (
        HEAD + "sampler: {kind: gp}\npruner: {kind: hyperband}\n",
        "sampler gp learns nothing from pruned trials",
    ),
    "grid of a range": (
        HEAD + "sampler: {kind: grid}\n",
        "sampler grid needs choices, or a range with a step, for:",
    ),
    "first rung after the end": (
        HEAD + "training: {epochs: 10}\npruner: {min_epochs: 10}\n",
        "pruner.min_epochs must be below training.epochs = 10",
    ),
    "rows and a space": ("name: r\nrows: [{label: a}]\nspace: {}\n", "space and rows exclude each other"),
    "rows and a sampler": (
        "name: r\nrows: [{label: a}]\nsampler: {}\n",
        "sampler and rows exclude each other",
    ),
    "no rows": ("name: r\nrows: []\n", "rows (line 2): a list of 1 or more is needed"),
    "rows alike": ("name: r\nrows: [{label: a}, {label: a}]\n", "two have the label a"),
    "start from a later row": (
        "name: r\nrows: [{label: a, start_from: b}, {label: b}]\n",
        "rows: a starts from b, which is not a row above it",
    ),
    "start from other layers": (
        "name: r\nrows: [{label: a}, {label: b, start_from: a, training: {hidden: [8]}}]\n",
        "rows: b starts from a, which has other hidden widths",
    ),
    "bad row": (
        "name: r\nrows:\n  - label: a\n    training: {epochs: 0}\n",
        "rows.0.training.epochs (line 4)",
    ),
    "password in the URL": (
        HEAD + "storage: postgresql://me:secret@host/db\n",
        "storage (line 3): do not put a password in a study file",
    ),
    "password in the query": (
        HEAD + "tracking: postgresql://host/db?password=secret\n",
        "do not put a password",
    ),
    "learning from one name": (
        HEAD + "learn_from: water\n",
        "learn_from (line 3): input should be a list: write ['water']",
    ),
    "learning from itself": (
        HEAD + "learn_from: [tiny]\n",
        "learn_from: tiny is this study itself; name earlier ones",
    ),
    "learning twice": (HEAD + "learn_from: [a, a]\n", "learn_from: a study is named twice"),
    "a grid that learns": (
        HEAD + "learn_from: [a]\nsampler: {kind: grid}\n",
        "learn_from: the trials of sampler grid are given by the space",
    ),
    "rows that learn": (
        "name: r\nrows: [{label: a}]\nlearn_from: [b]\n",
        "learn_from and rows exclude each other",
    ),
    "learning for several objectives": (
        HEAD + "objectives: [val_mae, parameters]\nlearn_from: [a]\n",
        "learn_from: trials are compared by val_mae alone",
    ),
    "a limit of the error for several objectives": (
        "name: tiny\nlimits: {trials: 3, until_no_gain: true}\nobjectives: [val_mae, parameters]\n",
        "limits.until_no_gain: trials are compared by val_mae alone",
    ),
    "finalists for several objectives": (
        HEAD + "objectives: [val_mae, parameters]\nfinalists: {}\n",
        "finalists: trials are compared by val_mae alone",
    ),
    "finalists with one seed": (
        HEAD + "finalists: {seeds: 1}\n",
        "finalists.seeds (line 3): input should be",
    ),
    "finalists with a fixed seed": (
        HEAD + "finalists: {}\ntraining: {seed: 1}\n",
        "finalists and training.seed exclude each other",
    ),
    "finalists of a grid": (
        HEAD + "finalists: {}\nsampler: {kind: grid}\n",
        "finalists: each trial of sampler grid is a point of the space",
    ),
    "no end of rows": (
        "name: r\nrows: [{label: a}]\nlimits: {until_no_gain: true}\n",
        "limits.until_no_gain and rows exclude each other",
    ),
    "missing reference": (HEAD + "reference: nosuch.yaml\n", "nosuch.yaml: cannot be read: No such file"),
    "key twice": (HEAD + "seed: 1\nseed: 2\n", "line 4: seed is already set in line 3"),
    "broken YAML": (HEAD + "space: {layers: [1, 2\n", "study.yaml, line 4: "),
    "tab": (HEAD + "\tseed: 1\n", "study.yaml, line 3: "),
    "python object": (
        HEAD + "seed: !!python/object/apply:os.system [ls]\n",
        "study.yaml, line 3: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not supported",
    ),
    "key of several words": (HEAD + "? [a, b]\n: 3\n", "study.yaml, line 3: a key must be a single word"),
    "alias of itself": (
        HEAD + "space: &a {width: *a}\n",
        "line 3: an alias (*) is inside its own anchor",
    ),
    "unknown objective": (
        HEAD + "objectives: [val_mae, forces]\n",
        "objectives.1 (line 3): input should be 'val_mae'",
    ),
    "objective twice": (
        HEAD + "objectives: [val_mae, parameters, parameters]\n",
        "objectives: parameters is given twice",
    ),
    "error is not the first objective": (
        HEAD + "objectives: [parameters, val_mae]\n",
        "objectives: val_mae must be the first",
    ),
    "no objective": (HEAD + "objectives: []\n", "objectives (line 3): a list of 1 or more is needed"),
    "one word for objectives": (HEAD + "objectives: val_mae\n", "objectives (line 3): "),
    "several objectives with a pruner": (
        HEAD + "objectives: [val_mae, parameters]\npruner: {kind: asha}\n",
        "pruner asha compares trials by val_mae alone: with several objectives set pruner: {kind: none}",
    ),
    "unknown constraint": (
        HEAD + "constraints: {val_mae: {at_most: 1}}\n",
        "constraints.val_mae (line 3): no such setting",
    ),
    "constraint without its limit": (
        HEAD + "constraints: {parameters: {below: 1}}\n",
        "constraints.parameters.below (line 3): no such setting",
    ),
    "constraint that is no number": (
        HEAD + "constraints:\n  parameters: {at_most: few}\n",
        "constraints.parameters.at_most (line 4): input should be a whole number",
    ),
    "no validation set": (
        HEAD + "split: {fractions: [0.9, 0, 0.1]}\n",
        "split.fractions: trials are judged on the validation set",
    ),
    "a list": ("- name\n", "contains no settings"),
    "empty": ("", "contains no settings"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_line_says_what_is_wrong_and_where(fault: str, tmp_path: Path) -> None:
    text, expected = FAULTS[fault]
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises((ConfigError, StudyFileError)) as caught:
        load_study(file)
    message = str(caught.value)
    assert expected in message
    assert message.startswith(str(tmp_path))
    assert "\n" not in message
    assert "secret" not in message


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"nosuch\.yaml: cannot be read: No such file"):
        load_study(tmp_path / "nosuch.yaml")


def test_binary_file(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(StudyFileError, match="is not a text file"):
        load_study(file)


def test_a_fault_of_the_reference_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text("name: r\nrows:\n  - {label: a, mae: 3}\n")
    file = tmp_path / "study.yaml"
    file.write_text(HEAD + "reference: rows.yaml\n")
    with pytest.raises(ConfigError, match=r"rows\.yaml: rows\.0\.mae \(line 3\): no such setting"):
        load_study(file)
