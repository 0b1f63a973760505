"""Files that somebody has made on purpose, of each kind that is read: one line, in no time, and no memory."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from sqlalchemy import select, update
from typer.testing import CliRunner

import trainer.networks.files
from dashboards import local_servers
from dashboards.errors import ServerEndedError
from search.cli.main import app
from search.documents import MOST_BYTES, MOST_VALUES, read_document, read_value
from search.errors import StudyFileError
from search.launch.config import load_launch
from search.study import load_study
from search.work.card_faults import card_faults
from storage.database import open_database
from storage.errors import DatabaseError, ServerError, SettingsError
from storage.records.tables import studies
from storage.settings import embedded, read_addresses
from storage.studies import Budget, create_study
from trainer.config import AEVConfig, TrainConfig, dump_config
from trainer.errors import DataError, ModelFileError
from trainer.features.stores import unneeded_stores
from trainer.inference.ensemble import RECORD, Ensemble
from trainer.inference.files import read_structures
from trainer.networks.files import METADATA, load_model, save_model
from trainer.networks.model import ElementNetworks, weight_shapes
from trainer.strict_json import MOST_BYTES as MOST_JSON
from trainer.strict_json import parse_json, read_json

DEEP = "[" * 100_000

#: What a reader of JSON refuses, and what Python's own makes of it: an error of another kind, or a value.
JSON = {
    "deep": DEEP,
    "deep, and closed": DEEP + "]" * 100_000,
    "deep mappings": '{"a":' * 100_000,
    "deeper than can be shown": "[" * 900 + "]" * 900,
    "not a number": "[NaN]",
    "infinite": '{"a": Infinity}',
    "infinite in digits": "[1e999]",
    "an endless number": "[" + "9" * 10_000 + "]",
    "a key twice": '{"a": 1, "b": {"c": 1, "c": 2}}',
    "half a character": '["\\ud800"]',
    "not UTF-8": b"\xff\xfe",
    "empty": "",
}


@pytest.fixture(autouse=True)
def _in_no_time() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 30  # with what it takes to make the tables of a database


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_hostile_json_is_a_value_error_of_one_line(text: str | bytes) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (its kind is the promise)
        parse_json(text)
    one_line(error)


def test_a_large_file_is_no_record(tmp_path: Path) -> None:
    with (tmp_path / "r.json").open("wb") as file:
        file.truncate(MOST_JSON + 1)
    with pytest.raises(ValueError, match="it has more than 16 MiB"):
        read_json(tmp_path / "r.json")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "model.safetensors"
    config = TrainConfig(hidden=(8,), precision="float32")
    save_model(path, ElementNetworks(config, AEVConfig().elements, 384), AEVConfig(), {"H": -0.5})
    return path


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    """Change the settings or the weights of a model file."""
    with safetensors.safe_open(path, "pt") as file:
        record = json.loads(file.metadata()[METADATA])
    tensors = safetensors.torch.load_file(path)
    change(record, tensors)
    safetensors.torch.save_file(tensors, path, {METADATA: json.dumps(record)})


@pytest.mark.parametrize("text", [text for text in JSON.values() if isinstance(text, str)])
def test_a_model_with_hostile_json_is_refused(model_file: Path, text: str) -> None:
    safetensors.torch.save_file(safetensors.torch.load_file(model_file), model_file, {METADATA: text})
    with pytest.raises(ModelFileError, match="not a model file of anitune, or damaged") as error:
        load_model(model_file)
    one_line(error)


#: Settings of a few bytes that ask for terabytes.
LARGE: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], object]] = {
    "width": lambda record, _: record["training"].update(hidden=[10**9]),
    "widths": lambda record, _: record["training"].update(hidden=[4096] * 8),
    "sections": lambda record, _: record["aev"].update(angle_sections=10**9),
    "shells": lambda record, _: record["aev"].update(radial_shifts=[1.0] * 100_000),
    "elements": lambda record, _: record["aev"].update(elements=["H", "C", "N", "O", "S", "F", "Cl"]),
    "another type": lambda _, tensors: tensors.update({n: t.to(torch.int8) for n, t in tensors.items()}),
    "exotic type": lambda _, tensors: tensors.update(
        {n: t.to(torch.float8_e5m2) for n, t in tensors.items()}
    ),
    "no precision": lambda record, _: record["training"].update(precision="auto"),
    "not a number": lambda _, tensors: tensors["networks.H.0.bias"].fill_(float("nan")),
    "energies": lambda record, _: record["self_energies"].update(H="inf"),
}


@pytest.mark.parametrize("change", LARGE.values(), ids=LARGE)
def test_a_model_whose_weights_do_not_fit_takes_no_memory(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    forge(model_file, change)

    def built(*_: object) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(trainer.networks.files, "ElementNetworks", built)
    for open_model in (load_model, Ensemble.open):
        with pytest.raises(ModelFileError, match=r"model\.safetensors: ") as error:
            open_model(model_file)
        one_line(error)


def test_a_header_that_promises_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    shapes = weight_shapes(TrainConfig(hidden=(4096,) * 8, precision="float32"), AEVConfig().elements, 384)
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(content)) + content + b"1234")
    with pytest.raises(ModelFileError, match="not a model file of anitune, or damaged") as error:
        load_model(tmp_path / "m")
    one_line(error)


@pytest.mark.parametrize(
    "record",
    [
        *JSON.values(),
        '{"format": 1, "members": true, "domain": false}',
        '{"format": 1, "members": 1e400, "domain": false}',
        '{"format": 1, "members": -1, "domain": 0}',
        '{"format": 1, "members": 1, "domain": [[]]}',
        '{"format": ' + "[" * 150 + "]" * 150 + "}",
        '{"format": 1, "members": 1, "domain": false, "\\u001b[31m": 1}',
        "3",
    ],
)
def test_an_ensemble_with_a_hostile_record_is_refused(tmp_path: Path, record: str | bytes) -> None:
    (tmp_path / RECORD).write_bytes(record if isinstance(record, bytes) else record.encode())
    with pytest.raises(ModelFileError, match=r"ensemble\.json: ") as error:
        Ensemble.open(tmp_path)
    one_line(error)


def test_an_ensemble_of_a_thousand_million_members_ends_at_the_first_that_is_not_there(
    model_file: Path,
) -> None:
    folder = model_file.parent
    model_file.rename(folder / "member-00.safetensors")
    (folder / RECORD).write_text('{"format": 1, "members": 1000000000, "domain": false}')
    with pytest.raises(ModelFileError, match=r"member-01\.safetensors: cannot be read") as error:
        Ensemble.open(folder)
    one_line(error)


@pytest.fixture
def exported(tmp_path: Path, model_file: Path) -> Path:
    """A model in the file that others load with what stands beside it."""
    pytest.importorskip("torchani")
    from trainer.inference.torchani_model import describe, weights_of

    ensemble = Ensemble.open(model_file)
    path = tmp_path / "exported.safetensors"
    safetensors.torch.save_file(weights_of(ensemble), path, {"torchani": json.dumps(describe(ensemble))})
    return path


@pytest.mark.parametrize(
    "change",
    [
        None,
        lambda record: record["members"][0].update(hidden=[10**9]),
        lambda record: record["members"][0].update(hidden=[4096] * 8),
        lambda record: record["members"][0].update(hidden=[10**9, -1]),
        lambda record: record["aev"].update(angle_sections=10**9),
        lambda record: record.update(members=record["members"] * 1000),
        lambda record: record.pop("aev"),
    ],
)
def test_an_exported_model_is_checked_by_its_loader(exported: Path, change: Any) -> None:
    from trainer.inference.torchani_loader import load_model as load_exported

    load_exported(exported)
    with safetensors.safe_open(exported, "pt") as file:
        record = json.loads(file.metadata()["torchani"])
    if change is not None:
        change(record)
    text = DEEP if change is None else json.dumps(record)
    safetensors.torch.save_file(safetensors.torch.load_file(exported), exported, {"torchani": text})
    with pytest.raises(ValueError, match=r"exported\.safetensors: ") as error:
        load_exported(exported)
    one_line(error)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

YAML = {
    "aliases that multiply": (LAUGHS, "its aliases"),
    "merge keys that multiply": (MERGES, "its aliases"),
    "aliases one after another": (
        "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3000)),
        "its aliases",
    ),
    "a mapping in itself": ("a: &a {<<: *a}\n", "an alias .* inside its own anchor"),
    "deep": (f"a: {DEEP}", "more than 50 levels of nested lists or mappings"),
    "deep mappings": ("{a: " * 5000, "more than 50 levels of nested lists or mappings"),
    "deep blocks": (
        "a:\n" + "".join(" " * n + "-\n" for n in range(1, 300)),
        "more than 50 levels of nested lists",
    ),
    "many values": (f"a: [{'1,' * (MOST_VALUES + 1)}]\n", "more than 20,000 values"),
    "an endless number": (f"a: {'9' * 10_000}\n", "a number of 10000 digits"),
    "no integer": ("a: !!int abc\n", "'abc' is not a valid int"),
    "no number": ("a: !!float [1]\n", "the tag .* is not supported in settings"),
    "a date that is none": ("a: !!timestamp 2026-13-45\n", "the tag .*timestamp' is not supported"),
    "bytes that are none": ("a: !!binary a\n", "the tag .*binary' is not supported"),
    "Python": ("a: !!python/name:os.system\n", "the tag .*os.system' is not supported"),
    "half a character": ('a: "\\ud800"\n', "half a character"),
    "the end of a text in C": ('a: "b\\0c"\n', r"the character \\0"),
    "control characters": ("a: 1\nb: \x1b[31m\n", r"line 2: the character '\\x1b' is not allowed"),
}


@pytest.mark.parametrize(("text", "fault"), YAML.values(), ids=YAML)
def test_hostile_yaml_is_one_line(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    for read in (load_study, load_launch, read_document):
        with pytest.raises(StudyFileError, match=rf"study\.yaml, line \d+: .*{fault}|{fault}") as error:
            read(file)
        one_line(error)
    with pytest.raises(StudyFileError):
        read_value(text)
    result = CliRunner().invoke(app, ["train", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_no_settings_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    with file.open("wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(StudyFileError, match=f"has more than {MOST_BYTES >> 20} MiB"):
        load_study(file)


@pytest.mark.parametrize(
    "properties",
    [
        "species:S:1:pos:R:999999999",
        "species:S:1:pos:R:3:x:R:-999999999:y:R:1000000000",
        "species:S:1:pos:R:" + "9" * 5000,
        "Properties",
    ],
)
def test_columns_of_an_xyz_file_take_no_memory(tmp_path: Path, properties: str) -> None:
    file = tmp_path / "some.xyz"
    file.write_text(f"1\nProperties={properties}\nH 0 0 0\n")
    with pytest.raises(DataError, match=r"some\.xyz, line 2: ") as error:
        read_structures(file)
    one_line(error)


@pytest.mark.parametrize("count", ["999999999", "9" * 5000])
def test_atoms_that_are_not_there_take_no_memory(tmp_path: Path, count: str) -> None:
    file = tmp_path / "some.xyz"
    file.write_text(f"{count}\n\nH 0 0 0\n")
    with pytest.raises(DataError, match=r"some\.xyz, line \d: ") as error:
        read_structures(file)
    one_line(error)


HOSTILE_RECORDS = [DEEP, "[]", "null", '{"pid": "x"}', '{"storage_url": 3, "tracking_uri": [], "host": {}}']


@pytest.mark.parametrize("text", HOSTILE_RECORDS)
def test_hostile_files_of_the_servers_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "addresses.json").write_text(text)
    with pytest.raises(SettingsError, match=r"addresses\.json: damaged") as error:
        read_addresses(tmp_path)
    one_line(error)
    (tmp_path / "mlflow.json").write_text(text)
    with pytest.raises((ServerError, ServerEndedError), match=r"mlflow\.json: damaged") as other:
        local_servers._recorded(tmp_path)
    one_line(other)


@pytest.mark.parametrize("text", [*HOSTILE_RECORDS, '{"host": "h", "card": "c", "time": "never"}'])
def test_hostile_notes_of_failures_are_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.1").write_text(text)
    assert card_faults(tmp_path) == []


@pytest.mark.parametrize("text", HOSTILE_RECORDS)
def test_a_feature_store_with_a_hostile_manifest_is_none(tmp_path: Path, text: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "manifest.json").write_text(text)
    os.utime(store, (0, 0))
    assert [found.path for found in unneeded_stores(tmp_path, [])] == [store]


def test_a_record_of_the_database_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    from search.study import study_from_values

    config = dump_config(study_from_values({"name": "tiny"}, "test"))
    with open_database(embedded(tmp_path)) as database:
        create_study(database, "tiny", config, Budget(trials=1))
        with database.writing() as connection:
            connection.exec_driver_sql("UPDATE anitune_studies SET config = ?", (DEEP,))
        with (
            pytest.raises(DatabaseError, match="a record is damaged: it is not JSON, or nested") as error,
            database.reading() as connection,
        ):
            connection.execute(select(studies.c.config)).all()
        one_line(error)
        with database.writing() as connection:
            connection.execute(update(studies).values(config=config))
