"""Compositions that others determine: a linear fit of energies by element cannot predict any beyond those.

If all molecules have two H for each O, only 2 E(H) + E(O) is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import lcm

Balance = dict[str, int]
"""A linear combination of numbers of atoms that is zero in every molecule: {H: 1, O: -2}."""


def balances(compositions: Iterable[Mapping[str, int]], elements: Sequence[str]) -> tuple[Balance, ...]:
    """Return a basis of what all compositions have in common; empty if they determine each element.

    The arithmetic is exact.
    """
    rows: dict[int, list[Fraction]] = {}  # in reduced form, by the column of the leading 1
    for counts in {tuple(composition.get(e, 0) for e in elements) for composition in compositions}:
        row = [Fraction(count) for count in counts]
        for pivot, known in rows.items():
            row = [a - row[pivot] * b for a, b in zip(row, known, strict=True)]
        lead = next((column for column, value in enumerate(row) if value), None)
        if lead is None:
            continue
        row = [value / row[lead] for value in row]
        for pivot, known in rows.items():
            rows[pivot] = [a - known[lead] * b for a, b in zip(known, row, strict=True)]
        rows[lead] = row
    found = []
    for free in (column for column in range(len(elements)) if column not in rows):
        factors = {pivot: -row[free] for pivot, row in rows.items() if row[free]} | {free: Fraction(1)}
        scale = lcm(*(value.denominator for value in factors.values()))
        scale = -scale if factors[min(factors)] < 0 else scale
        found.append({elements[column]: int(factors[column] * scale) for column in sorted(factors)})
    return tuple(found)


def broken(known: Iterable[Mapping[str, int]], composition: Mapping[str, int]) -> Mapping[str, int] | None:
    """Return the first balance that a composition violates; None: the others determine it."""
    for balance in known:
        if sum(factor * composition.get(element, 0) for element, factor in balance.items()):
            return balance
    return None


def balance_text(balance: Mapping[str, int]) -> str:
    """Return a balance as an equation, such as ``H = 2 O``."""

    def side(sign: int) -> str:
        terms = [(abs(n), e) for e, n in balance.items() if n * sign > 0]
        return " + ".join(e if n == 1 else f"{n} {e}" for n, e in terms) or "0"

    return f"{side(1)} = {side(-1)}"
