"""Who is ahead, and by more than chance: places of a leaderboard from the records of a study.

Two things make the error of a configuration a matter of luck: the seed of its training, seen where equal
settings were trained several times, and which structures the validation part happens to hold. The first is
measured where there are replicates; the second follows from mean and root mean square of the errors, because
of n structures the mean of the sizes |e| has the standard error sqrt((RMSE^2 - MAE^2) / n). That holds for
independent structures: where a split keeps molecules whole it is not used.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from dashboards.record import StudyRecord, error_of
from storage.trials.duplicate_configs import DUPLICATE_TAG
from storage.trials.views import TrialRow

CONFIDENCE: Final = 1.96
"""Standard errors on each side of an interval of 95 %."""

NEAR: Final = 1.5
"""Replicates whose mean is above the best error by more than this factor do not say what is noise there."""

FEW_COMPLETE: Final = 30
"""With fewer complete trials the importance of a setting is mostly chance."""

#: Settings that do not make another configuration: seeds, and where and how it is computed.
_NOT_COMPARED: Final = ("seed", "checkpoint_seconds", "device", "threads")

_PERMUTATION: Final = ("complete", "paused", "pruned", "running", "interrupted", "failed")


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of the validation MAE over seeds, kcal/mol, of ``count`` trainings."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Noise:
    """How much the validation MAE of a configuration varies by chance.

    Attributes
    ----------
    kind
        ``seeds``: measured on equal settings with several seeds, pooled over ``groups`` of them near the
        best; ``structures``: only the standard error of the best trial on this validation part is known.
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
        """A difference of two trials below this says nothing (95 %), kcal/mol."""
        from scipy.special import stdtrit

        return float(stdtrit(self.freedom, 0.975)) * math.sqrt(2) * self.deviation


@dataclass(frozen=True)
class Place:
    """A line of a leaderboard.

    Attributes
    ----------
    rank
        Of complete trials of the study itself; None for all others.
    spread
        Over seeds, where equal settings were trained several times.
    interval
        Half the width of the 95 % confidence interval that a finite validation part gives, kcal/mol.
    in_noise
        Complete, and no more above the best trial than chance explains.
    """

    trial: TrialRow
    rank: int | None
    spread: Spread | None
    interval: float | None
    in_noise: bool


@dataclass(frozen=True)
class Leaderboard:
    """All places, the best first, and the noise that they are compared by.

    Attributes
    ----------
    noise
        None: it is not known.
    by_molecule
        The split keeps molecules whole. Errors of the structures of one are alike, so no interval follows
        from the number of structures.
    """

    places: tuple[Place, ...]
    noise: Noise | None
    by_molecule: bool


def leaderboard(record: StudyRecord, structures: int | None = None) -> Leaderboard:
    """All trials and the rows of the reference in their places.

    Complete trials come by validation MAE, then pruned ones by theirs, then the rest.

    Parameters
    ----------
    structures
        Of the validation part; None: as the records tell.
    """
    by_molecule = record.config.get("split", {}).get("by") == "molecule"
    count = None if by_molecule else structures or validation_structures(record)
    spreads = _spreads(record)
    noise = _noise(record, spreads, count)
    best = record.complete[0] if record.complete else None
    ranks = {trial.number: rank for rank, trial in enumerate(record.complete, start=1)}
    own = {id(trial) for trial in record.trials}

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
                and error_of(trial) - error_of(best) <= noise.margin
            ),
        )

    trials = sorted(
        [*record.trials, *record.rows], key=lambda trial: (_PERMUTATION.index(trial.state), error_of(trial))
    )
    return Leaderboard(tuple(place(trial) for trial in trials), noise, by_molecule)


def pareto_front(trials: Sequence[TrialRow], cost: Mapping[int, float]) -> list[TrialRow]:
    """Those that no other beats in both error and cost, the cheapest first.

    Parameters
    ----------
    cost
        By the number of a trial; less is better. Trials without a cost are left out.
    """
    front: list[TrialRow] = []
    known = [trial for trial in trials if trial.number in cost]
    for trial in sorted(known, key=lambda trial: (cost[trial.number], error_of(trial))):
        if not front or error_of(trial) < error_of(front[-1]):
            front.append(trial)
    return front


def validation_structures(record: StudyRecord) -> int | None:
    """About how many structures the validation part has; None before a trial has ended.

    By the size of the training part, which the speed of a trial tells, and the shares of the split. With
    whole molecules in one part it is an estimate.
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
    """Of the validation MAE of a trial, kcal/mol, since the validation part is finite; None: not known."""
    mae, rmse = trial.summary.get("val/mae_kcalmol"), trial.summary.get("val/rmse_kcalmol")
    if structures is None or mae is None or rmse is None:
        return None
    return math.sqrt(max(0.0, rmse**2 - mae**2) / structures)


def _spreads(record: StudyRecord) -> dict[str, Spread]:
    """By settings: the spread of those that were trained with several seeds, by trials or a promotion."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for home in filter(None, (record, record.reference)):
        for trial in home.trials:
            # What took another's result was not trained, and says nothing of seeds.
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
    if near := [spread for spread in spreads.values() if spread.mean <= NEAR * error_of(best)]:
        freedom = sum(spread.count - 1 for spread in near)
        squares = sum((spread.count - 1) * spread.deviation**2 for spread in near)
        return Noise("seeds", math.sqrt(squares / freedom), len(near), freedom)
    error = standard_error(best, structures)
    return Noise("structures", error) if error is not None else None


def _settings(trial: TrialRow) -> str:
    """Equal for trials that differ by their seed alone."""
    config = {key: value for key, value in (trial.config or {}).items() if key not in _NOT_COMPARED}
    return json.dumps([config, trial.tags.get("start_from")], sort_keys=True)
