"""The learning curve of a study: its best configurations on nested shares of the training set.

It answers what twice the data would give, and what the next larger network gives on the same data. Only the
validation set measures; the test set is not used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

from search.curve.larger import larger_hidden
from search.curve.power_law import PowerLaw, fit_power_law
from search.errors import SearchError
from search.promote.plan import Candidate, PlannedTraining, find_candidates, members, training_key
from search.promote.statistics import Interval, paired_interval
from search.promote.study_trainings import StudyTrainings
from search.study import StudyConfig
from search.work.sizing import concurrent_trials_by_memory
from search.work.stopping import StopRequest
from search.work.worker import architecture
from storage.database import Database
from storage.learning_curves import RecordedCurve, record_learning_curve
from storage.studies import Study
from storage.trainings import RecordedTraining
from storage.trials.views import trial_rows
from trainer.config import TrainConfig
from trainer.data.self_energies import fit_self_energies
from trainer.data.splits import share_training
from trainer.errors import DataError
from trainer.networks.widths import Hidden, widths_text
from trainer.progress import Progress
from trainer.task import Task

SHARES: Final = (Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(1))
"""Shares of the training set, each contained in the next."""

FEWEST: Final = 10
"""Fewest structures in the smallest share: with fewer, the error depends mostly on which ones these are."""


@dataclass(frozen=True)
class Options:
    """Options of a learning curve, which determine how much it trains.

    Attributes
    ----------
    top : maximum number of configurations
    seeds : number of seeds of each configuration on each share, 2 or more
    """

    top: int = 3
    seeds: int = 3


@dataclass(frozen=True)
class Size:
    """A share of the training set.

    Attributes
    ----------
    structures : number of structures in it
    fingerprint : digest of the division of the data
    """

    share: Fraction
    structures: int
    fingerprint: str


@dataclass(frozen=True)
class Configuration:
    """Errors of a configuration.

    Attributes
    ----------
    trial : number of the trial whose settings were used
    errors : validation MAE of each seed, kcal/mol, on each share that was trained on; empty if one failed
    failed : why a training failed
    """

    trial: int
    architecture: str
    parameters: int
    errors: tuple[tuple[float, ...], ...]
    failed: str | None = None

    @property
    def error(self) -> float:
        """Mean error on the whole training set, kcal/mol."""
        return sum(self.errors[-1]) / len(self.errors[-1])


@dataclass(frozen=True)
class Result:
    """What a learning curve says.

    Attributes
    ----------
    configurations : the best first, by the mean error on the whole training set; failed ones last
    larger : the best configuration with the next larger network, on the whole training set
    """

    options: Options
    sizes: tuple[Size, ...]
    configurations: tuple[Configuration, ...]
    larger: Configuration

    def values(self) -> dict[str, Any]:
        """Return plain JSON values, with what is computed from the errors."""
        best, twice = self.configurations[0], 2 * self.sizes[-1].structures
        law, difference = self._law(best), self._difference()
        return {
            "options": dataclasses.asdict(self.options),
            "sizes": [{"share": str(each.share), "structures": each.structures} for each in self.sizes],
            "twice": twice,
            "configurations": [self._configuration_values(each, twice) for each in self.configurations],
            "larger": {
                **dataclasses.asdict(self.larger),
                "difference": dataclasses.asdict(difference) if difference is not None else None,
            },
            "conclusion": _conclusion(best.error, law.predict(twice), difference),
        }

    def _configuration_values(self, configuration: Configuration, twice: int) -> dict[str, Any]:
        law = self._law(configuration) if configuration.failed is None else None
        return {
            **dataclasses.asdict(configuration),
            "law": law
            and {
                "factor": law.factor,
                "exponent": dataclasses.asdict(law.exponent),
                "twice": dataclasses.asdict(law.predict(twice)),
            },
        }

    def _law(self, configuration: Configuration) -> PowerLaw:
        points = [
            (size.structures, error)
            for size, errors in zip(self.sizes, configuration.errors, strict=True)
            for error in errors
        ]
        return fit_power_law([size for size, _ in points], [error for _, error in points])

    def _difference(self) -> Interval | None:
        """Return by how much the error of the larger network is above that of the best, paired by seeds."""
        if self.larger.failed is not None:
            return None
        pairs = zip(self.larger.errors[-1], self.configurations[0].errors[-1], strict=True)
        return paired_interval([its - best for its, best in pairs], 0.0)


class LearningCurve:
    """Measures the learning curve of a study. Each training is recorded, so that a later call continues.

    Parameters
    ----------
    config : configuration of the study
    task : task on which its trials were trained

    Raises
    ------
    SearchError
        if no trial is complete, or the training set is too small to be divided.
    """

    def __init__(
        self, database: Database, study: Study, config: StudyConfig, task: Task, options: Options
    ) -> None:
        self._database = database
        self._study = study
        self._config = config
        self._task = task
        self._trainings = StudyTrainings(database, study, task)
        self.options = options
        self.candidates = find_candidates(trial_rows(database, study), options.top)
        self.sizes = sizes_of(task, study.name)
        self._planned = {
            (candidate.trial, size.share): self._plan(candidate, size)
            for size in self.sizes
            for candidate in self.candidates
        }

    def estimate(self) -> tuple[int, float]:
        """Estimate the number of remaining trainings and their time, s.

        A training takes as many steps on each share, so about as long as the trial did.
        """
        waiting = self._trainings.waiting(self._on_shares())
        seconds = {each.trial: each.seconds for each in self.candidates}
        left = [*waiting, *(self._plan_larger() if not waiting else ())]
        left = self._trainings.waiting(left)
        count = len(left) + (self.options.seeds if waiting else 0)
        total = sum(seconds[each.trial] for each in left)
        if waiting:  # it is not known yet whose network will be made larger
            total += self.options.seeds * max(seconds.values())
        configs = [each.config for each in self.candidates]
        return count, total / concurrent_trials_by_memory(self._task, configs * len(self._planned))

    def run(self, stop: StopRequest, progress: Progress) -> RecordedCurve:
        """Train what remains, and record the result.

        Raises
        ------
        Stopped
            if asked to stop; the next call continues.
        SearchError
            if no configuration can be trained on all shares.
        PromotionBusyError
            if another process trains for this study.
        """
        with self._trainings.alone():
            self._trainings.train(self._on_shares(), stop, progress)
            self._trainings.train(self._plan_larger(), stop, progress)
            return record_learning_curve(self._database, self._study, self.result().values())

    def result(self) -> Result:
        """Return the result, once all trainings are recorded."""
        configurations = self._configurations()
        best = configurations[0]
        larger = self._read(best.trial, self._larger_architecture(best.trial), [self._plan_larger()])
        return Result(self.options, self.sizes, configurations, larger)

    def _on_shares(self) -> list[PlannedTraining]:
        return [each for group in self._planned.values() for each in group]

    def _plan(self, candidate: Candidate, size: Size) -> list[PlannedTraining]:
        """Plan the trainings of a configuration on a share, with the seeds of members of an ensemble."""
        whole = len(self._task.split.train)
        planned = []
        for each in members(candidate, self._task, self._config.seed, self.options.seeds):
            where = "all of" if size.share == 1 else f"{size.share} of"
            what = f"trial {candidate.trial}, {where} the training structures, seed {each.run + 1}"
            if size.share < 1:
                config = same_steps(each.config, whole, size.structures)
                task = self._task.of(config)
                key = training_key(config, task.fingerprints | {"split": size.fingerprint})
                each = dataclasses.replace(
                    each, key=key, kind="curve", config=config, share=float(size.share)
                )
            planned.append(dataclasses.replace(each, description=what))
        return planned

    def _plan_larger(self) -> list[PlannedTraining]:
        """Plan the trainings of the next larger network, once all others are recorded."""
        best = self._candidate(self._configurations()[0].trial)
        planned = []
        for each in members(best, self._task, self._config.seed, self.options.seeds):
            config = dataclasses.replace(each.config, hidden=self._larger(best))
            key = training_key(config, self._task.of(config).fingerprints)
            widths = widths_text(config.hidden)
            what = f"trial {best.trial} with the larger network {widths}, seed {each.run + 1}"
            planned.append(dataclasses.replace(each, key=key, kind="curve", config=config, description=what))
        return planned

    def _candidate(self, trial: int) -> Candidate:
        return next(each for each in self.candidates if each.trial == trial)

    def _larger(self, best: Candidate) -> Hidden:
        return larger_hidden(self._config.space, best.config.hidden)

    def _larger_architecture(self, trial: int) -> str:
        best = self._candidate(trial)
        config = dataclasses.replace(best.config, hidden=self._larger(best))
        return architecture(config, self._task)

    def _configurations(self) -> tuple[Configuration, ...]:
        """Read the results of all configurations, the best first."""
        read = [
            self._read(
                each.trial, each.architecture, [self._planned[each.trial, size.share] for size in self.sizes]
            )
            for each in self.candidates
        ]
        sound = sorted((each for each in read if each.failed is None), key=lambda each: each.error)
        if not sound:
            raise SearchError(f"no configuration could be trained on all shares: {read[0].failed}")
        return (*sound, *(each for each in read if each.failed is not None))

    def _read(
        self, trial: int, architecture: str, planned: Sequence[Sequence[PlannedTraining]]
    ) -> Configuration:
        done, failures = self._trainings.results(), self._trainings.failures()
        failed = [failures[each.key] for group in planned for each in group if each.key in failures]
        if failed:
            parameters = self._candidate(trial).parameters
            return Configuration(trial, architecture, parameters, (), failed[0])
        found: list[list[RecordedTraining]] = [[done[each.key] for each in group] for group in planned]
        return Configuration(
            trial,
            architecture,
            round(found[-1][0].summary["parameters"]),
            tuple(tuple(each.value for each in group) for group in found),
        )


def sizes_of(task: Task, study: str) -> tuple[Size, ...]:
    """Divide the training set of a task, after checking that each share can be trained on.

    Raises
    ------
    SearchError
        if a share leaves out an element, is too small, or is not larger than the one before.
    """
    sizes = []
    for share in SHARES:
        try:
            labels = share_training(task.dataset, task.split, task.config.split, float(share))
            fit_self_energies(task.dataset, labels, task.aev.elements)
        except DataError as error:
            raise SearchError(
                f"{study}: too little data for a learning curve: with {share} of its training set: {error}"
            ) from error
        sizes.append(Size(share, len(labels.train), labels.fingerprint))
    if sizes[0].structures < FEWEST or any(
        small.structures >= large.structures for small, large in pairwise(sizes)
    ):
        shares = ", ".join(f"{each.share} of its training set has {each.structures}" for each in sizes[:-1])
        raise SearchError(f"{study}: too few structures for a learning curve: {shares}")
    return tuple(sizes)


def same_steps(config: TrainConfig, structures: int, fewer: int) -> TrainConfig:
    """Return settings that take as many optimizer steps on fewer structures, in more epochs.

    Parameters
    ----------
    structures : number of structures that the settings are meant for
    """
    factor = math.ceil(structures / config.batch_size) / math.ceil(fewer / config.batch_size)
    patience = config.patience and math.ceil(config.patience * factor)
    return dataclasses.replace(config, epochs=math.ceil(config.epochs * factor), patience=patience)


def _conclusion(now: float, twice: Interval, larger: Interval | None) -> str:
    """Say which of more data and a larger network gives less error, if that can be told."""
    if larger is None:
        return "a training of the next larger network failed, so it cannot be compared with more data"
    if twice.high < now + larger.low:
        return "twice the data would give less error than the next larger network does"
    if now + larger.high < twice.low:
        return "the next larger network gives less error than twice the data would"
    return "whether twice the data or the next larger network gives less error is not clear"
