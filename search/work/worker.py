"""The worker: claims trials, and trains one or several at once until the study is done."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Literal, Protocol, TypeVar

from optuna.trial import FrozenTrial
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from search.plural import count_of
from search.propose.earlier import EarlierTrials, learned
from search.propose.enqueued import params_from_queue
from search.propose.finalists import missing_replicates
from search.propose.gain import FEWEST, expected_gain, states_of_results
from search.propose.pruners import promotion, rungs, stops
from search.propose.rows import flat_settings, scale_batches
from search.propose.samplers import Proposal, propose, repeated
from search.propose.seeds import training_seed
from search.propose.space import train_config
from search.study import StudyConfig, named_settings
from search.work.card_memory import CardMemory, shared_memory_of
from search.work.concurrent import run_concurrently
from search.work.environment import describe_worker, other_precision, resolve_attempt
from search.work.folders import from_checkpoint, take_folder
from search.work.processes import TrainingProcess
from search.work.reporting import AttemptReporter
from search.work.sizing import announce_concurrent_trials, choose_concurrent_trials
from search.work.stopping import StopRequest
from search.work.trial_log import TrialLog
from storage.blobs.place import open_blobs, resolve_artifact_location
from storage.database import Database
from storage.earlier_studies import earlier_studies
from storage.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnreachableError,
    LeaseLostError,
    StorageError,
    TrialClosedError,
)
from storage.lifecycle import (
    CLOSED,
    limit_to_begun,
    record_gain,
    results_without_gain,
    study_state,
    wrong_state,
)
from storage.ownership import own_study_folder
from storage.settings import attempt_logs
from storage.studies import Study, StudyProgress, study_progress
from storage.trials.attempts import PATIENCE, Attempt
from storage.trials.duplicate_configs import OriginalTrial
from storage.trials.heartbeat import Heartbeat
from storage.trials.paused import rung_results
from storage.trials.queue import (
    LEASE_SECONDS,
    Claim,
    WorkerInfo,
    add_replicates,
    claim_trial,
    may_choose_finalists,
    open_trials,
)
from storage.trials.views import metric_history, trial_rows
from trainer.config import SAME_NUMBERS, TrainConfig, compared_settings, dump_config, load_config
from trainer.errors import CheckpointError, ConfigError, DeviceError, TrainerError, TrainingFailed
from trainer.files import MODEL
from trainer.fingerprints import digest_of
from trainer.fitting.checkpoints import CHECKPOINT, saved_epoch
from trainer.fitting.devices import (
    current_device,
    device_errors_explained,
    find_device,
)
from trainer.fitting.scheduler import PackScheduler
from trainer.networks.widths import widths_text
from trainer.run import TrainingResult, run_training
from trainer.task import Task

logger = logging.getLogger("anitune")

POLL_SECONDS = 2.0
"""Interval at which a worker looks for a trial that another one gave up, s."""

R = TypeVar("R")

Train = Callable[..., TrainingResult]
"""A function like :func:`trainer.run.run_training` for the task of the study."""


@dataclass(frozen=True)
class TrialNews:
    """A change of a trial's state.

    Attributes
    ----------
    label : label of the row, in a study of rows
    architecture : layer sizes and activation, such as ``384-128-64-1 silu``
    epochs : number of epochs trained, of ``planned_epochs``
    value : best validation MAE, kcal/mol
    """

    study: str
    number: int
    label: str | None
    architecture: str
    state: Literal["running", "paused", "complete", "pruned", "failed", "interrupted", "lost"]
    planned_epochs: int
    epochs: int = 0
    value: float | None = None
    reason: str | None = None
    original: int | None = None
    """Number of the trial whose result this one reuses."""


class Watcher(Protocol):
    """Shows people what a worker does. Threads of several trials may call ``epoch`` at once."""

    def begun(self, news: TrialNews, progress: StudyProgress) -> None:
        """Show that a trial begins or continues."""

    def epoch(self, number: int, done: int) -> None:
        """Show the number of epochs of a running trial."""

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        """Show that a trial has ended, was handed back, or was taken over by another worker."""

    def left(self, progress: StudyProgress) -> None:
        """Show the study as the worker leaves it: trials that were paused may have ended as pruned."""


class SilentWatcher:
    """A watcher that shows nothing."""

    def begun(self, news: TrialNews, progress: StudyProgress) -> None:
        pass

    def epoch(self, number: int, done: int) -> None:
        pass

    def ended(self, news: TrialNews, progress: StudyProgress) -> None:
        pass

    def left(self, progress: StudyProgress) -> None:
        pass


class _TooEarly(Exception):  # noqa: N818  (nothing went wrong: the trial is for later)
    """The row that this one starts from, or the trial whose result it reuses, is still being trained."""


class Worker:
    """Trains the trials of one study in this process.

    The main thread, or each of several threads, trains one trial after the other. All threads are one worker
    in the records.

    Parameters
    ----------
    config : configuration of the study
    task : task on which all its trials are trained
    start_relay : called when a trial begins, to start the relay that delivers it to MLflow
    name : name of the worker; by default host and process id
    concurrent_trials : number of trials to train at once; None: as many as suit the machine
    leave : called before each trial; whether to begin and wait for no more trials. None: never
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
        concurrent_trials: int | None = 1,
        leave: Callable[[], bool] | None = None,
    ) -> None:
        self._database = database
        self._study = study
        self._config = scale_batches(config, len(task.split.train))
        self._task = task
        self._watcher = watcher
        self._stop = stop
        self._start_relay = start_relay
        self._rungs = rungs(config)
        self._promotion = promotion(config)
        self._device = find_device(config.training.get("device", TrainConfig.device))
        self._info = describe_worker(name, self._device)
        # On a GPU the trainings share batches; on the CPU each has its own process and core.
        self._scheduler = PackScheduler() if self._device.type == "cuda" else None
        self._concurrent_trials = concurrent_trials
        self._leave = leave
        self._claims = 0
        self._in_hand: dict[int, Claim] = {}
        self._said: str | None = None  # why there is no trial
        self._known: StudyProgress | None = None
        self._claiming = Lock()
        self._proposing = Lock()
        self._report_lock = Lock()

    def work(self) -> int:
        """Train until no trial is left, here or on other workers, or until asked to stop or leave.

        Returns
        -------
        How many trials were claimed.

        Raises
        ------
        TrainerError, StorageError, OSError
            if no trial can be trained here; the running ones are handed back. An error of a single trial
            fails that trial only, and the next one begins. After a DeviceError this process cannot train
            any more.
        """
        patiently(lambda: resolve_artifact_location(self._database))
        patiently(lambda: own_study_folder(self._database, self._study.name))
        with (
            device_errors_explained(self._device),
            current_device(self._device),
            shared_memory_of(self._device, self._database.settings.cards) as memory,
        ):
            concurrent_trials = self._concurrent_trials_needed(memory)
            if concurrent_trials > 1:
                # On the CPU threads of one process would slow each other down; on a GPU they share batches.
                work = self._work_in_process if self._scheduler is None else self._work_in_thread
                run_concurrently(concurrent_trials, work, self._stop)
            else:
                self._work_in_thread()
        if self._claims:
            self._watcher.left(self._progress())
        return self._claims

    def _concurrent_trials_needed(self, memory: CardMemory | None) -> int:
        left = self._trials_left()
        if self._concurrent_trials is None and left > 1:
            return choose_concurrent_trials(self._config, self._task, self._device, left, memory)
        concurrent_trials = max(1, min(self._concurrent_trials or 1, left))
        if concurrent_trials > 1:
            logger.info("%s: %d trials at once", self._study.name, concurrent_trials)
        if memory is not None and left > 0:
            announce_concurrent_trials(self._config, self._task, self._device, concurrent_trials, memory)
        return concurrent_trials

    def _trials_left(self) -> int:
        progress = self._progress()
        if progress.budget.trials is None:
            return sys.maxsize
        return progress.budget.trials - progress.ended

    def _work_in_thread(self) -> None:
        with current_device(self._device):  # each thread has its own current device
            self._train_claims(partial(run_training, self._task, scheduler=self._scheduler))

    def _work_in_process(self) -> None:
        with TrainingProcess(self._task.config, self._database.settings.features) as process:
            self._train_claims(process.train)

    def _train_claims(self, train: Train) -> None:
        while not self._stop.asked and not (self._leave and self._leave()):
            claim, to_come = self._claim()
            if claim is not None:
                self._train(claim, train)
            elif to_come and self._leave is None:
                self._stop.wait(POLL_SECONDS)
            else:
                return

    def _claim(self) -> tuple[Claim | None, bool]:
        """Claim the next trial; if there is none, return whether a later one may come for this thread."""
        with self._claiming:
            in_hand = dict(self._in_hand)
            if any(claim.last_chance for claim in in_hand.values()):
                return None, True
            early = self._early_rows()
            patiently(self._end_without_gain)

            def next_trial() -> Claim | None:
                return claim_trial(
                    self._database,
                    self._study,
                    self._info,
                    in_hand=in_hand,
                    early=early,
                    promotion=self._promotion,
                )

            claim = patiently(next_trial)
            if claim is None and not in_hand and patiently(self._add_replicates):
                claim = patiently(next_trial)
            if claim is not None:
                self._in_hand[claim.number] = claim
                self._claims += 1
                self._said = None
                return claim, True
            return None, self._may_come(in_hand)

    def _add_replicates(self) -> bool:
        """Add further seeds of the finalists, if nothing else is left to train; return whether it did so."""
        if not may_choose_finalists(self._database, self._study):
            return False
        trials = trial_rows(self._database, self._study)
        missing = missing_replicates(self._config, trials, len(self._task.split.validation))
        return add_replicates(self._database, self._study, self._info, missing, among=len(trials))

    def _end_without_gain(self) -> None:
        """End the study if that is a limit of it, and going on is not worth it by its results until now."""
        results = results_without_gain(self._database, self._study, states_of_results(self._config))
        if results is None or results < FEWEST:
            return
        with self._database.plain_errors():
            trials = self._study.optuna.get_trials(deepcopy=False)
        gain = expected_gain(self._config, trials, len(self._task.split.validation))
        if gain is not None and record_gain(self._database, self._study, gain):
            logger.info(
                "%s: ends, because going on could make the best trial better by at most %.3f kcal/mol, and"
                " less than %.3f kcal/mol cannot be told from chance",
                self._study.name,
                gain.gain,
                gain.margin,
            )

    def _may_come(self, in_hand: Collection[int]) -> bool:
        """Whether there may be a trial later, given that there is none now."""
        state = patiently(lambda: study_state(self._database, self._study))
        if state in CLOSED:
            self._say(str(wrong_state(self._study, state)))
            return False
        if state == "paused":
            self._say(f"waiting, {wrong_state(self._study, state)}")
            return True
        waited_for = patiently(lambda: open_trials(self._database, self._study)) - set(in_hand)
        if waited_for and not in_hand:
            others = count_of(len(waited_for), "trial")
            self._say(
                f"{self._study.name}: waiting for {others} of other workers; a dead worker"
                f" loses its trials within {LEASE_SECONDS:.0f} s"
            )
        if in_hand:  # its other trials may be the last before the finalists get further seeds
            return bool(waited_for) or self._config.finalists is not None
        return bool(waited_for) or patiently(lambda: may_choose_finalists(self._database, self._study))

    def _say(self, why: str) -> None:
        if why != self._said:
            logger.info("%s", why)
            self._said = why

    def _train(self, claim: Claim, train: Train) -> None:
        attempt = Attempt(self._database, self._study, claim)
        try:
            with Heartbeat(attempt) as heartbeat:
                news = self._run(attempt, heartbeat, train)
        except LeaseLostError as error:
            news = replace(self._news(claim), state="lost", reason=str(error))
        finally:
            del self._in_hand[claim.number]
        if news is not None:
            self._report_ended(news)

    def _run(self, attempt: Attempt, heartbeat: Heartbeat, train: Train) -> TrialNews | None:
        """Train the trial of an attempt; return None if the trial has to wait for another one."""
        news = self._news(attempt.claim)
        try:
            with self._claiming:
                patiently(lambda: self._start_relay(self._study))
            config, info = self._settings(attempt)
            news = replace(
                news,
                architecture=architecture(config, self._task),
                planned_epochs=config.epochs,
            )
            if (original := attempt.find_original()) is not None:
                return self._reuse_result(attempt, original, news)
            warm_start = self._warm_start(attempt.claim)
            folder = take_folder(
                self._database.settings.attempt_folder(self._study.name, news.number, attempt.claim.attempt)
            )
            attempt.record_artifacts(attempt_logs(folder))  # logs of earlier attempts
            log = TrialLog(folder)
            checkpoint = folder / CHECKPOINT
            fetched = attempt.fetch_checkpoint(checkpoint, after=saved_epoch(checkpoint))
            self._report_begun(news)
            recorded = self._recorded_epochs(attempt.claim)
            log.begin(attempt.claim.attempt, asdict(info), dump_config(config), max(recorded, default=0))
            if (said := other_precision(attempt.claim, info)) is not None:
                log.say(said)
            if fetched is not None:
                log.say(f"has fetched the checkpoint of epoch {fetched}")
            reporter = AttemptReporter(
                attempt,
                recorded,
                self._stops_at_rung,
                lambda: self._must_stop(heartbeat),
                log,
                checkpoint if self._database.settings.artifacts_elsewhere else None,
            )
            with log.errors():
                result = from_checkpoint(
                    folder,
                    f"{news.study}: trial {news.number}",
                    lambda: train(
                        config,
                        folder,
                        reporter,
                        # A replicate is trained in full, and no other trial is compared with it.
                        rungs=self._rungs if attempt.claim.replicate_of is None else (),
                        warm_start=warm_start,
                        progress=lambda stage, done, total: self._watcher.epoch(attempt.claim.number, done),
                    ),
                )
            log.say(f"{result.outcome} after {count_of(result.epochs, 'epoch')}")
            return self._end(attempt, folder, news, result)
        except (TrainingFailed, ConfigError, CheckpointError, TrialClosedError) as error:
            attempt.finish("failed", reason=str(error))
            return replace(news, state="failed", reason=str(error))
        except _TooEarly as error:
            attempt.hand_back(str(error))
            return None
        except (LeaseLostError, DatabaseError):
            raise  # nothing can be written about the trial
        except (TrainerError, StorageError, OSError, KeyboardInterrupt) as error:
            reason = str(error) or "the worker was interrupted"
            attempt.hand_back(reason, crashed=isinstance(error, DeviceError))
            raise
        except Exception as error:
            # This is a bug: the trial fails, so that no other worker runs into it again.
            attempt.finish("failed", reason=f"{type(error).__name__}: {error}")
            raise

    def _stops_at_rung(self, trial: FrozenTrial) -> bool:
        return stops(
            self._config, self._database.optuna, trial, lambda: rung_results(self._database, self._study)
        )

    def _must_stop(self, heartbeat: Heartbeat) -> bool:
        """Whether to hand the trial back. Raise if its lease was lost: its checkpoint is the new worker's."""
        if heartbeat.lost.is_set():
            raise LeaseLostError
        return self._stop.asked or heartbeat.unwanted.is_set()

    def _settings(self, attempt: Attempt) -> tuple[TrainConfig, WorkerInfo]:
        """Return the configuration, recorded by an earlier attempt or proposed now, resolved for the device.

        The configuration is recorded as requested. The resolved precision and the device are recorded with
        the attempt.
        """
        claim = attempt.claim
        if claim.config is not None:
            asked = load_config(TrainConfig, claim.config, f"the record of trial {claim.number}")
            config, info = self._resolved(asked, claim)
            attempt.record_device(info.device, config.precision)
            return config, info

        asked_for = params_from_queue(self._config, claim.asked_for)

        def choose() -> Proposal:
            with self._database.plain_errors():
                if claim.replicate_of is not None:
                    return repeated(self._study.optuna.get_trials(deepcopy=False)[claim.replicate_of])
                return propose(self._database.optuna, self._config, claim.number, asked_for, self._earlier)

        # One proposal at a time, so that the sampler knows the previous ones, whose trials still run.
        with self._proposing:
            proposal = patiently(choose)
            asked = train_config(self._config, proposal.params, claim.number)
            config, info = self._resolved(asked, claim)
            attempt.record_config(
                dump_config(asked),
                compared_settings(flat_settings(asked), SAME_NUMBERS),
                planned_epochs=asked.epochs,
                tags={
                    "arch": architecture(asked, self._task),
                    **self._row_tags(claim.number),
                    **({"learned_from": proposal.learned_from} if proposal.learned_from else {}),
                    **(
                        {"replicate_of": f"trial {claim.replicate_of}"}
                        if claim.replicate_of is not None
                        else {}
                    ),
                },
                settings=self._settings_digest(asked, claim),
                proposed=proposal.stored,
                sampler_state=proposal.sampler_state,
                ran_on=(info.device, config.precision),
            )
            if proposal.used_up:
                patiently(lambda: limit_to_begun(self._database, self._study))
                logger.info("%s: every configuration of its space was tried", self._study.name)
        return config, info

    @cached_property
    def _earlier(self) -> EarlierTrials:
        return learned(self._config, earlier_studies(self._database, self._study))

    def _resolved(self, asked: TrainConfig, claim: Claim) -> tuple[TrainConfig, WorkerInfo]:
        config, info = resolve_attempt(asked, self._info, claim)
        if asked.precision not in ("auto", config.precision):
            logger.warning(
                "%s: trial %d trains in %s, because there is no %s on %s",
                self._study.name,
                claim.number,
                config.precision,
                asked.precision,
                info.device,
            )
        return config, info

    def _settings_digest(self, config: TrainConfig, claim: Claim) -> str | None:
        """Digest the settings; equal for duplicate configurations, which may differ in the derived seed."""
        if self._config.repeats == "replicate" or claim.replicate_of is not None:
            return None
        compared = compared_settings(dump_config(config), SAME_NUMBERS)
        if config.seed == training_seed(self._config.seed, claim.number):
            del compared["seed"]
        # A setting that the study's record lacks was added later, and is the same in all trials of the study.
        recorded = named_settings(self._study.config) | {"seed"}
        compared = {name: value for name, value in compared.items() if name in recorded}
        return digest_of(compared | {"start_from": self._starts.get(claim.number)})

    def _reuse_result(self, attempt: Attempt, original: OriginalTrial, news: TrialNews) -> TrialNews:
        if original.state == "running":
            raise _TooEarly(f"waits for trial {original.number}, which has the same settings")
        if not attempt.reuse_result(original):
            raise _TooEarly(f"waits for trial {original.number}, which continues")
        return replace(
            news, state=original.state, epochs=original.epochs, value=original.value, original=original.number
        )

    def _end(self, attempt: Attempt, folder: Path, news: TrialNews, result: TrainingResult) -> TrialNews:
        value = result.best_val_mae if result.epochs > 0 else None
        news = replace(news, epochs=result.epochs, value=value)
        if result.outcome == "stopped":
            attempt.hand_back("the worker was asked to stop" if self._stop.asked else "the study was stopped")
            return replace(news, state="interrupted")
        attempt.record_artifacts({file.relative_to(folder).as_posix(): file for file in result.artifacts})
        if result.outcome == "pruned":
            reason = f"others were better after {count_of(result.epochs, 'epoch')}"
            if self._config.pruner is not None and self._config.pruner.pauses:
                most = self._config.pruner.max_paused
                stays = attempt.pause(result.best_val_mae, reason, result.metrics, most)
                return replace(news, state="paused" if stays else "pruned", reason=reason)
            attempt.finish("pruned", result.best_val_mae, reason=reason, summary=result.metrics)
            return replace(news, state="pruned", reason=reason)
        attempt.finish("complete", result.best_val_mae, summary=result.metrics)
        return replace(news, state="complete")

    def _early_rows(self) -> set[int]:
        """Find the rows that start from the weights of a row that has not ended."""
        starts = self._starts
        if not starts:
            return set()
        trials = patiently(lambda: trial_rows(self._database, self._study))
        ended = {trial.number for trial in trials if trial.state not in ("running", "interrupted")}
        return {number for number, start in starts.items() if start not in ended}

    def _warm_start(self, claim: Claim) -> Path | None:
        """Return the model file whose weights a row starts from; None if the row starts from random ones.

        Raises
        ------
        TrainingFailed
            if the other row has no weights.
        """
        number = self._starts.get(claim.number)
        if number is None:
            return None
        assert self._config.rows is not None
        label = self._config.rows[number].label
        trials = {trial.number: trial for trial in patiently(lambda: trial_rows(self._database, self._study))}
        if number not in trials or trials[number].state in ("running", "interrupted"):
            raise _TooEarly(f"waits for row {label}, whose weights it starts from")
        digests = [file.digest for file in trials[number].artifacts if file.path == MODEL]
        if not digests:
            raise TrainingFailed(
                f"row {label}, whose weights it starts from, has none: it {trials[number].state}"
            )
        blobs = open_blobs(self._database)
        blobs.verify(digests[0])
        return blobs.path(digests[0])

    @property
    def _starts(self) -> dict[int, int]:
        """Maps the number of each row with ``start_from`` to the number of the row that it names."""
        rows = self._config.rows or ()
        numbers = {row.label: number for number, row in enumerate(rows)}
        return {numbers[row.label]: numbers[row.start_from] for row in rows if row.start_from is not None}

    def _recorded_epochs(self, claim: Claim) -> dict[int, int]:
        if claim.attempt == 1:
            return {}
        history = patiently(lambda: metric_history(self._database, self._study, claim.number))
        return {row.step: row.time_ms for rows in history.values() for row in rows}

    def _row_tags(self, number: int) -> dict[str, str]:
        if self._config.rows is None:
            return {}
        row = self._config.rows[number]
        return {"row": row.label} | ({"start_from": row.start_from} if row.start_from is not None else {})

    def _news(self, claim: Claim) -> TrialNews:
        rows = self._config.rows or ()
        return TrialNews(
            study=self._study.name,
            number=claim.number,
            label=rows[claim.number].label if claim.number < len(rows) else None,
            architecture="",
            state="running",
            planned_epochs=self._config.epochs,
        )

    def _report_begun(self, news: TrialNews) -> None:
        with self._report_lock:
            self._known = self._known or self._progress()  # a new trial changes none of the values shown
            self._watcher.begun(news, self._known)

    def _report_ended(self, news: TrialNews) -> None:
        with self._report_lock:  # so that the number of ended trials only increases
            self._known = self._progress()
            self._watcher.ended(news, self._known)

    def _progress(self) -> StudyProgress:
        return patiently(lambda: study_progress(self._database, self._study))


def architecture(config: TrainConfig, task: Task) -> str:
    """Describe a network by its layer sizes, activation and features, such as ``384-128-64-1 silu``.

    Where widths differ by element, only hidden layers are described: ``H 160-96 | C 144-96 silu``.
    """
    output = " (output too)" if config.activate_output else ""
    hidden, inputs = config.hidden, task.of(config).features.length
    sizes = widths_text(hidden if isinstance(hidden, dict) else (inputs, *hidden, 1))
    features = f", features {config.features}" if config.features is not None else ""
    return f"{sizes} {config.activation}{output}{features}"


def patiently(action: Callable[[], R]) -> R:
    """Retry an action while the database is unreachable or busy, for as long as a training would wait."""
    retrying = Retrying(
        retry=retry_if_exception_type((DatabaseUnreachableError, DatabaseBusyError)),
        wait=wait_random_exponential(multiplier=0.1, max=10),
        stop=stop_after_delay(PATIENCE),
        reraise=True,
    )
    return retrying(action)
