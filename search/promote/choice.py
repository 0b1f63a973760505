"""Choice by errors on folds: the cheapest candidate that cannot be distinguished from the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from search.errors import SearchError
from search.plural import trials_named
from search.promote.statistics import Interval, paired_interval, spread

FoldKind = Literal["structure", "molecule"]


@dataclass(frozen=True)
class FoldErrors:
    """Validation errors of one candidate on one kind of folds, kcal/mol.

    Attributes
    ----------
    values : best validation MAE of each run
    mean, spread : mean and standard deviation of the values
    difference : difference of the values from those of the best candidate, run by run; None: this is the best
    """

    values: tuple[float, ...]
    mean: float
    spread: float
    difference: Interval | None = None

    @property
    def told_apart(self) -> bool:
        """Whether this candidate can be distinguished from the best one."""
        return self.difference is not None and not self.difference.holds_zero


@dataclass(frozen=True)
class Result:
    """The result of a candidate on folds.

    Attributes
    ----------
    trial : number of the trial
    val_mae : validation MAE in the study, kcal/mol, by which it became a candidate
    parameters : number of weights and biases; decides between candidates that cannot be distinguished
    structures_per_second : speed of the training
    folds : errors by kind of folds; empty if a training failed
    failed : why a training failed
    """

    trial: int
    architecture: str
    val_mae: float
    parameters: int
    structures_per_second: float
    folds: dict[FoldKind, FoldErrors]
    failed: str | None = None

    def values(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = asdict(self)
        for kind, errors in self.folds.items():
            values["folds"][kind]["told_apart"] = errors.told_apart
        return values


@dataclass(frozen=True)
class Choice:
    """The chosen candidate.

    Attributes
    ----------
    results : results of all candidates, by their means on the decisive folds, the failed ones last
    number : number of the chosen trial
    reason : why this trial was chosen
    """

    results: tuple[Result, ...]
    number: int
    reason: str


def fold_errors(values: Sequence[float]) -> FoldErrors:
    """Summarize the errors of a candidate on one kind of folds, without a comparison."""
    return FoldErrors(tuple(values), sum(values) / len(values), spread(values))


def choose(results: Sequence[Result], decisive: FoldKind, folds: Mapping[FoldKind, int]) -> Choice:
    """Compare all candidates with the best one, run by run, and choose.

    The best candidate has the lowest mean on the folds of the ``decisive`` kind. Among it and the candidates
    that cannot be distinguished from it there, the one with the fewest parameters is chosen.

    Parameters
    ----------
    results : results of candidates; their runs of one kind have the same folds and seeds in the same order
    folds : number of folds by kind

    Raises
    ------
    SearchError
        if each candidate has a training that failed.
    """
    sound = [each for each in results if each.failed is None]
    if not sound:
        raise SearchError(f"no candidate could be trained on all folds: {results[0].failed}")
    ordered = sorted(sound, key=lambda each: (each.folds[decisive].mean, each.parameters, each.trial))
    best, *_ = ordered
    compared = [_compared(each, best, folds) for each in ordered]
    like_best = [each for each in compared if not each.folds[decisive].told_apart]
    chosen = min(like_best, key=lambda each: (each.parameters, each.folds[decisive].mean, each.trial))
    failed = [each for each in results if each.failed is not None]
    return Choice((*compared, *failed), chosen.trial, _reason(chosen, compared, like_best, decisive))


def _compared(result: Result, best: Result, folds: Mapping[FoldKind, int]) -> Result:
    if result is best:
        return result
    errors = {}
    for kind, own in result.folds.items():
        pairs = zip(own.values, best.folds[kind].values, strict=True)
        interval = paired_interval([mine - its for mine, its in pairs], 1 / (folds[kind] - 1))
        errors[kind] = replace(own, difference=interval)
    return replace(result, folds=errors)


def _reason(
    chosen: Result, compared: Sequence[Result], like_best: Sequence[Result], decisive: FoldKind
) -> str:
    best = compared[0]
    if len(compared) == 1:
        return f"trial {chosen.trial} is the only candidate"
    if len(like_best) == 1:
        return (
            f"trial {best.trial} has the lowest error on {decisive} folds, and can be told apart from all"
            " others"
        )
    others = trials_named([each.trial for each in like_best if each is not best])
    cannot = (
        f"trial {best.trial} has the lowest error on {decisive} folds, but cannot be told apart from {others}"
    )
    return f"{cannot}; of these, trial {chosen.trial} has the fewest parameters ({chosen.parameters:,})"
