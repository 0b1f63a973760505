"""``anitune promote`` and ``anitune reproduce`` on a small study: killed, begun again, and used elsewhere."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import update

from search.cli.promote import _result_lines, _sign_in_lines
from search.errors import SearchError
from search.promote import ensemble as promotion_ensemble
from search.promote import plan as promotion_plan
from search.promote import promotion as promotion_steps
from search.promote import study_trainings
from search.promote import trainings as promotion_trainings
from search.promote.ensemble import structures_of_test_set
from search.promote.model import description
from search.promote.plan import Options, PlannedTraining, find_candidates, make_plan, members
from search.promote.promotion import Promoter
from search.promote.trainings import Outcome, train_all, training_folder
from search.study import study_from_values
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.database import Database, open_database
from storage.errors import AlreadyEvaluatedError, TrackingUnavailableError
from storage.evaluations import evaluations_on_test_set
from storage.promotions import Promotion, promotions
from storage.records.tables import metrics
from storage.records.tables import promotion_trainings as training_rows
from storage.settings import Settings, embedded
from storage.studies import Budget, Study, create_study, open_study
from storage.tokens import make_token
from storage.tracking.registry import RegisteredModel
from storage.trainings import failures, trainings
from storage.trials.views import metric_history, trial_rows
from tests.search.killed_commands import Continued, Place
from trainer.config import dump_config
from trainer.errors import DataError, DeviceError, TrainingCutOff, TrainingFailed
from trainer.fingerprints import digest_of
from trainer.inference.ensemble import Ensemble
from trainer.inference.files import read_structures
from trainer.inference.structures import make_structure
from trainer.progress import no_progress
from trainer.run import TrainingResult
from trainer.task import prepare_task

OPTIONS = ("--top", "2", "--folds", "3", "--seeds", "1", "--ensemble", "2")
ON_FOLDS = 2 * (3 + 3)

SEARCH = {
    "name": "tiny",
    "training": {"epochs": 3, "device": "cpu", "batch_size": 32, "checkpoint_seconds": 0},
    "space": {"layers": 1, "width": {"choices": [8, 16]}, "activation": {"choices": ["celu", "relu"]}},
    "sampler": {"kind": "random"},
    "pruner": {"kind": "none"},
    "seed": 3,
}
ROWS = {
    "name": "rows",
    "training": {"epochs": 2, "device": "cpu", "hidden": [8]},
    "rows": [{"label": "first"}, {"label": "second", "start_from": "first"}],
}

#: Loads the model by its alias, predicts from tables and from a file, and tells what the registry has of it.
FRESH = """
import json, sys
import mlflow
import pandas as pd

