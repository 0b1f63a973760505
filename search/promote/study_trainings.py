"""Trainings of a study beside its trials, recorded as each ends, so that a later call trains the rest."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from search.errors import SearchError
from search.promote.plan import PlannedTraining
from search.promote.trainings import Outcome, train_all, training_folder
from search.work.stopping import StopRequest
from search.work.worker import patiently
from storage.database import Database
from storage.errors import PromotionBusyError
from storage.studies import Study
from storage.trainings import RecordedTraining, failures, record_failure, record_training, trainings
from trainer.errors import DeviceError, TrainingCutOff, TrainingFailed
from trainer.files import MODEL
from trainer.fitting.checkpoints import CHECKPOINT
from trainer.progress import Progress
from trainer.run import TrainingResult
from trainer.task import Task

logger = logging.getLogger("anitune")


class StudyTrainings:
    """The trainings that a promotion or a learning curve of a study plans.

    Parameters
    ----------
    task : task of the study
    """

    def __init__(self, database: Database, study: Study, task: Task) -> None:
        self._database = database
        self._study = study
        self._task = task
        self._folder = database.settings.promotion_folder(study.name)

    def results(self) -> dict[str, RecordedTraining]:
        """Return the results of the trainings that have ended, by key."""
        return trainings(self._database, self._study)

    def failures(self) -> dict[str, str]:
        """Return why trainings failed, by key."""
        return failures(self._database, self._study)

    def waiting(self, planned: Sequence[PlannedTraining]) -> list[PlannedTraining]:
        """Return those that have neither a result nor a failure yet."""
        known = {*self.results(), *self.failures()}
        return [each for each in planned if each.key not in known]

    def model_file(self, planned: PlannedTraining) -> Path:
        """Return the path of the network of a training; only members of ensembles keep it."""
        return training_folder(self._trainings, planned) / MODEL

    def train(
        self,
        planned: Sequence[PlannedTraining],
        stop: StopRequest,
        progress: Progress,
        *,
        models: bool = False,
    ) -> None:
        """Train those that are not recorded yet.

        Parameters
        ----------
        models : whether the model file of each is needed: a training whose file is missing is repeated, and
            one that fails is an error, not a result

        Raises
        ------
        Stopped
            if asked to stop; the next call continues.
        SearchError
            if the machine ends a training; or if one fails, with ``models``.
        """
        waiting = self.waiting(planned)
        if models:
            waiting = [each for each in planned if each in waiting or not self.model_file(each).is_file()]
        ended = len(planned) - len(waiting)

        def end(training: PlannedTraining, outcome: Outcome) -> None:
            nonlocal ended
            ended += 1
            what = f"{self._study.name} {ended}/{len(planned)}  {training.description}"
            if isinstance(outcome, TrainingFailed):
                if models:
                    raise SearchError(f"{what}: {outcome}")
                reason = str(outcome)
                patiently(lambda: record_failure(self._database, self._study, training.key, reason))
                logger.warning("%s  failed: %s", what, outcome)
                return
            self._keep(training, outcome)
            logger.info("%s  %.3f kcal/mol", what, outcome.best_val_mae)

        settings = self._database.settings
        try:
            train_all(
                waiting,
                self._task,
                settings.features,
                self._trainings,
                stop,
                end,
                progress,
                settings.cards,
            )
        except (TrainingCutOff, DeviceError) as error:
            raise SearchError(
                f"{self._study.name}: {error}; finished trainings are kept: run the same command again to"
                " continue"
            ) from error
        stop.raise_if_signalled()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from these trainings in the block.

        Raises
        ------
        PromotionBusyError
            if another process is at them.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise PromotionBusyError(
                f"study {self._study.name!r} is being promoted, or its learning curve measured, by another"
                " process"
            ) from None
        try:
            yield
        finally:
            lock.release()

    @property
    def _trainings(self) -> Path:
        return self._folder / "trainings"

    def _keep(self, planned: PlannedTraining, result: TrainingResult) -> None:
        record = RecordedTraining(
            planned.key, planned.trial, planned.kind, planned.run, result.best_val_mae, result.metrics
        )
        patiently(lambda: record_training(self._database, self._study, record))
        folder = training_folder(self._trainings, planned)
        if planned.kind == "member":
            (folder / CHECKPOINT).unlink()
        else:
            shutil.rmtree(folder)
