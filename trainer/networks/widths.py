"""Widths of hidden layers: the same for all elements, or for each element its own. It imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

Widths: TypeAlias = tuple[int, ...]
"""Widths of the hidden layers of a network, the first layer first."""

Hidden: TypeAlias = Widths | dict[str, Widths]
"""Widths for all elements, or by element; then all elements have the same number of layers."""


def widths_of(hidden: Hidden, element: str) -> Widths:
    """Return the widths of the network of an element."""
    return hidden[element] if isinstance(hidden, dict) else hidden


def by_element(hidden: Hidden, elements: Sequence[str]) -> dict[str, Widths]:
    """Return the widths of each of these elements, in their order."""
    return {element: widths_of(hidden, element) for element in elements}


def widest(hidden: Hidden) -> Widths:
    """Return, for each layer, the largest width of any element."""
    return tuple(map(max, zip(*hidden.values(), strict=True))) if isinstance(hidden, dict) else hidden


def neurons(hidden: Hidden) -> float:
    """Return the number of hidden neurons of an element's network; if they differ, the mean of the elements.

    Hidden layers may be plain JSON values.
    """
    each = hidden.values() if isinstance(hidden, dict) else [hidden]
    return sum(map(sum, each)) / len(each)


def widths_text(hidden: Mapping[str, Sequence[int]] | Sequence[int]) -> str:
    """Write widths for people: ``160-128-96``, or ``H 160-128-96 | C 144-112-96``."""
    if isinstance(hidden, Mapping):
        return " | ".join(f"{element} {widths_text(widths)}" for element, widths in hidden.items())
    return "-".join(map(str, hidden))


def widths_from_text(text: str) -> Hidden:
    """Read what :func:`widths_text` wrote."""
    if " " not in text:
        return tuple(map(int, text.split("-")))
    pairs = (each.split(" ") for each in text.split(" | "))
    return {element: tuple(map(int, widths.split("-"))) for element, widths in pairs}


def other_elements(hidden: Hidden, elements: Collection[str]) -> str | None:
    """Return what is wrong with widths for networks of these elements; None if nothing is."""
    if not isinstance(hidden, dict):
        return None
    known = f"features.aev.elements = [{', '.join(elements)}]"
    if unknown := [element for element in hidden if element not in elements]:
        return f"widths of {', '.join(unknown)}, which is not among {known}"
    if missing := [element for element in elements if element not in hidden]:
        return f"no widths of {', '.join(missing)}, but {known}"
    return None
