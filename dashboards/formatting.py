"""Numbers and states as text, the same wherever people read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dashboards.printable import printable
from storage.objectives import OBJECTIVES, objective_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dashboards.ranking import Leaderboard, Noise
    from storage.earlier_studies import EarlierStudy
    from storage.studies import Budget, StudySummary
    from storage.trials.front import Front
    from storage.trials.views import TrialRow

_MARKUP: Final = re.compile(r"([\\`*_\[\]<>|#~&$])")
_CODE: Final = re.compile(r"[\w .,+=:/-]+")
_FENCE: Final = re.compile(r"`{3,}")


def markdown_text(text: str) -> str:
    """Text of other people on one line, escaped so that Markdown shows it as it is; also in a table cell."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(text.split())))


def markdown_code(text: str) -> str:
    """A word of other people as code; as escaped text if it holds characters that could end the code."""
    return f"`{text}`" if _CODE.fullmatch(text) else markdown_text(text)


def markdown_block(text: str) -> str:
    """Lines to be copied, between fences longer than any that the lines contain."""
    fence = "`" * max([3, *(len(found) + 1 for found in _FENCE.findall(text))])
    return f"{fence}\n{text.rstrip()}\n{fence}"


def trained_on(trial: TrialRow) -> str:
    """Device and precision of the attempts at a trial, in order and without repetitions."""
    places = [(each.device, each.precision) for each in trial.attempts]
    places = places or [(trial.worker.device, trial.worker.precision)]
    return ", then ".join(
        f"{device} in {precision}" if precision is not None else device
        for device, precision in dict.fromkeys(places)
    )


def duration(seconds: float) -> str:
    """Seconds in the one or two units that fit their size."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_number(value: float | None, digits: int = 0) -> str:
    """A number with a comma between thousands; empty for None."""
    return "" if value is None else f"{value:,.{digits}f}"


def format_budget(budget: Budget) -> str:
    """The limits of a study."""
    limits = [f"{budget.trials:,} trials"] if budget.trials is not None else []
    limits += [duration(budget.seconds)] if budget.seconds is not None else []
    limits += [f"{budget.epochs:,} epochs"] if budget.epochs is not None else []
    limits += ["until no gain is expected"] if budget.until_no_gain else []
    return ", ".join(limits) or "none"


def format_seeds(seeds: int) -> str:
    """What follows an error that is the mean over several seeds."""
    return f", mean over {seeds} seeds" if seeds > 1 else ""


def format_gain(summary: StudySummary) -> str | None:
    """How much better the best trial could become, and whether the study ended for that; None: not known."""
    gain = summary.gain
    if gain is None:
        return None
    ended = ", so the study ends" if gain.is_noise and summary.budget.until_no_gain else ""
    return (
        f"at most {gain.gain:.3f} kcal/mol (estimated from the results of {gain.results} trials; less than"
        f" {gain.margin:.3f} kcal/mol cannot be told from chance{ended})"
    )


def format_earlier(earlier: EarlierStudy, facts: Mapping[str, str] | None = None) -> str:
    """What a study has learned from an earlier one, and from which copy of its results.

    Parameters
    ----------
    facts
        Fingerprints of the data and the split of the study that learns; None or empty: not known yet.
    """
    others = [name for name, fact in earlier.facts.items() if (facts or {}).get(name, fact) != fact]
    where = f", on another {' and '.join(others)}" if others else ""
    return (
        f"{earlier.name}: {len(earlier.results):,} of its {earlier.trials:,} trials{where}"
        f" (copy {earlier.digest[:12]})"
    )


def study_state_line(summary: StudySummary) -> str:
    """The state of a study in a few words."""
    if summary.state != "open":
        return summary.state
    if summary.trials["running"]:
        return "running"
    if _is_spent(summary) and not (summary.trials["interrupted"] or summary.trials["paused"]):
        return "finished"
    return "waiting for workers"


def _is_spent(summary: StudySummary) -> bool:
    """Whether a limit of the study is reached, so that no more trials begin."""
    budget = summary.budget
    spent = (
        (sum(summary.trials.values()), budget.trials),
        (summary.seconds, budget.seconds),
        (summary.epochs, budget.epochs),
    )
    return any(limit is not None and amount >= limit for amount, limit in spent)


def format_front(front: Front, objectives: Sequence[str]) -> str:
    """The Pareto front of a study of several objectives in a sentence, with the trial at its knee."""
    labels = [OBJECTIVES[name].label.partition(", ") for name in objectives]
    *others, last = [f"{label} ({unit})" if unit else label for label, _, unit in labels]
    start = f"Pareto front of {', '.join(others)} and {last}"
    if (knee := front.knee) is None:
        return f"{start}: empty, as no trial is complete yet."
    assert knee.value is not None
    values = objective_values(objectives[1:], knee.value, knee.summary)
    costs = "".join(
        f", {label} {value:.3g} {unit}" if unit else f", {value:,.0f} {label}"
        for (label, _, unit), value in zip(labels[1:], values, strict=True)
    )
    return (
        f"{start}: {len(front.trials)} trial{'s' if len(front.trials) != 1 else ''}; its knee is trial"
        f" {knee.number} with {knee.value:.3f} kcal/mol{costs}."
    )


def format_noise(board: Leaderboard) -> str:
    """What difference between two trials is more than chance, and how that is known."""
    if not board.by_molecule:
        return _noise(board.noise)
    return (
        f"{_noise(board.noise)} No interval is given for an error: the split keeps molecules whole, and"
        " errors of the structures of one molecule are correlated, so an interval from their number would be"
        " too narrow; trainings with"
        " several seeds (repeats: replicate) or anitune promote show what a difference means."
    )


def _noise(noise: Noise | None) -> str:
    if noise is None:
        return "It is not known yet how much of a difference is chance."
    if noise.kind == "seeds":
        return (
            f"Equal settings differ by {noise.deviation:.3f} kcal/mol (standard deviation over seeds, from"
            f" {noise.groups} {'set' if noise.groups == 1 else 'sets'} of replicates near the best): two"
            f" trials less than {noise.margin:.3f} kcal/mol apart cannot be told apart (95 %)."
        )
    return (
        "No settings near the best were trained with several seeds, so the spread over seeds is not known."
        f" The finite validation set alone makes two trials less than {noise.margin:.3f} kcal/mol apart"
        " indistinguishable (95 %)."
    )
