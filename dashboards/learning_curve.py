"""What a learning curve says, as the cells of a table and as sentences, for the terminal and the report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

CAPTION = (
    "MAE on the validation set, kcal/mol: mean ± standard deviation over seeds; *: least mean of its column."
    " Exponent b of the power law n^-b, and its prediction for twice the data, with their 95 % intervals."
)


def curve_headings(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Headings of the table: a column for each size of the training set, named by the structures in it."""
    sizes = [
        f"{'all' if size['share'] == '1' else size['share']} ({size['structures']:,})"
        for size in values["sizes"]
    ]
    return ("trial", "architecture", "parameters", *sizes, "exponent", f"twice ({values['twice']:,})")


def curve_rows(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the table: the configurations, the best first, then the next larger network."""
    count = len(values["sizes"])
    sound = [each for each in values["configurations"] if each["failed"] is None]
    least = [min(statistics.fmean(each["errors"][i]) for each in sound) for i in range(count)]
    rows = []
    for each in values["configurations"]:
        head = (str(each["trial"]), each["architecture"], f"{each['parameters']:,}")
        if each["failed"] is not None:
            rows.append((*head, f"failed: {each['failed']}", *[""] * (count + 1)))
            continue
        cells = [
            _errors(errors) + (" *" if statistics.fmean(errors) == best else "")
            for errors, best in zip(each["errors"], least, strict=True)
        ]
        exponent, twice = each["law"]["exponent"], each["law"]["twice"]
        rows.append((*head, *cells, _interval(exponent, 2), _interval(twice, 3)))
    larger = values["larger"]
    error = f"failed: {larger['failed']}" if larger["failed"] else _errors(larger["errors"][-1])
    head = ("larger", larger["architecture"], f"{larger['parameters']:,}" if not larger["failed"] else "")
    rows.append((*head, *[""] * (count - 1), error, "", ""))
    return rows


def curve_sentences(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What twice the data would give, what the next larger network gives, and what follows."""
    best, whole, larger = values["configurations"][0], values["sizes"][-1]["structures"], values["larger"]
    now = statistics.fmean(best["errors"][-1])
    twice = best["law"]["twice"]
    data = (
        f"Twice the data: with {values['twice']:,} structures to train on, trial {best['trial']} would have"
        f" {twice['mean']:.3f} kcal/mol, {twice['mean'] / now - 1:+.0%} (95 % prediction interval of a"
        f" training: {twice['low']:.3f} to {twice['high']:.3f}); with {whole:,} it has {now:.3f}."
    )
    if larger["failed"] is not None:
        network = f"Next larger network: {larger['architecture']} could not be trained: {larger['failed']}."
    else:
        by, mean = larger["difference"], statistics.fmean(larger["errors"][-1])
        told = ", which cannot be told from no difference" if by["low"] <= 0 <= by["high"] else ""
        network = (
            f"Next larger network: {larger['architecture']} has {mean:.3f} kcal/mol with the same"
            f" {whole:,} structures, a difference of {by['mean']:+.3f} (95 % interval {by['low']:+.3f} to"
            f" {by['high']:+.3f}{told})."
        )
    conclusion = values["conclusion"]
    return data, network, f"{conclusion[0].upper()}{conclusion[1:]}."


def _errors(errors: list[float]) -> str:
    return f"{statistics.fmean(errors):.3f} ± {statistics.stdev(errors):.3f}"


def _interval(values: Mapping[str, float], digits: int) -> str:
    low, high = (f"{values[name]:.{digits}f}" for name in ("low", "high"))
    return f"{values['mean']:.{digits}f} ({low} to {high})"
