"""The steps of a promotion: folds, choice, ensemble, then one evaluation on the test set, then the registry.

Each step is recorded when it is done, so a promotion that is started again continues with the next step.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

from search.errors import SearchError
from search.promote.choice import Choice, FoldKind, Result, choose, fold_errors
from search.promote.ensemble import (
    build_ensemble,
    ensemble_digest,
    measure_on_test_set,
    structures_of_test_set,
)
from search.promote.model import description, lineage, metrics, model_files
from search.promote.plan import (
    Candidate,
    Options,
    PlannedTraining,
    affordable_trials,
    find_candidates,
    make_plan,
    members,
    seconds_of,
)
from search.promote.study_trainings import StudyTrainings
from search.study import StudyConfig
from search.work.environment import describe_worker
from search.work.sizing import concurrent_trials_by_memory
from search.work.stopping import StopRequest
from search.work.worker import patiently
from storage.database import Database
from storage.errors import AlreadyEvaluatedError
from storage.evaluations import (
    EvaluationOnTestSet,
    evaluations_on_test_set,
    record_evaluation,
    record_test_error,
    refuse_another_ensemble,
    refuse_another_evaluation,
)
from storage.promotions import (
    Promotion,
    abandon_promotion,
    begin_promotion,
    end_promotion,
    promotions,
    record_choice,
    record_test,
    unfinished_promotion,
)
from storage.studies import Study
from storage.tracking.registry import RegisteredModel, register_model
from storage.tracking.relay import study_run_key
from storage.trainings import RecordedTraining
from storage.trials.views import trial_rows
from trainer.config import dump_config
from trainer.fitting.devices import find_device
from trainer.inference.ensemble import Ensemble
from trainer.progress import Progress
from trainer.task import Task

logger = logging.getLogger("anitune")

ENSEMBLE = "ensemble"


class Promoter:
    """Promotes the best configuration of a study.

    Parameters
    ----------
    config : configuration of the study
    task : task on which its trials were trained
    again : whether to evaluate on the test set even if it was evaluated on before

    Attributes
    ----------
    plan : trainings of the promotion

    Raises
    ------
    AlreadyEvaluatedError
        if another promotion has evaluated on the test set, and ``again`` is false.
    SearchError
        if there is nothing to promote, or nothing to test it on.
    """

    def __init__(
        self,
        database: Database,
        study: Study,
        config: StudyConfig,
        task: Task,
        options: Options,
        *,
        again: bool,
    ) -> None:
        self._database = database
        self._study = study
        self._config = config
        self._task = task
        self._again = again
        self._trainings = StudyTrainings(database, study, task)
        if not len(task.split.test):
            raise SearchError(
                f"{study.name}: its split has no test set (split.fractions): the error of a promoted model"
                " could not be measured"
            )
        trials = affordable_trials(trial_rows(database, study), study.objectives, options.at_most_parameters)
        candidates = find_candidates(trials, options.top)
        self.plan = make_plan(candidates, task, config.seed, options)
        own = unfinished_promotion(database, study, self.plan.values())
        others = [
            each
            for each in evaluations_on_test_set(database, study)
            if own is None or each.promotion != own.id
        ]
        if not again:
            refuse_another_evaluation(study, others)

    @property
    def decisive(self) -> FoldKind:
        """The kind of folds that decides: the kind of the study's own split, if the data has such folds."""
        by = self._config.split.by
        return by if by in self.plan.folds else next(iter(self.plan.folds))

    def estimate(self) -> tuple[int, float]:
        """Estimate the number of remaining trainings, including the ensemble, and their time, s.

        Until the candidate of the ensemble is known, these are the largest number and time of all candidates.
        """
        waiting = self._trainings.waiting(self.plan.fold_trainings)
        seconds = sum(seconds_of(each, self.plan, self._task) for each in waiting)
        possible = self.plan.candidates if waiting else [self.plan.candidate(self._decide().number)]
        missing = [(len(self._trainings.waiting(self._members(each))), each.seconds) for each in possible]
        count = max(number for number, _ in missing)
        seconds += max(number * each for number, each in missing)
        configs = [each.config for each in self.plan.candidates]
        at_once = concurrent_trials_by_memory(self._task, configs * len(self.plan.fold_trainings))
        return len(waiting) + count, seconds / at_once

    def run(self, stop: StopRequest, progress: Progress) -> Promotion:
        """Run all remaining steps.

        Raises
        ------
        Stopped
            if asked to stop; the next call continues.
        SearchError
            if no candidate, or a member of the ensemble, can be trained.
        PromotionBusyError
            if another process promotes this study.
        """
        with self._trainings.alone():
            return self._run(stop, progress)

    def _run(self, stop: StopRequest, progress: Progress) -> Promotion:
        database, study = self._database, self._study
        promotion = self._begin()
        if promotion.choice is None:
            self._choose(promotion.id, stop, progress)
            promotion = self._recorded(promotion.id)
        assert promotion.choice is not None
        logger.info("%s: %s", study.name, promotion.reason)
        chosen = self.plan.candidate(promotion.choice)
        folder = self._ensemble(promotion.id)
        if self._evaluation(promotion.id) is None:
            task = self._task.of(chosen.config)
            build_ensemble(self._train_members(chosen, stop, progress), task, folder)
        if promotion.test is None:
            self._open(promotion.id, chosen, folder)
        model = self._register(self._recorded(promotion.id), chosen, folder)
        patiently(lambda: end_promotion(database, promotion.id, model.name, model.version))
        return self._recorded(promotion.id)

    def _begin(self) -> Promotion:
        """Begin or continue; after a test-set evaluation, only with the ensemble that was evaluated."""
        database, study = self._database, self._study
        worker = describe_worker(None, find_device(self.plan.candidates[0].config.device))
        promotion = begin_promotion(database, study, self.plan.values(), worker)
        evaluation = self._evaluation(promotion.id)
        if evaluation is None:
            return promotion
        try:
            refuse_another_ensemble(study, evaluation, ensemble_digest(self._ensemble(promotion.id)))
        except AlreadyEvaluatedError:
            if not self._again:
                raise
            abandon_promotion(database, promotion.id)
            return begin_promotion(database, study, self.plan.values(), worker)
        return promotion

    def _evaluation(self, promotion: int) -> EvaluationOnTestSet | None:
        known = evaluations_on_test_set(self._database, self._study)
        return next((each for each in known if each.promotion == promotion), None)

    def _recorded(self, promotion: int) -> Promotion:
        return next(each for each in promotions(self._database, self._study) if each.id == promotion)

    def _choose(self, promotion: int, stop: StopRequest, progress: Progress) -> None:
        self._trainings.train(self.plan.fold_trainings, stop, progress)
        choice = self._decide()
        results = [each.values() for each in choice.results]
        patiently(lambda: record_choice(self._database, promotion, results, choice.number, choice.reason))

    def _decide(self) -> Choice:
        """Choose a candidate, once all trainings on folds are recorded."""
        done, failed = self._trainings.results(), self._trainings.failures()
        results = [self._result(each, done, failed) for each in self.plan.candidates]
        return choose(results, self.decisive, self.plan.folds)

    def _result(
        self, candidate: Candidate, done: dict[str, RecordedTraining], reasons: dict[str, str]
    ) -> Result:
        own = [each for each in self.plan.fold_trainings if each.trial == candidate.trial]
        failed = [reasons[each.key] for each in own if each.key in reasons]
        result = Result(
            trial=candidate.trial,
            architecture=candidate.architecture,
            val_mae=candidate.val_mae,
            parameters=candidate.parameters,
            structures_per_second=0.0,
            folds={},
            failed=failed[0] if failed else None,
        )
        if failed:
            return result
        of_kind = {
            kind: sorted((done[each.key] for each in own if each.kind == kind), key=lambda one: one.run)
            for kind in self.plan.folds
        }
        speeds = [one.summary["structures_per_second"] for each in of_kind.values() for one in each]
        return replace(
            result,
            structures_per_second=sum(speeds) / len(speeds),
            folds={kind: fold_errors([one.value for one in each]) for kind, each in of_kind.items()},
        )

    def _train_members(self, chosen: Candidate, stop: StopRequest, progress: Progress) -> list[Path]:
        """Train the members of the ensemble that are missing, and return the model files of all."""
        planned = self._members(chosen)
        self._trainings.train(planned, stop, progress, models=True)
        return [self._trainings.model_file(each) for each in planned]

    def _members(self, chosen: Candidate) -> list[PlannedTraining]:
        return members(chosen, self._task, self._config.seed, self.plan.options.ensemble)

    def _open(self, promotion: int, chosen: Candidate, folder: Path) -> None:
        """Evaluate the ensemble in a folder on the test set, and record the evaluation and its errors."""
        database, study = self._database, self._study
        ensemble, structures = Ensemble.open(folder), structures_of_test_set(self._task)
        digest = ensemble_digest(folder)
        assert digest is not None
        evaluation = record_evaluation(
            database, study, promotion, chosen.trial, dump_config(chosen.config), digest, again=self._again
        )
        logger.info("%s: test set evaluated on %s", study.name, evaluation)
        errors = measure_on_test_set(ensemble, structures, self._task)
        record_test_error(database, study, promotion, errors.mae_kcalmol)
        record_test(database, promotion, asdict(errors))

    def _register(self, promotion: Promotion, chosen: Candidate, folder: Path) -> RegisteredModel:
        assert promotion.test is not None
        looks = len(evaluations_on_test_set(self._database, self._study))
        return register_model(
            self._database.settings,
            self._study.name,
            f"{study_run_key(self._study)}/promotion/{promotion.id}",
            model_files(folder, self._task),
            tags=lineage(self._study, promotion, self._task.of(chosen.config)),
            metrics=metrics(promotion.test),
            description=description(
                self._study, promotion, chosen, looks, self._task.dataset.isolated_energies
            ),
        )

    @property
    def _folder(self) -> Path:
        return self._database.settings.promotion_folder(self._study.name)

    def _ensemble(self, promotion: int) -> Path:
        return self._folder / f"{promotion}" / ENSEMBLE
