"""Leaderboard of a study: ranks of its trials, and which differences are more than chance.

Two things make the error of a configuration a matter of chance: the seed of its training, and which
structures the validation set happens to hold. The first is measured where equal settings were trained several
times; the second follows from mean and root mean square of the errors, because for n structures the mean of
the absolute errors has the standard error sqrt((RMSE^2 - MAE^2) / n). That holds for independent structures,
so it is not used where a split keeps molecules whole.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from dashboards.record import StudyRecord
from storage.trials.duplicate_configs import DUPLICATE_TAG
from storage.trials.views import TrialRow, error_of, leaderboard_order, mean_errors
from trainer.config import SAME_CONFIGURATION, compared_settings, default_settings
from trainer.evaluation.noise import NEAR, mae_standard_error, noise_margin, pooled_deviation

CONFIDENCE: Final = 1.96
"""Standard errors on each side of a 95 % interval."""

FEW_COMPLETE: Final = 30
"""With fewer complete trials the importance of a setting is mostly chance."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of the validation MAE over seeds, kcal/mol, from ``count`` trainings."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Noise:
    """How much the validation MAE of a configuration varies by chance.

    Attributes
    ----------
    kind
        ``seeds``: measured on equal settings with several seeds, pooled over ``groups`` such sets near the
        best; ``structures``: only the standard error of the best trial on this validation set is known.
    deviation
        Standard deviation of one value, kcal/mol.
    freedom
        Degrees of freedom that the deviation was estimated with.
    """

    kind: Literal["seeds", "structures"]
    deviation: float
    groups: int = 0
    freedom: float = math.inf

    @property
    def margin(self) -> float:
        """Two trials that differ by less than this cannot be told apart (95 %), kcal/mol."""
        return noise_margin(self.deviation, self.freedom)


@dataclass(frozen=True)
class Place:
    """A line of a leaderboard.

    Attributes
    ----------
    rank
        Rank among the complete trials of the study itself; None for all others.
    spread
        Spread over seeds, where equal settings were trained several times.
    interval
        Half the width of the 95 % confidence interval, which comes from the finite validation set, kcal/mol.
    in_noise
        Whether the trial is complete, and no more above the best than chance explains.
    front
        ``front`` or ``knee`` if it is on the Pareto front of a study of several objectives, else empty.
    """

    trial: TrialRow
    rank: int | None
    spread: Spread | None
    interval: float | None
    in_noise: bool
    front: str


@dataclass(frozen=True)
class Leaderboard:
    """All places, the best first, and the noise of their errors.

    Attributes
    ----------
    noise
        None if it is not known.
    by_molecule
        Whether the split keeps molecules whole. Errors of the structures of one molecule are alike, so no
        interval follows from the number of structures.
    """

    places: tuple[Place, ...]
    noise: Noise | None
    by_molecule: bool


def leaderboard(record: StudyRecord, structures: int | None = None) -> Leaderboard:
    """Rank all trials, together with the rows of the reference.

    Complete trials come first, by validation MAE, then pruned ones by theirs, then the rest. A trial with
    replicates is ranked by the mean over its seeds, and they follow it without a rank.

    Parameters
    ----------
    structures
        Number of structures in the validation set; None: estimate it from the records.
    """
    by_molecule = record.config.get("split", {}).get("by") == "molecule"
    count = None if by_molecule else structures or validation_structures(record)
    spreads = _spreads(record)
    noise = _noise(record, spreads, count)
    best = record.complete[0] if record.complete else None
    ranks = {trial.number: rank for rank, trial in enumerate(record.complete, start=1)}
    own = {id(trial) for trial in record.trials}
    trials = [*record.trials, *record.rows]
    ranked_by = mean_errors(trials)

    def place(trial: TrialRow) -> Place:
        complete = trial.state == "complete"
        error = standard_error(trial, count)
        return Place(
            trial=trial,
            rank=ranks.get(trial.number) if id(trial) in own else None,
            spread=spreads.get(_settings(trial)) if complete else None,
            interval=CONFIDENCE * error if complete and error is not None else None,
            in_noise=(
                complete
                and best is not None
                and noise is not None
                and ranked_by(trial) - ranked_by(best) <= noise.margin
            ),
            front=record.front.mark(trial) if record.front is not None else "",
        )

    return Leaderboard(tuple(place(trial) for trial in leaderboard_order(trials)), noise, by_molecule)


def validation_structures(record: StudyRecord) -> int | None:
    """Estimate how many structures the validation set has; None before a trial has ended.

    The estimate uses the size of the training set, which follows from the speed of a trial, and the shares of
    the split. It is rough where the split keeps molecules whole.
    """
    for trial in [*record.complete, *record.rows]:
        rate, seconds = trial.summary.get("structures_per_second"), trial.summary.get("seconds")
        if rate and seconds and trial.epochs:
            train = rate * seconds / trial.epochs
            split: dict[str, Any] = record.config.get("split") or {}
            if folds := split.get("folds"):
                return max(1, round(train / (int(folds) - 1)))
            training, validation, _ = split.get("fractions") or (0.8, 0.1, 0.1)
            return max(1, round(train * float(validation) / float(training)))
    return None


def standard_error(trial: TrialRow, structures: int | None) -> float | None:
    """Standard error of a trial's validation MAE on the finite validation set, kcal/mol; None: not known."""
    mae, rmse = trial.summary.get("val/mae_kcalmol"), trial.summary.get("val/rmse_kcalmol")
    if structures is None or mae is None or rmse is None:
        return None
    return mae_standard_error(mae, rmse, structures)


def _spreads(record: StudyRecord) -> dict[str, Spread]:
    """Spread of equal settings trained with several seeds, by trials or a promotion; by settings."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for home in filter(None, (record, record.reference)):
        for trial in home.trials:
            # A duplicate configuration was not trained, and says nothing about seeds.
            if trial.state == "complete" and trial.value is not None and DUPLICATE_TAG not in trial.tags:
                values[_settings(trial)].append(trial.value)
        by_number = {trial.number: trial for trial in home.trials}
        for member in home.members:
            values[_settings(by_number[member.number])].append(member.value)
    return {
        settings: Spread(statistics.fmean(found), statistics.stdev(found), len(found))
        for settings, found in values.items()
        if len(found) > 1
    }


def _noise(record: StudyRecord, spreads: Mapping[str, Spread], structures: int | None) -> Noise | None:
    if not record.complete:
        return None
    best = record.complete[0]
    near = [spread for spread in spreads.values() if spread.mean <= NEAR * error_of(best)]
    if (of_seeds := pooled_deviation((spread.deviation, spread.count) for spread in near)) is not None:
        deviation, freedom = of_seeds
        return Noise("seeds", deviation, len(near), freedom)
    error = standard_error(best, structures)
    return Noise("structures", error) if error is not None else None


def _settings(trial: TrialRow) -> str:
    """A key that is equal for trials of the same configuration."""
    complete = {**default_settings(), **(trial.config or {})}  # an older trial may lack a setting
    config = compared_settings(complete, SAME_CONFIGURATION)
    return json.dumps([config, trial.tags.get("start_from")], sort_keys=True)
