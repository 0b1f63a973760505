"""Constraints of a study: which configurations may be trained. It is known before a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from search.propose.rows import WIDTH
from search.propose.space import searched, train_config, used_params
from search.study import StudyConfig
from trainer.config import Choices, TrainConfig
from trainer.errors import ConfigError
from trainer.features.aev import aev_length
from trainer.networks.model import weight_shapes

STEPS: Final = 64
"""In so many steps :func:`shrunk` goes from a network to the smallest one of the space."""


def parameter_count(config: StudyConfig, trained: TrainConfig) -> int:
    """Return the number of weights and biases of all networks of a trial, without making them."""
    aev = config.features.named(trained.features)
    return sum(map(math.prod, weight_shapes(trained, aev.elements, aev_length(aev)).values()))


def check_constraints(config: StudyConfig) -> None:
    """Check that the constraints leave something to search, or that all rows obey them.

    Raises
    ------
    ConfigError
        with a line that says what does not.
    """
    if (limit := config.constraints.parameters) is None:
        return
    for number, row in enumerate(config.rows or ()):
        if (count := parameter_count(config, train_config(config, {}, number))) > limit.at_most:
            raise ConfigError(
                f"{config.name}: constraints.parameters.at_most is {limit.at_most:,}, but row {row.label} has"
                f" {count:,} parameters: raise the limit, or remove the row"
            )
    if config.rows is None and (count := _count(config, _smallest(config))) > limit.at_most:
        raise ConfigError(
            f"{config.name}: constraints.parameters.at_most is {limit.at_most:,}, but the smallest network of"
            f" the space has {count:,} parameters: raise the limit, or search smaller networks"
        )


def refuse_enqueued(config: StudyConfig, params: Mapping[str, Any], where: str) -> None:
    """Refuse parameters of a person with which no trial obeys the constraints.

    Raises
    ------
    ConfigError
        with a line that says what is too large.
    """
    limit = config.constraints.parameters
    if limit is None or config.rows is not None:
        return
    if (count := _count(config, _smallest(config) | dict(params))) > limit.at_most:
        raise ConfigError(
            f"{where}: the network has at least {count:,} parameters, but constraints.parameters.at_most of"
            f" study {config.name!r} is {limit.at_most:,}"
        )


def obeys(config: StudyConfig, params: Mapping[str, Any]) -> bool:
    """Whether a trial with these parameters obeys the constraints of its study."""
    limit = config.constraints.parameters
    return limit is None or _count(config, params) <= limit.at_most


def allowed_points(config: StudyConfig, points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those points of a space that obey the constraints, in their order."""
    known = cache(lambda network: obeys(config, dict(network)))
    return [point for point in points if known(tuple(network_params(point).items()))]


def network_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those parameters that decide the size of the network."""
    used = used_params(params)
    return {name: used[name] for name in used if _decides_size(name)}


def shrunk(config: StudyConfig, params: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Shrink the network of parameters until it obeys the constraints.

    All its sizes go towards those of the smallest network of the space, in proportion.

    Parameters
    ----------
    fixed : parameters that stay as they are, which :func:`refuse_enqueued` has let pass
    """
    sizes = {name: values for name, values in _sizes(config).items() if name not in fixed}
    ranks = {name: values.index(params[name]) for name, values in sizes.items()}
    for step in range(STEPS, -1, -1):
        smaller = {name: sizes[name][rank * step // STEPS] for name, rank in ranks.items()}
        if obeys(config, {**params, **smaller}):
            return {**params, **smaller}
    raise AssertionError("the smallest network of a space obeys its constraints")


def _smallest(config: StudyConfig) -> dict[str, Any]:
    return {name: values[0] for name, values in _sizes(config).items()}


def _sizes(config: StudyConfig) -> dict[str, list[Any]]:
    """Return the values of the parameters that decide the size of a network, the smallest first."""
    values = {
        name: list(dimension.choices)
        if isinstance(dimension, Choices)
        else list(range(dimension.low, dimension.high + 1, dimension.step or 1))
        for name, dimension in searched(config).items()
        if _decides_size(name)
    }
    names: Mapping[str, Callable[[Any], int]] = {
        "hidden": lambda architecture: _count(config, {"hidden": architecture}),
        "features": lambda name: aev_length(config.features.named(name)),
    }
    return {name: sorted(each, key=names.get(name)) for name, each in values.items()}


def _decides_size(parameter: str) -> bool:
    return parameter in ("layers", "hidden", "features") or parameter.startswith(WIDTH)


def _count(config: StudyConfig, params: Mapping[str, Any]) -> int:
    return parameter_count(config, train_config(config, used_params(params), 0))
