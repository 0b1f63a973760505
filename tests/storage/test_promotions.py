from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from storage.database import Database
from storage.errors import AlreadyOpenedError
from storage.openings import Opening, open_test_part, openings, record_test_error
from storage.promotions import (
    PromotionTraining,
    begin_promotion,
    end_promotion,
    promotions,
    record_choice,
    record_test,
    record_training,
    trainings,
    unfinished_promotion,
)
from storage.studies import Study
from storage.trials.queue import WorkerInfo

MakeStudy = Callable[..., Study]

PLAN = {"top": 2, "candidates": (3, 1)}


def begin(study: Study, worker: WorkerInfo, plan: dict[str, object] = PLAN) -> int:
    return begin_promotion(study.database, study, plan, worker).id


def look(study: Study, promotion: int, again: bool = False) -> Opening:
    return open_test_part(study.database, study, promotion, 3, {"hidden": [8]}, again=again)


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
    training = PromotionTraining("k" * 64, 3, "structure", 0, 0.5, {"seconds": 2.0})
    record_training(database, study, training)
    record_training(database, study, PromotionTraining("k" * 64, 3, "structure", 0, 9.0, {}))
    assert trainings(database, study) == {training.key: training}
    assert trainings(database, other) == {}


def test_a_second_opening_is_refused_unless_it_is_meant_and_all_are_listed(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study, other = make_study(), make_study("other")
    first, second = begin(study, worker), begin(study, worker, {"top": 3})
    opening = look(study, first)
    assert (opening.number, opening.config, opening.test_mae) == (3, {"hidden": [8]}, None)
    assert look(study, first) == opening  # it goes on with its own
    record_test_error(database, study, first, 0.5)
    with pytest.raises(AlreadyOpenedError, match=r"opened on .* for trial 3, test MAE 0.500 .* give --again"):
        look(study, second)
    assert [each.promotion for each in openings(database, study)] == [first]

    look(study, second, again=True)
    assert [(each.promotion, each.test_mae) for each in openings(database, study)] == [
        (first, 0.5),
        (second, None),
    ]
    assert openings(database, other) == []


def test_of_two_that_open_at_once_one_is_refused(
    database: Database, make_study: MakeStudy, worker: WorkerInfo
) -> None:
    study = make_study()
    ids = [begin(study, worker, {"top": n}) for n in range(4)]
    refused: list[int] = []
    barrier = threading.Barrier(len(ids))

    def open_it(promotion: int) -> None:
        barrier.wait()
        try:
            look(study, promotion)
        except AlreadyOpenedError:
            refused.append(promotion)

    threads = [threading.Thread(target=open_it, args=(each,)) for each in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(openings(database, study)) == 1
    assert len(refused) == len(ids) - 1
