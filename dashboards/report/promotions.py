"""Report sections on promotions and on test-set evaluations, which every later report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashboards.record import StudyRecord
from dashboards.report.contents import Section, Table
from storage.database import Database
from storage.evaluations import EvaluationOnTestSet, evaluations_on_test_set
from storage.promotions import Promotion, promotions
from storage.studies import open_study

_FOLDS = {"structure": "on folds of structures", "molecule": "on folds of whole molecules"}


def promotion_sections(database: Database, record: StudyRecord) -> tuple[Section, ...]:
    """A section for each promotion that got as far as a choice, and one on the evaluations, if any."""
    study = open_study(database, record.name)
    chosen = [each for each in promotions(database, study) if each.results is not None]
    sections = [_promotion(record, each, len(chosen)) for each in chosen]
    if opened := evaluations_on_test_set(database, study):
        sections.append(_evaluations(record, opened))
    return tuple(sections)


def _promotion(record: StudyRecord, promotion: Promotion, count: int) -> Section:
    results = promotion.results or []
    kinds = [kind for kind in _FOLDS if any(kind in result["folds"] for result in results)]
    text = [
        "The best configurations were trained again with several seeds on folds, mean and standard deviation"
        f" in kcal/mol. Chosen: trial {promotion.choice}, since {promotion.reason}."
    ]
    if (test := promotion.test) is not None:
        text.append(
            f"On the test set the ensemble has a mean absolute error of {test['mae_kcalmol']:.3f} kcal/mol"
            f" (root mean square {test['rmse_kcalmol']:.3f}, {test['structures']:,} structures); its members"
            f" by themselves have {test['mean_member_mae_kcalmol']:.3f} on average."
        )
    if promotion.model_name is not None:
        text.append(f"Registered as {promotion.model_name}, version {promotion.model_version}.")
    headings = ["trial", "architecture", "parameters", "MAE in the search"]
    for kind in kinds:
        headings += [_FOLDS[kind], f"above the best {_FOLDS[kind]} (95 %)"]
    rows = tuple(_row(result, kinds) for result in results)
    marked = frozenset(i for i, result in enumerate(results) if result["trial"] == promotion.choice)
    number = f" {promotion.id}" if count > 1 else ""
    name = f"promotion-{record.name}-{promotion.id}"
    return Section(
        f"Promotion{number}", tuple(text), Table(name, tuple(headings), rows, frozenset({0, 2, 3}), marked)
    )


def _row(result: Mapping[str, Any], kinds: list[str]) -> tuple[str, ...]:
    cells = [
        str(result["trial"]),
        result["architecture"],
        f"{result['parameters']:,}",
        f"{result['val_mae']:.3f}",
    ]
    for kind in kinds:
        errors = result["folds"].get(kind)
        if errors is None:
            cells += [f"failed: {result['failed']}" if result["failed"] else "", ""]
            continue
        cells.append(f"{errors['mean']:.3f} ± {errors['spread']:.3f} ({len(errors['values'])})")
        difference = errors["difference"]
        if difference is None:
            cells.append("the best")
        else:
            verdict = "" if errors["told_apart"] else ", cannot be told apart"
            cells.append(f"{difference['low']:+.3f} to {difference['high']:+.3f}{verdict}")
    return tuple(cells)


def _evaluations(record: StudyRecord, opened: list[EvaluationOnTestSet]) -> Section:
    text = (
        "The test set influenced no choice before its first evaluation, so the error of this evaluation is"
        " unbiased."
        if len(opened) == 1
        else f"The test set was used {len(opened)} times. Only the error of the first evaluation is"
        " unbiased: later choices may depend on it."
    )
    rows = tuple((str(i), str(evaluation)) for i, evaluation in enumerate(opened, start=1))
    return Section(
        "Evaluations on the test set",
        (text,),
        Table(
            f"evaluations-{record.name}", ("no.", "when, by whom, and with which error"), rows, frozenset({0})
        ),
    )
