"""``anitune learning-curve`` on a small study: killed, run again, and shown in a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dashboards.report.write import write_report
from search.curve import learning_curve as curve_steps
from search.curve.larger import larger_hidden
from search.curve.learning_curve import LearningCurve, Options, same_steps, sizes_of
from search.errors import SearchError
from search.promote import trainings as planned_trainings
from search.promote.plan import find_candidates, members
from search.study import StudyConfig, study_from_values
from search.work.stopping import StopRequest
from search.work.worker import SilentWatcher, Worker
from storage.database import Database, open_database
from storage.deletion import delete_study
from storage.evaluations import evaluations_on_test_set
from storage.learning_curves import latest_learning_curve
from storage.settings import Settings, embedded
from storage.studies import Budget, Study, create_study, open_study
from storage.trainings import trainings
from storage.trials.views import trial_rows
from tests.search.killed_commands import Continued, Place
from trainer.config import (
    Choices,
    DataConfig,
    Range,
    TaskConfig,
    TrainConfig,
    dump_config,
)
from trainer.data.self_energies import fit_self_energies
from trainer.data.splits import VALIDATION, Split
from trainer.errors import TrainingFailed
from trainer.progress import no_progress
from trainer.run import TrainingResult
from trainer.task import Task, prepare_task

OPTIONS = ("--top", "2", "--seeds", "2")
ON_SHARES = 2 * 4 * 2
SIZES = [12, 24, 48, 96]

SEARCH = {
    "name": "tiny",
    "training": {"epochs": 3, "device": "cpu", "batch_size": 32, "checkpoint_seconds": 0},
    "space": {"layers": 1, "width": {"choices": [8, 16]}, "activation": {"choices": ["celu", "silu"]}},
    "sampler": {"kind": "random"},
    "pruner": {"kind": "none"},
    "seed": 3,
}


def prepare(config: StudyConfig, place: Place) -> Task:
    return prepare_task(config.task, place.home / "features", no_progress)


def make(database: Database, place: Place, trials: int, **changed: Any) -> tuple[Study, StudyConfig, Task]:
    """A study with so many complete trials."""
    config = study_from_values({**SEARCH, "data": {"files": [str(place.data)]}, **changed}, "test")
    study = create_study(database, config.name, dump_config(config), Budget(trials=trials))
    task = prepare(config, place)
    study.set_facts(task.fingerprints)
    Worker(database, study, config, task, SilentWatcher(), StopRequest(), start_relay=lambda _: None).work()
    return study, config, task


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, data_file: Path, make_home: Callable[[Path], Settings]
) -> Place:
    place = Place(tmp_path_factory.mktemp("curve") / "home", data_file)
    with open_database(make_home(place.home)) as database:
        make(database, place, 5)
    return place


@pytest.fixture
def database(place: Place) -> Iterator[Database]:
    with open_database(embedded(place.home)) as database:
        yield database


@pytest.fixture
def study(database: Database) -> Study:
    return open_study(database, "tiny")


@pytest.fixture(scope="module")
def measured(place: Place) -> Continued:
    return place.kill_and_continue("learning-curve", "tiny", *OPTIONS, trainings_of_all=ON_SHARES)


def test_a_killed_learning_curve_goes_on(measured: Continued, study: Study) -> None:
    assert 3 <= len(measured.before) < ON_SHARES
    left = ON_SHARES - len(measured.before)
    told = [line for line in measured.stderr.splitlines() if " kcal/mol" in line]
    assert len(told) == left + 2
    assert f"to be done   {left + 2} trainings, about" in measured.stderr
    done = trainings(study.database, study)
    assert measured.before < done.keys()
    assert len(done) == ON_SHARES + 2
    # Seeds on all of the data may become members of an ensemble; nothing else is needed any more.
    kept = {path.name for path in (study.database.settings.promotion_folder("tiny") / "trainings").iterdir()}
    assert kept == {each.key[:32] for each in done.values() if each.kind == "member"}
    assert len(kept) == 2 * 2


def test_the_values_are_those_of_the_trainings(measured: Continued, study: Study) -> None:
    values = measured.values
    curve = latest_learning_curve(study.database, study)
    assert curve is not None
    assert curve.values == values
    assert [size["structures"] for size in values["sizes"]] == SIZES
    assert values["twice"] == 2 * SIZES[-1]
    best, other = values["configurations"]
    assert np.mean(best["errors"][-1]) <= np.mean(other["errors"][-1])
    done = list(trainings(study.database, study).values())
    for each in values["configurations"]:
        recorded = [one.value for one in done if (one.number, one.kind) == (each["trial"], "member")]
        assert sorted(each["errors"][-1]) == sorted(recorded)
        fitted = np.polyfit(np.log(np.repeat(SIZES, 2)), np.log(np.ravel(each["errors"])), 1)
        assert each["law"]["exponent"]["mean"] == pytest.approx(-fitted[0])
    larger = values["larger"]
    width = int(best["architecture"].split("-")[1])
    assert larger["architecture"].split("-")[1] == {8: "16", 16: "32"}[width]
    assert larger["parameters"] > best["parameters"]
    difference = np.mean(larger["errors"][-1]) - np.mean(best["errors"][-1])
    assert larger["difference"]["mean"] == pytest.approx(difference)


@pytest.mark.usefixtures("measured")
def test_measured_again_it_trains_nothing_and_the_test_set_is_not_used(place: Place, study: Study) -> None:
    before = latest_learning_curve(study.database, study)
    again = place.run("learning-curve", "tiny", *OPTIONS)
    assert again.exit_code == 0, again.output
    assert "to be done   0 trainings" in again.stdout
    assert "Twice the data: with 192 structures to train on, trial" in again.stdout
    assert "Next larger network: 384-" in again.stdout
    assert latest_learning_curve(study.database, study) == before
    assert evaluations_on_test_set(study.database, study) == []


@pytest.mark.usefixtures("measured")
def test_its_seeds_on_all_of_the_data_are_members_of_a_promoted_ensemble(place: Place, study: Study) -> None:
    config = study_from_values(study.config, "test")
    task = prepare(config, place)
    done = trainings(study.database, study)
    for candidate in find_candidates(trial_rows(study.database, study), 2):
        keys = [each.key for each in members(candidate, task, config.seed, 3)]
        assert [key in done for key in keys] == [True, True, False]


@pytest.mark.usefixtures("measured")
def test_the_report_shows_it(place: Place, study: Study, database: Database) -> None:
    html = write_report(database, ["tiny"]).read_text()
    markdown = write_report(database, ["tiny"], "md")
    for text in (html, markdown.read_text()):
        assert "More data or a larger network?" in text
        assert "Twice the data: with 192 structures to train on" in text
        assert "1/8: 12" in text
        assert "all: 96" in text
    pictures = [file.name for file in markdown.with_name("tiny_files").iterdir()]
    assert any(name.endswith("-learning-curve.png") for name in pictures)


def test_self_energies_are_those_of_the_share(data_file: Path, feature_root: Path) -> None:
    data = DataConfig(files=(str(data_file),))
    whole, *tasks = (
        prepare_task(TaskConfig(data, train_share=share), feature_root, no_progress)
        for share in (1.0, 1 / 4, 1 / 8)
    )
    for share, task in zip((4, 8), tasks, strict=True):
        assert len(task.split.train) == len(whole.split.train) / share
        assert set(task.split.train) < set(whole.split.train)
        np.testing.assert_array_equal(task.split.validation, whole.split.validation)
        np.testing.assert_array_equal(task.split.test, whole.split.test)
        fitted = fit_self_energies(task.dataset, task.split, task.aev.elements)
        assert task.self_energies == fitted != whole.self_energies


def test_smaller_shares_take_as_many_steps() -> None:
    config = TrainConfig(epochs=10, batch_size=32, patience=4)
    fewer = same_steps(config, 96, 24)
    assert (fewer.epochs, fewer.patience) == (30, 12)  # 3 steps an epoch, and 1
    assert same_steps(config, 96, 96) == config
    assert same_steps(replace(config, batch_size=256, patience=None), 96, 12).epochs == 10


def test_the_next_larger_network_is_of_the_space_where_that_has_one() -> None:
    steps = {"width": Range(32, 160, step=32)}
    assert larger_hidden(steps, (64, 128)) == (96, 160)
    assert larger_hidden(steps, (160, 96)) == (256, 128)
    assert larger_hidden({"width": Choices((16, 48, 24))}, (16, 24)) == (24, 48)
    listed = {"hidden": Choices(((64,), (128, 64), (96, 64)))}
    assert larger_hidden(listed, (64,)) == (96, 64)
    assert larger_hidden(listed, (128, 64)) == (192, 96)
    assert larger_hidden({"width": Range(8, 64)}, (8,)) == (32,)
    assert larger_hidden(None, (128,)) == (192,)
    assert larger_hidden(steps, {"H": (64, 128), "C": (160, 96)}) == {"H": (96, 160), "C": (256, 128)}
    widths = {"H": (16,), "C": (64,)}
    assert larger_hidden({"hidden": Choices(((32,), widths))}, (32,)) == widths


def test_bad_input_gets_one_line(place: Place, database: Database) -> None:
    config = study_from_values({**SEARCH, "name": "empty", "data": {"files": [str(place.data)]}}, "test")
    create_study(database, "empty", dump_config(config), Budget(trials=1))
    for name, line in {
        "empty": "no trial is complete that could be trained again",
        "unknown": "there is no study",
    }.items():
        answer = place.run("learning-curve", name)
        assert answer.exit_code in (1, 2)
        assert line in answer.stderr
        assert answer.stderr.count("\n") == 1


def test_a_share_without_an_element_is_refused(task: Task) -> None:
    oxygen = [n for n, molecule in enumerate(task.dataset.molecules) if "O" in molecule.composition]
    trained = task.split.train[np.isin(task.dataset.molecule_of(task.split.train), oxygen)]
    labels = task.split.labels.copy()
    labels[trained] = VALIDATION
    few = replace(task, split=Split(labels))
    with pytest.raises(SearchError, match=r"tiny: too little data .* with 1/8 of its training set: O occurs"):
        sizes_of(few, "tiny")


def test_too_few_structures_are_refused(task: Task) -> None:
    labels = task.split.labels.copy()
    labels[task.split.train[::2]] = VALIDATION
    with pytest.raises(SearchError, match=r"tiny: too few structures .*: 1/8 of its training set has 6"):
        sizes_of(replace(task, split=Split(labels)), "tiny")


def test_a_configuration_that_fails_is_shown_and_a_deleted_study_leaves_no_curve(
    place: Place, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, config, task = make(database, place, 3, name="failing")
    curve = LearningCurve(database, study, config, task, Options(top=2, seeds=2))
    bad, good = curve.candidates
    run = planned_trainings.run_training

    def diverges(task: Any, config: Any, *others: Any, **named: Any) -> TrainingResult:
        if (config.hidden, config.activation) == (bad.config.hidden, bad.config.activation):
            raise TrainingFailed("the loss is nan")
        return run(task, config, *others, **named)

    # As on a GPU, but that the packs are trained on the CPU.
    monkeypatch.setattr(planned_trainings, "find_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(planned_trainings, "concurrent_trials_by_memory", lambda *_: 2)
    monkeypatch.setattr(curve_steps, "concurrent_trials_by_memory", lambda *_: 2)
    monkeypatch.setattr(planned_trainings, "run_training", diverges)
    values = curve.run(StopRequest(), no_progress).values
    assert [each["trial"] for each in values["configurations"]] == [good.trial, bad.trial]
    assert [each["failed"] for each in values["configurations"]] == [None, "the loss is nan"]
    text = write_report(database, ["failing"]).read_text()
    assert "failed: the loss is nan" in text

    delete_study(database, study)
    assert latest_learning_curve(database, study) is None
