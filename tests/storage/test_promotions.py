from __future__ import annotations

import getpass
import threading
from collections.abc import Callable

import pytest

from storage.database import Database
from storage.deletion import delete_study
from storage.errors import AlreadyEvaluatedError
from storage.evaluations import (
    EvaluationOnTestSet,
    evaluations_on_test_set,
    record_evaluation,
    record_test_error,
)
from storage.promotions import (
    begin_promotion,
    end_promotion,
    promotions,
    record_choice,
    record_test,
    unfinished_promotion,
)
from storage.studies import Study
from storage.trainings import RecordedTraining, failures, record_failure, record_training, trainings
from storage.trials.queue import WorkerInfo

MakeStudy = Callable[..., Study]

PLAN = {"top": 2, "candidates": (3, 1)}


def begin(study: Study, worker: WorkerInfo, plan: dict[str, object] = PLAN) -> int:
    return begin_promotion(study.database, study, plan, worker).id


def look(study: Study, promotion: int, again: bool = False, ensemble: str = "e" * 64) -> EvaluationOnTestSet:
    return record_evaluation(study.database, study, promotion, 3, {"hidden": [8]}, ensemble, again=again)


def with_facts(study: Study, data: str = "d" * 64, split: str = "s" * 64) -> Study:
    study.set_facts({"data": data, "split": split})
    return study


def test_a_promotion_goes_on_until_it_has_ended(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study, other = make_study(), make_study("other")
    first = begin(study, worker)
    assert begin(study, worker) == first
    found = unfinished_promotion(database, study, PLAN)
    assert found is not None
    assert found.id == first
    assert begin(study, worker, {"top": 3}) != first
    assert begin(other, worker) != first

    record_choice(database, first, [{"trial": 3}, {"trial": 1}], 3, "the best")
    record_test(database, first, {"mae_kcalmol": 0.5})
    # Another machine that came to other numbers finds what is recorded.
    record_choice(database, first, [{"trial": 1}], 1, "another")
    record_test(database, first, {"mae_kcalmol": 9.0})
    end_promotion(database, first, "widths", "1")
    assert unfinished_promotion(database, study, PLAN) is None
    assert begin(study, worker) != first
    ended = promotions(database, study)[0]
    assert (ended.id, ended.choice, ended.reason) == (first, 3, "the best")
    assert (ended.results, ended.test) == ([{"trial": 3}, {"trial": 1}], {"mae_kcalmol": 0.5})
    assert (ended.model_name, ended.model_version) == ("widths", "1")
    assert ended.worker == worker
    assert ended.ended is not None
    assert ended.ended >= ended.started


def test_trainings_are_kept_once_and_by_study(database: Database, make_study: MakeStudy) -> None:
    study, other = make_study(), make_study("other")
    training = RecordedTraining("k" * 64, 3, "structure", 0, 0.5, {"seconds": 2.0})
    record_training(database, study, training)
    record_training(database, study, RecordedTraining("k" * 64, 3, "structure", 0, 9.0, {}))
    assert trainings(database, study) == {training.key: training}
    assert trainings(database, other) == {}
    record_failure(database, study, training.key, "the loss is nan")
    record_failure(database, study, training.key, "another")
    assert failures(database, study) == {training.key: "the loss is nan"}
    assert failures(database, other) == {}


def test_a_second_evaluation_is_refused_unless_it_is_meant_and_all_are_listed(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study, other = with_facts(make_study()), with_facts(make_study("other"), split="o" * 64)
    first, second = begin(study, worker), begin(study, worker, {"top": 3})
    evaluation = look(study, first)
    assert (evaluation.number, evaluation.config, evaluation.test_mae) == (3, {"hidden": [8]}, None)
    assert look(study, first) == evaluation  # it goes on with its own
    with pytest.raises(AlreadyEvaluatedError, match="files are missing or have changed"):
        look(study, first, again=True, ensemble="f" * 64)
    record_test_error(database, study, first, 0.5)
    record_test_error(database, study, first, 0.4)
    with pytest.raises(AlreadyEvaluatedError, match=r"trial 3 of widths, test MAE 0.500 .* give --again"):
        look(study, second)
    assert [each.promotion for each in evaluations_on_test_set(database, study)] == [first]

    look(study, second, again=True)
    assert [(each.promotion, each.test_mae) for each in evaluations_on_test_set(database, study)] == [
        (first, 0.5),
        (second, None),
    ]
    assert evaluations_on_test_set(database, other) == []


def test_of_two_that_open_at_once_one_is_refused(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    studies = [with_facts(make_study()), with_facts(make_study("other"))] * 2
    ids = [begin(study, worker, {"top": n}) for n, study in enumerate(studies)]
    refused: list[int] = []
    barrier = threading.Barrier(len(ids), timeout=60)

    def open_it(study: Study, promotion: int) -> None:
        barrier.wait(60)
        try:
            look(study, promotion)
        except AlreadyEvaluatedError:
            refused.append(promotion)

    threads = [threading.Thread(target=open_it, args=each) for each in zip(studies, ids, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a promotion still evaluates on the test set"
    assert len(evaluations_on_test_set(database, studies[0])) == 1
    assert len(refused) == len(ids) - 1


def test_an_evaluation_is_known_to_every_study_of_the_test_set(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study, same = with_facts(make_study()), with_facts(make_study("same"))
    look(study, begin(study, worker))
    with pytest.raises(AlreadyEvaluatedError, match=r"study 'same': .* for trial 3 of widths"):
        look(same, begin(same, worker))

    delete_study(database, study)
    new = with_facts(make_study())
    (evaluation,) = evaluations_on_test_set(database, new)
    assert (evaluation.study, evaluation.promotion) == ("widths", None)
    with pytest.raises(AlreadyEvaluatedError):
        look(new, begin(new, worker))


def test_a_user_without_a_name_can_evaluate_on_a_test_set(
    make_study: MakeStudy, worker: WorkerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", unknown)
    study = with_facts(make_study())
    assert look(study, begin(study, worker)).opened_by.startswith("uid ")