mlflow.set_tracking_uri(sys.argv[1])
uri = "models:/tiny@champion"
model = mlflow.pyfunc.load_model(uri)
rows = json.loads(sys.argv[2])
tables = (rows, pd.DataFrame(rows), pd.DataFrame({"file": [sys.argv[3]]}))
client = mlflow.MlflowClient()
found = client.get_model_version_by_alias("tiny", "champion")
info = mlflow.models.get_model_info(uri)
print(json.dumps({
    "predictions": [model.predict(table).to_dict("list") for table in tables],
    "version": str(found.version),
    "tags": found.tags,
    "description": found.description,
    "signature": info.signature.to_dict(),
    "metrics": client.get_run(found.run_id).data.metrics,
    "flavor": info.flavors["python_function"],
}))
"""


def train(database: Database, values: dict[str, Any], data: Path, features: Path, trials: int) -> None:
    config = study_from_values({**values, "data": {"files": [str(data)]}}, "test")
    study = create_study(database, config.name, dump_config(config), Budget(trials=trials))
    task = prepare_task(config.task, features, no_progress)
    study.set_facts(task.fingerprints)
    Worker(database, study, config, task, SilentWatcher(), StopRequest(), start_relay=lambda _: None).work()


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, data_file: Path, make_home: Callable[[Path], Settings]
) -> Place:
    home = tmp_path_factory.mktemp("promote") / "home"
    with open_database(make_home(home)) as database:
        train(database, SEARCH, data_file, home / "features", trials=6)
        train(database, ROWS, data_file, home / "features", trials=2)
    return Place(home, data_file)


@pytest.fixture
def database(place: Place) -> Iterator[Database]:
    with open_database(embedded(place.home)) as database:
        yield database


@pytest.fixture
def study(database: Database) -> Study:
    return open_study(database, "tiny")


@pytest.fixture(scope="module")
def promoted(place: Place) -> Continued:
    return place.kill_and_continue("promote", "tiny", *OPTIONS, trainings_of_all=ON_FOLDS)


def test_a_killed_promotion_goes_on(promoted: Continued, study: Study) -> None:
    assert 3 <= len(promoted.before) < ON_FOLDS
    left = ON_FOLDS - len(promoted.before)
    told = [line for line in promoted.stderr.splitlines() if " kcal/mol" in line and " fold " in line]
    assert len(told) == left
    assert told[0].startswith(f"tiny {len(promoted.before) + 1}/{ON_FOLDS}")
    assert f"to be done   {left + 2} trainings, about" in promoted.stderr
    done = trainings(study.database, study)
    assert promoted.before < done.keys()
    assert len(done) == ON_FOLDS + 2
    # What trainings on folds wrote is not needed any more.
    kept = {path.name for path in (study.database.settings.promotion_folder("tiny") / "trainings").iterdir()}
    assert kept == {each.key[:32] for each in done.values() if each.kind == "member"}


def test_the_choice_is_recorded_with_its_reasons(promoted: Continued, study: Study) -> None:
    (promotion,) = promotions(study.database, study)
    assert promotion.ended is not None
    assert promotion.results == promoted.values["candidates"]
    assert promotion.choice == promoted.values["chosen_trial"]
    assert promotion.plan["folds_by_kind"] == {"structure": 3, "molecule": 3}
    done = trainings(study.database, study).values()
    for result in promotion.results or []:
        for kind, errors in result["folds"].items():
            values = [
                each.value
                for each in sorted(done, key=lambda one: one.run)
                if (each.number, each.kind) == (result["trial"], kind)
            ]
            assert errors["values"] == values
            assert errors["mean"] == pytest.approx(np.mean(values))
            assert errors["spread"] == pytest.approx(np.std(values, ddof=1))
    candidates = find_candidates(trial_rows(study.database, study), 2)
    assert {each.trial for each in candidates} == {result["trial"] for result in promotion.results or []}


def test_the_test_error_is_that_of_the_ensemble(promoted: Continued, place: Place, study: Study) -> None:
    config = study_from_values(study.config, "test")
    task = prepare_task(config.task, place.home / "features", no_progress)
    (promotion,) = promotions(study.database, study)
    folder = study.database.settings.promotion_folder("tiny") / str(promotion.id) / "ensemble"
    true = task.dataset.energies()[task.split.test]
    predicted = Ensemble.open(folder).predict(
        [make_structure(**values, where="test") for values in structures(place, task.split.test)]
    )
    errors = np.abs(predicted.energies - true).mean() * 627.5094738898777
    members = np.abs(predicted.members - true).mean() * 627.5094738898777
    test = promoted.values["test"]
    assert test["mae_kcalmol"] == pytest.approx(errors, rel=1e-9)
    assert test["mean_member_mae_kcalmol"] == pytest.approx(members, rel=1e-9)
    assert test["structures"] == len(true) == 12
    (evaluation,) = evaluations_on_test_set(study.database, study)
    assert (evaluation.promotion, evaluation.number) == (promotion.id, promotion.choice)
    assert evaluation.test_mae == test["mae_kcalmol"]


def structures(place: Place, numbers: np.ndarray) -> list[dict[str, Any]]:
    """Structures of the data by their global numbers, as plain values."""
    everything = read_structures(place.data)
    chosen = [everything[number] for number in numbers]
    return [{"symbols": list(each.symbols), "coordinates": each.coordinates.tolist()} for each in chosen]


def test_a_fresh_process_loads_the_model_and_is_told_where_it_comes_from(
    promoted: Continued, place: Place, study: Study
) -> None:
    rows = structures(place, np.array([0, 50, 1, 119]))
    xyz = place.home / "some.xyz"
    xyz.write_text("".join(_xyz(row) for row in rows))
    answer = subprocess.run(
        [sys.executable, "-c", FRESH, study.database.settings.tracking_uri, json.dumps(rows), str(xyz)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=place.home,
    )
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)

    (promotion,) = promotions(study.database, study)
    folder = study.database.settings.promotion_folder("tiny") / str(promotion.id) / "ensemble"
    wanted = Ensemble.open(folder).predict([make_structure(**row, where="test") for row in rows])
    for got in told["predictions"]:
        assert got["energy_hartree"] == pytest.approx(list(wanted.energies), abs=1e-9)
        assert got["spread_hartree"] == pytest.approx(list(wanted.spread), abs=1e-9)
        assert got["novelty"] == pytest.approx(list(wanted.novelty), abs=1e-4)
    table, _, file = told["predictions"]
    assert (table["row"], table["structure"]) == ([0, 1, 2, 3], [0, 0, 0, 0])
    assert (file["row"], file["structure"]) == ([0, 0, 0, 0], [0, 1, 2, 3])

    assert told["version"] == promoted.values["model"]["version"]
    tags, facts = told["tags"], study.facts
    assert (tags["study"], tags["trial"]) == ("tiny", str(promoted.values["chosen_trial"]))
    assert (tags["fingerprint.data"], tags["fingerprint.split"]) == (facts["data"], facts["split"])
    assert tags["commit"]
    assert "Test MAE" in told["description"]
    names = [column["name"] for column in json.loads(told["signature"]["inputs"])]
    assert names == ["symbols", "coordinates", "file"]
    assert told["metrics"]["test/mae_kcalmol"] == promoted.values["test"]["mae_kcalmol"]
    assert "model_code_path" in told["flavor"]  # a file of code
    assert "python_model" not in told["flavor"]  # no pickle


def _xyz(row: dict[str, Any]) -> str:
    atoms = zip(row["symbols"], row["coordinates"], strict=True)
    return f"{len(row['symbols'])}\n\n" + "".join(f"{s} {x!r} {y!r} {z!r}\n" for s, (x, y, z) in atoms)


@pytest.mark.usefixtures("promoted")
def test_a_second_look_must_be_meant_and_is_shown(place: Place, study: Study) -> None:
    known = len(evaluations_on_test_set(study.database, study))
    refused = place.run("promote", "tiny", *OPTIONS)
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "its test set was already evaluated on" in refused.stderr
    assert "to evaluate anyway, give --again" in refused.stderr
    assert len(evaluations_on_test_set(study.database, study)) == known
    # Another study with the same data and split has the same test set.
    other = place.run("promote", "rows", *OPTIONS)
    assert other.exit_code == 2
    assert "study 'rows': its test set was already evaluated on" in other.stderr

    process = place.start("promote", "tiny", *OPTIONS, "--again")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "to be done   0 trainings" in stdout
    assert f"used {known + 1} times" in stdout
    assert "Only the first error is unbiased: later choices may depend on it." in stdout
    assert "Registered  tiny version 2, alias champion" in stdout
    assert len(evaluations_on_test_set(study.database, study)) == known + 1


def test_on_a_gpu_the_trainings_of_a_fold_go_through_the_data_together(
    place: Place, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_from_values(study.config, "test")
    task = prepare_task(config.task, place.home / "features", no_progress)
    candidates = find_candidates(trial_rows(study.database, study), 2)
    planned = make_plan(candidates, task, 0, Options(folds=3, seeds=1)).fold_trainings[:4]
    assert [each.fold.fold for each in planned if each.fold is not None] == [0, 0, 1, 1]
    ended: dict[str, TrainingResult] = {}

    def end(training: PlannedTraining, outcome: Outcome) -> None:
        assert isinstance(outcome, TrainingResult)
        ended[training.key] = outcome

    # As on a GPU, but that the packs are trained on the CPU.
    monkeypatch.setattr(promotion_trainings, "find_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(promotion_trainings, "concurrent_trials_by_memory", lambda *_: 2)
    train_all(planned, task, place.home / "features", tmp_path, StopRequest(), end, no_progress, tmp_path)
    assert [each.key for each in planned if each.key in ended] == [each.key for each in planned]
    assert {result.outcome for result in ended.values()} == {"finished"}
    for first, second in (planned[:2], planned[2:]):
        both = [
            json.loads((training_folder(tmp_path, each) / "config.json").read_text())
            for each in (first, second)
        ]
        assert both[0]["fold"] == both[1]["fold"] == dump_config(first.fold)


Promote = Callable[..., Promotion]


@pytest.fixture
def alone(place: Place, database: Database, request: pytest.FixtureRequest) -> Study:
    """A study with a test set that no other study has."""
    name = request.node.name[:60]
    values = {**SEARCH, "name": name, "split": {"seed": zlib.crc32(request.node.nodeid.encode())}}
    train(database, values, place.data, place.home / "features", trials=3)
    return open_study(database, name)


@pytest.fixture
def promote(alone: Study, place: Place, monkeypatch: pytest.MonkeyPatch) -> Promote:
    """Promotes it in this process; MLflow is not told."""
    config = study_from_values(alone.config, "test")
    task = prepare_task(config.task, place.home / "features", no_progress)
    monkeypatch.setattr(promotion_trainings, "find_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(promotion_trainings, "concurrent_trials_by_memory", lambda *_: 1)
    registered = RegisteredModel(alone.name, "1", "run")
    monkeypatch.setattr(promotion_steps, "register_model", lambda *_, **__: registered)

    def go(*, again: bool = False) -> Promotion:
        options = Options(top=2, folds=2, seeds=1, ensemble=1)
        return Promoter(alone.database, alone, config, task, options, again=again).run(
            StopRequest(), no_progress
        )

    return go


def refuse(error: Exception) -> Callable[..., Any]:
    def refused(*_: Any, **__: Any) -> Any:
        raise error

    return refused


def test_once_the_test_set_was_evaluated_nothing_else_is_registered(
    alone: Study, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = alone.database
    with monkeypatch.context() as patched:
        patched.setattr(promotion_steps, "structures_of_test_set", refuse(DataError("damaged")))
        with pytest.raises(DataError):
            promote()
    assert evaluations_on_test_set(database, alone) == []
    with monkeypatch.context() as patched:
        patched.setattr(promotion_steps, "register_model", refuse(TrackingUnavailableError("away")))
        with pytest.raises(TrackingUnavailableError):
            promote()
    (tested,) = promotions(database, alone)
    assert tested.test is not None

    # By these numbers another candidate would be the best, and its members must not be trained again.
    with database.writing() as connection:
        connection.execute(update(training_rows).values(value=1000 - training_rows.c.value))
    place = database.settings.promotion_folder(alone.name)
    shutil.rmtree(place / "trainings")
    member = place / str(tested.id) / "ensemble" / "member-00.safetensors"
    content = member.read_bytes()
    member.unlink()
    with pytest.raises(AlreadyEvaluatedError, match=r"files are missing or have changed.* give --again"):
        promote()
    member.write_bytes(content)
    with monkeypatch.context() as patched:
        patched.setattr(study_trainings, "train_all", refuse(AssertionError("nothing is trained")))
        ended = promote()
    assert (ended.id, ended.choice, ended.test) == (tested.id, tested.choice, tested.test)
    assert len(evaluations_on_test_set(database, alone)) == 1


def test_a_lost_ensemble_is_made_anew_if_it_is_meant(
    alone: Study, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(promotion_steps, "register_model", refuse(TrackingUnavailableError("away")))
        with pytest.raises(TrackingUnavailableError):
            promote()
    shutil.rmtree(alone.database.settings.promotion_folder(alone.name))
    ended = promote(again=True)
    lost, _ = promotions(alone.database, alone)
    assert ended.id != lost.id
    assert (lost.ended is not None, lost.model_name) == (True, None)
    assert [each.promotion for each in evaluations_on_test_set(alone.database, alone)] == [lost.id, ended.id]


def test_only_its_own_failure_excludes_a_candidate_and_is_remembered(
    alone: Study, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, run = alone.database, promotion_trainings.run_training
    for error in (TrainingCutOff("signal SIGKILL"), DeviceError("the GPU has failed")):
        with monkeypatch.context() as patched:
            patched.setattr(promotion_trainings, "run_training", refuse(error))
            with pytest.raises(SearchError, match=rf"{error}; .* run the same command again to continue"):
                promote()
    assert failures(database, alone) == {}
    assert trainings(database, alone) == {}

    bad, good = find_candidates(trial_rows(database, alone), 2)
    tried = []

    def diverges(task: Any, config: Any, *others: Any, **named: Any) -> TrainingResult:
        if config.hidden == bad.config.hidden and config.activation == bad.config.activation:
            tried.append(config)
            raise TrainingFailed("the loss is nan")
        return run(task, config, *others, **named)

    with monkeypatch.context() as patched:
        patched.setattr(promotion_trainings, "run_training", diverges)
        patched.setattr(promotion_steps, "build_ensemble", refuse(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            promote()
    assert set(failures(database, alone).values()) == {"the loss is nan"}
    assert len(tried) == len(failures(database, alone)) > 0
    ended = promote()
    assert ended.choice == good.trial
    assert {result["failed"] for result in ended.results or []} == {None, "the loss is nan"}


def test_only_the_structures_of_the_test_set_are_made(
    place: Place, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_from_values(study.config, "test")
    task = prepare_task(config.task, place.home / "features", no_progress)
    made: list[int] = []
    make = promotion_ensemble.structure_of

    def counted(molecule: Any, number: int) -> Any:
        made.append(number)
        return make(molecule, number)

    monkeypatch.setattr(promotion_ensemble, "structure_of", counted)
    everything = read_structures(place.data)
    for got, number in zip(structures_of_test_set(task), task.split.test, strict=True):
        assert got.symbols == everything[number].symbols
        np.testing.assert_array_equal(got.coordinates, everything[number].coordinates)
    assert len(made) == len(task.split.test)


def test_trainings_of_other_versions_are_not_taken_over(
    place: Place, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_from_values(study.config, "test")
    task = prepare_task(config.task, place.home / "features", no_progress)
    candidates = find_candidates(trial_rows(study.database, study), 1)

    def keys() -> set[str]:
        return {each.key for each in make_plan(candidates, task, 0, Options()).fold_trainings}

    before = keys()
    assert keys() == before
    monkeypatch.setattr(promotion_plan, "version", lambda name: "99")
    assert not keys() & before


def test_only_trainings_with_the_same_numbers_are_taken_over(place: Place, study: Study) -> None:
    config = study_from_values(study.config, "test")
    task = prepare_task(config.task, place.home / "features", no_progress)
    (candidate,) = find_candidates(trial_rows(study.database, study), 1)

    def key(**settings: Any) -> str:
        changed = replace(candidate, config=replace(candidate.config, **settings))
        return members(changed, task, 0, 1)[0].key

    keys = [key(), key(threads=2), key(device="auto"), key(precision="float64"), key(checkpoint_seconds=5.0)]
    assert keys[4] == keys[0]
    assert len(set(keys)) == 4
    # The key that 0.1.0 recorded: another one would train every promotion from the start.
    planned = members(candidate, task, 0, 1)[0]
    settings = dump_config(planned.config)
    del settings["checkpoint_seconds"], settings["features"]
    versions = {name: version(name) for name in ("anitune", "torch", "torchani")}
    recorded = {"training": settings, "task": dict(task.fingerprints), "fold": None, "versions": versions}
    assert planned.key == digest_of(recorded)


def test_trials_that_differ_in_chance_or_device_are_one_candidate(study: Study) -> None:
    (row, *_) = (row for row in trial_rows(study.database, study) if row.state == "complete")
    assert row.config is not None

    def candidates(**settings: Any) -> int:
        assert row.config is not None
        other = replace(row, number=row.number + 1, config={**row.config, **settings})
        return len(find_candidates([row, other], 2))

    assert candidates(seed=7, threads=2, device="auto", checkpoint_seconds=5.0) == 1
    assert candidates(precision="float64") == 2


def test_a_program_is_told_how_to_enter_the_server_of_anitune_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANITUNE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    token = make_token(tmp_path, 5000)
    (line,) = _sign_in_lines("http://127.0.0.1:5000")
    environ: dict[str, str] = {}
    exec(line, {"os": SimpleNamespace(environ=environ), "pathlib": pathlib})
    assert environ == {"MLFLOW_TRACKING_TOKEN": token}
    for elsewhere in ("http://127.0.0.1:5001", "https://mlflow.example", "sqlite:///mlflow.db"):
        assert _sign_in_lines(elsewhere) == []


def test_a_kinked_winner_is_flagged_for_molecular_dynamics(alone: Study, promote: Promote) -> None:
    promotion = promote()
    chosen = find_candidates(trial_rows(alone.database, alone), 1)[0]
    for activation, flagged in (("relu", True), ("celu", False)):
        candidate = replace(chosen, config=replace(chosen.config, activation=activation))
        assert ("does not conserve energy" in description(alone, promotion, candidate, 1, {})) == flagged
        lines = _result_lines(promotion, [], "sqlite:///mlflow.db", activation)
        assert ("does not conserve energy" in lines[-1]) == flagged


def test_trials_of_equal_settings_and_warm_starts_are_no_candidates(database: Database, study: Study) -> None:
    rows = trial_rows(database, study)
    found = find_candidates(rows, 100)
    architectures = [each.architecture for each in found]
    settings = {(each.config.hidden, each.config.activation, each.config.learning_rate) for each in found}
    assert len(settings) == len(architectures)
    assert [each.val_mae for each in found] == sorted(each.val_mae for each in found)
    (first,) = find_candidates(trial_rows(database, open_study(database, "rows")), 100)
    assert first.trial == 0
    with pytest.raises(SearchError, match="no trial is complete that could be trained again"):
        find_candidates([], 5)


def test_a_study_without_a_test_set_is_not_promoted(place: Place) -> None:
    with open_database(embedded(place.home)) as database:
        values = {**SEARCH, "name": "untested", "split": {"fractions": [0.9, 0.1, 0.0]}}
        train(database, values, place.data, place.home / "features", trials=1)
    answer = place.run("promote", "untested")
    assert answer.exit_code == 1
    assert "its split has no test set (split.fractions)" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_trial_is_reproduced_from_its_record(place: Place) -> None:
    answer = place.run("reproduce", "tiny", "1")
    assert answer.exit_code == 0, answer.stderr
    assert "all 18 numbers are the same, bit for bit" in answer.stdout
    assert "the network is identical" in answer.stdout
    warm = place.run("reproduce", "rows", "1", "--json")
    assert warm.exit_code == 0, warm.stderr
    values = json.loads(warm.stdout)
    assert (values["reproduced"], values["differences"], values["same_network"]) == (True, [], True)


def test_a_record_that_was_tampered_with_is_noticed(place: Place, study: Study) -> None:
    key, epoch = "val/loss", 2
    before = metric_history(study.database, study, 1)[key][epoch - 1].value
    this = (metrics.c.study_id == study.id, metrics.c.number == 1, metrics.c.key == key)

    def write(value: float) -> None:
        with study.database.writing() as connection:
            connection.execute(update(metrics).where(*this, metrics.c.step == epoch).values(value=value))

    write(math.nextafter(before, math.inf))
    try:
        answer = place.run("reproduce", "tiny", "1")
        tolerant = place.run("reproduce", "tiny", "1", "--tolerance", "1e-9")
    finally:
        write(before)
    assert answer.exit_code == 1
    assert "1 of 18 numbers differ: the first is val/loss of epoch 2" in answer.stdout
    assert "not reproduced, bit for bit" in answer.stdout
    assert tolerant.exit_code == 0
    assert "reproduced, within a relative 1e-09" in tolerant.stdout


def test_there_is_no_such_trial(place: Place) -> None:
    answer = place.run("reproduce", "tiny", "99")
    assert answer.exit_code == 1
    assert answer.stderr == "anitune: tiny: there is no trial 99; see: anitune study show tiny\n"
