"""What a learning curve says, as the cells of a table and as sentences, for the terminal and the report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, Final

CAPTION: Final = (
    "MAE on the validation set, kcal/mol: mean ± standard deviation over seeds; *: least mean of its row."
    " Exponent b of the power law n^-b, and its prediction for twice the data, with their 95 % intervals."
)


def curve_headings(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Headings of the table: a column for each configuration, the best first, and the next larger network."""
    trials = [f"trial {each['trial']}" for each in values["configurations"]]
    return ("structures", *trials, "larger network")


def curve_rows(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the table: what each column is, its errors by the size of the training set, its power law."""
    columns = [*values["configurations"], values["larger"]]
    laws = [each.get("law") for each in columns]
    return [
        ("architecture", *(each["architecture"] for each in columns)),
        ("parameters", *("" if each["failed"] else f"{each['parameters']:,}" for each in columns)),
        *(_size_row(values, columns, place) for place in range(-len(values["sizes"]), 0)),
        ("exponent", *(_interval(law["exponent"], 2) if law else "" for law in laws)),
        (f"twice: {values['twice']:,}", *(_interval(law["twice"], 3) if law else "" for law in laws)),
    ]


def _size_row(values: Mapping[str, Any], columns: list[dict[str, Any]], place: int) -> tuple[str, ...]:
    """The errors on a share of the training set; the place of the share is counted from the end."""
    size = values["sizes"][place]
    errors = [each["errors"][place] if len(each["errors"]) >= -place else [] for each in columns]
    least = min(statistics.fmean(each) for each in errors[:-1] if each)
    cells = [_cell(each, column["failed"], least) for each, column in zip(errors, columns, strict=True)]
    share = "all" if size["share"] == "1" else size["share"]
    return (f"{share}: {size['structures']:,}", *cells)


def _cell(errors: list[float], failed: str | None, least: float) -> str:
    if not errors:
        return f"failed: {failed}" if failed else ""
    mean = statistics.fmean(errors)
    return f"{mean:.3f} ± {statistics.stdev(errors):.3f}{' *' if mean == least else ''}"


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
        told = ", so there may be none" if by["low"] <= 0 <= by["high"] else ""
        network = (
            f"Next larger network: {larger['architecture']} has {mean:.3f} kcal/mol with the same"
            f" {whole:,} structures, a difference of {by['mean']:+.3f} (95 % interval {by['low']:+.3f} to"
            f" {by['high']:+.3f}{told})."
        )
    conclusion = values["conclusion"]
    return data, network, f"{conclusion[0].upper()}{conclusion[1:]}."


def _interval(values: Mapping[str, float], digits: int) -> str:
    low, high = (f"{values[name]:.{digits}f}" for name in ("low", "high"))
    return f"{values['mean']:.{digits}f} ({low} to {high})"
