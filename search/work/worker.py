"""The worker: claims trials, one after the other, and trains them until the study is done."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Literal, Protocol, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from search.propose.pruners import rungs, should_prune
from search.propose.rows import flat_settings, scale_batches
from search.propose.samplers import propose
from search.propose.space import train_config
from search.study import StudyConfig
from search.work.environment import describe_worker
from search.work.reporting import AttemptReporter
from search.work.stopping import StopRequest
from storage.blobs.store import BlobStore
from storage.database import Database
from storage.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnreachableError,
    LeaseLostError,
    StorageError,
    TrialClosedError,
)
from storage.studies import Study, StudySummary, summarize_study
from storage.trials.attempts import PATIENCE, Attempt, LeaseKeeper
from storage.trials.queue import LEASE_SECONDS, Claim, claim_trial, open_trials
from storage.trials.views import metric_history, trial_rows
from trainer.config import TrainConfig, dump_config, load_config
from trainer.errors import CheckpointError, ConfigError, TrainerError, TrainingFailed
from trainer.fitting.devices import find_device
from trainer.run import TrainingResult, run_training
from trainer.task import Task

logger = logging.getLogger("anitune")

POLL_SECONDS = 2.0
"""How often a worker looks for a trial that another one gave up, s."""

MODEL = "model.safetensors"

NOT_COMPARED = ("checkpoint_seconds",)
"""Settings of a training that change nothing of its result."""

R = TypeVar("R")


@dataclass(frozen=True)
class TrialNews:
    """What has just become of a trial.

    Attributes
    ----------
    label : of the row, in a study of rows
    architecture : as ``384-128-64-1 silu``
    epochs : trained, of those planned
    value : best validation MAE, kcal/mol
    """

    study: str
    number: int
    label: str | None
    architecture: str
    state: Literal["running", "complete", "pruned", "failed", "interrupted"]
    planned_epochs: int
    epochs: int = 0
    value: float | None = None
    reason: str | None = None


class Watcher(Protocol):
    """Shows a person what a worker does."""

    def begun(self, news: TrialNews, summary: StudySummary) -> None:
        """A trial begins, or goes on."""

    def epoch(self, done: int) -> None:
        """The present trial has so many epochs."""

    def ended(self, news: TrialNews, summary: StudySummary) -> None:
        """A trial has ended, or was handed back."""


class _TooEarly(Exception):  # noqa: N818  (nothing went wrong: the trial is for later)
    """The row that this one starts from is still being trained."""


class Worker:
    """Trains the trials of one study in this process.

    Parameters
    ----------
    config : of the study
    task : what all its trials are trained on
    start_relay : called when a trial begins: sees to it that the tracking server will hear of it
    name : what people call the worker; by default host and process id
    """

    def __init__(
        self,
        database: Database,
        study: Study,
        config: StudyConfig,
        task: Task,
        watcher: Watcher,
        stop: StopRequest,
        start_relay: Callable[[Study], object],
        name: str | None = None,
    ) -> None:
        self._database = database
        self._study = study
        self._config = scale_batches(config, len(task.split.train))
        self._task = task
        self._watcher = watcher
        self._stop = stop
        self._start_relay = start_relay
        self._rungs = rungs(config)
        self._info = describe_worker(name, find_device(config.training.get("device", TrainConfig.device)))

    def work(self) -> None:
        """Train until no trial is left, here or elsewhere, or until asked to stop.

        Raises
        ------
        TrainerError, StorageError
            if no trial can be trained here: the present one is handed back. What is wrong with a
            trial alone fails that trial, and the next one begins.
        """
        waiting = False
        while not self._stop.asked:
            claim = _patiently(lambda: claim_trial(self._database, self._study, self._info))
            if claim is not None:
                waiting = False
                self._start_relay(self._study)
                self._train(claim)
            elif left := _patiently(lambda: open_trials(self._database, self._study)):
                if not waiting:
                    logger.info(
                        "%s: waiting for %d trials of other workers; a dead one loses its own within %.0f s",
                        self._study.name,
                        left,
                        LEASE_SECONDS,
                    )
                waiting = True
                self._stop.wait(POLL_SECONDS)
            else:
                return

    def _train(self, claim: Claim) -> None:
        attempt = Attempt(self._database, self._study, claim)
        try:
            with LeaseKeeper(attempt) as keeper:
                self._run(attempt, keeper.lost)
        except LeaseLostError as error:
            logger.warning("%s: %s", self._study.name, error)

    def _run(self, attempt: Attempt, lost: Event) -> None:
        news = self._news(attempt.claim)
        try:
            config = self._settings(attempt)
            news = replace(
                news,
                architecture=architecture(config, self._task.features.length),
                planned_epochs=config.epochs,
            )
            folder = self._database.settings.trial_folder(self._study.name, news.number)
            warm_start = self._warm_start(attempt.claim)
            self._watcher.begun(news, self._summary())
            result = run_training(
                self._task,
                config,
                folder,
                AttemptReporter(
                    attempt,
                    self._recorded_epochs(attempt.claim),
                    lambda trial: should_prune(self._database.optuna, self._config, trial),
                    lambda: self._stop.asked or lost.is_set(),
                ),
                rungs=self._rungs,
                warm_start=warm_start,
                progress=lambda stage, done, total: self._watcher.epoch(done),
            )
            news = self._end(attempt, folder, news, result)
        except (TrainingFailed, ConfigError, CheckpointError, TrialClosedError) as error:
            attempt.finish("failed", reason=str(error))
            news = replace(news, state="failed", reason=str(error))
        except _TooEarly as error:
            attempt.hand_back(str(error))
            self._stop.wait(POLL_SECONDS)
            return
        except (LeaseLostError, DatabaseError):
            raise  # nothing can be written about the trial
        except (TrainerError, StorageError, KeyboardInterrupt) as error:
            attempt.hand_back(str(error) or "the worker was interrupted")
            raise
        except Exception as error:
            # A fault of the program: it must not meet the next worker again.
            attempt.finish("failed", reason=f"{type(error).__name__}: {error}")
            raise
        self._watcher.ended(news, self._summary())

    def _settings(self, attempt: Attempt) -> TrainConfig:
        """The configuration of the trial: as an earlier attempt recorded it, or proposed now."""
        claim = attempt.claim
        if claim.config is not None:
            return load_config(TrainConfig, claim.config, f"the record of trial {claim.number}")

        def choose() -> TrainConfig:
            with self._database.plain_errors(), attempt.fenced():
                params = propose(self._database.optuna, self._config, claim.optuna_trial_id, claim.number)
            return train_config(self._config, params, claim.number)

        config = _patiently(choose)
        attempt.record_config(
            dump_config(config),
            {name: value for name, value in flat_settings(config).items() if name not in NOT_COMPARED},
            planned_epochs=config.epochs,
            tags={"arch": architecture(config, self._task.features.length), **self._row_tags(claim.number)},
        )
        return config

    def _end(self, attempt: Attempt, folder: Path, news: TrialNews, result: TrainingResult) -> TrialNews:
        news = replace(news, epochs=result.epochs, value=result.best_val_mae)
        if result.outcome == "stopped":
            attempt.hand_back("the worker was asked to stop")
            return replace(news, state="interrupted")
        for file in result.artifacts:
            attempt.record_artifact(file.relative_to(folder).as_posix(), file)
        if result.outcome == "pruned":
            reason = f"others were better after {result.epochs} epochs"
            attempt.finish("pruned", result.best_val_mae, reason=reason, summary=result.metrics)
            return replace(news, state="pruned", reason=reason)
        attempt.finish("complete", result.best_val_mae, summary=result.metrics)
        return replace(news, state="complete")

    def _warm_start(self, claim: Claim) -> Path | None:
        """The weights that a row starts from.

        Raises
        ------
        TrainingFailed
            if there are none.
        """
        rows = self._config.rows or ()
        label = rows[claim.number].start_from if rows else None
        if label is None:
            return None
        number = [row.label for row in rows].index(label)
        trials = {trial.number: trial for trial in trial_rows(self._database, self._study)}
        if number not in trials or trials[number].state in ("running", "interrupted"):
            raise _TooEarly(f"waits for row {label}, whose weights it starts from")
        digests = [file.digest for file in trials[number].artifacts if file.path == MODEL]
        if not digests:
            raise TrainingFailed(
                f"row {label}, whose weights it starts from, has none: it {trials[number].state}"
            )
        return BlobStore(self._database.settings.artifacts).path(digests[0])

    def _recorded_epochs(self, claim: Claim) -> dict[int, int]:
        if claim.attempt == 1:
            return {}
        history = _patiently(lambda: metric_history(self._database, self._study, claim.number))
        return {row.step: row.time_ms for rows in history.values() for row in rows}

    def _row_tags(self, number: int) -> dict[str, str]:
        if self._config.rows is None:
            return {}
        row = self._config.rows[number]
        return {"row": row.label} | ({"start_from": row.start_from} if row.start_from is not None else {})

    def _news(self, claim: Claim) -> TrialNews:
        return TrialNews(
            study=self._study.name,
            number=claim.number,
            label=self._config.rows[claim.number].label if self._config.rows is not None else None,
            architecture="",
            state="running",
            planned_epochs=self._config.epochs,
        )

    def _summary(self) -> StudySummary:
        return _patiently(lambda: summarize_study(self._database, self._study))


def architecture(config: TrainConfig, inputs: int) -> str:
    """A network as one word, as ``384-128-64-1 silu``: sizes of its layers and activation."""
    output = " (output too)" if config.activate_output else ""
    return f"{'-'.join(map(str, (inputs, *config.hidden, 1)))} {config.activation}{output}"


def _patiently(action: Callable[[], R]) -> R:
    """Repeat what can be repeated while the database is away, as a training does."""
    retrying = Retrying(
        retry=retry_if_exception_type((DatabaseUnreachableError, DatabaseBusyError)),
        wait=wait_random_exponential(multiplier=0.1, max=10),
        stop=stop_after_delay(PATIENCE),
        reraise=True,
    )
    return retrying(action)
