"""Conversion of a study's space to Optuna's flat parameters, and of these to the settings of a trial."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.dimensions import Dimension
from search.propose.rows import layer_of, row_params, row_settings, width_parameter
from search.propose.seeds import training_seed
from search.study import StudyConfig
from trainer.config import Choices, Range, TrainConfig, load_config
from trainer.errors import ConfigError
from trainer.networks.widths import Hidden, Widths, neurons, widths_from_text, widths_text

LARGEST_GRID = 100_000
"""Maximum number of points of a grid."""


def distributions(config: StudyConfig) -> dict[str, BaseDistribution]:
    """Return the parameters of a study with their distributions. Settings with a fixed value are left out.

    The space of a search is flat: it has a width for each layer of the deepest network, and a trial with
    fewer layers leaves some widths unused. So a sampler can model all widths jointly, which is not possible
    with parameters that only some trials have.
    """
    if config.rows is None:
        return {name: _distribution(dimension) for name, dimension in searched(config).items()}
    points = [row_params(config, row) for row in config.rows]
    names = dict.fromkeys(name for point in points for name in point)
    return {
        name: CategoricalDistribution(tuple(dict.fromkeys(p[name] for p in points if name in p)))
        for name in names
    }


def used_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the widths of layers that the network does not have."""
    layers = params.get("layers", math.inf)
    return {name: value for name, value in params.items() if (layer_of(name) or 0) <= layers}


def train_config(config: StudyConfig, params: Mapping[str, Any], number: int) -> TrainConfig:
    """Return the settings of the trial of this number.

    Raises
    ------
    ConfigError
        if settings that are valid on their own cannot be combined.
    """
    seed = {"seed": training_seed(config.seed, number)}
    if config.rows is not None:
        return load_config(TrainConfig, seed | row_settings(config, config.rows[number]), config.name)
    fixed = {name: d for name, d in _dimensions(config).items() if not isinstance(d, Range | Choices)}
    chosen: dict[str, Any] = fixed | dict(params)
    if "layers" in chosen:
        chosen["hidden"] = _chosen_widths(config, chosen)
    elif "hidden" in chosen:
        chosen["hidden"] = widths_from_text(chosen["hidden"])
    settings = {f.name for f in dataclasses.fields(TrainConfig)}
    chosen = {name: value for name, value in chosen.items() if name in settings}
    return load_config(TrainConfig, seed | config.training | chosen, config.name)


def _chosen_widths(config: StudyConfig, chosen: Mapping[str, Any]) -> Hidden:
    def widths(element: str | None) -> Widths:
        return tuple(chosen[width_parameter(layer, element)] for layer in range(1, chosen["layers"] + 1))

    elements = config.elements_with_widths
    return {element: widths(element) for element in elements} if elements else widths(None)


def example_configs(config: StudyConfig, count: int) -> list[TrainConfig]:
    """Draw example settings of trials from the space of a study, or its rows, in a reproducible way."""
    if config.rows is not None:
        return [train_config(config, {}, number % len(config.rows)) for number in range(count)]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = distributions(config)
    return [train_config(config, study.ask(space).params, number) for number in range(count)]


def extreme_configs(config: StudyConfig) -> list[TrainConfig]:
    """Return settings that no trial of a study exceeds: the largest network, smallest and largest batches.

    For a study of rows these are the settings of all rows.
    """
    if config.rows is not None:
        return example_configs(config, len(config.rows))
    ends = {name: _ends(config, name, dimension) for name, dimension in searched(config).items()}
    largest = {name: high for name, (_, high) in ends.items()}
    batches = [{"batch_size": size} for size in ends.get("batch_size", ())] or [{}]
    return [train_config(config, largest | batch, 0) for batch in batches]


def _ends(config: StudyConfig, name: str, dimension: Range[Any] | Choices[Any]) -> tuple[Any, Any]:
    if isinstance(dimension, Range):
        return dimension.low, dimension.high
    size = partial(_SIZES.get(name, lambda config, choice: choice), config)
    return min(dimension.choices, key=size), max(dimension.choices, key=size)


def _neurons(config: StudyConfig, choice: str) -> float:
    return neurons(widths_from_text(choice))


def _features(config: StudyConfig, choice: str) -> int:
    from trainer.features.aev import aev_length  # late, because it imports torch

    return aev_length(config.features.named(choice))


#: How much memory a choice takes, where choices are names.
_SIZES: Final[Mapping[str, Callable[[StudyConfig, Any], Any]]] = {"hidden": _neurons, "features": _features}


def grid_points(config: StudyConfig) -> list[dict[str, Any]]:
    """Return all points of the space, each architecture once, in an order that depends on the study's seed.

    Raises
    ------
    ConfigError
        if there are more than :data:`LARGEST_GRID` points.
    """
    values = {name: _grid_values(dimension) for name, dimension in searched(config).items()}
    depths = values.get("layers")
    # Each depth has its own grid, because a network does not use the widths of further layers.
    grids = [used_params(values | {"layers": n}) | {"layers": [n]} for n in depths] if depths else [values]
    if sum(math.prod(len(v) for v in grid.values()) for grid in grids) > LARGEST_GRID:
        raise ConfigError(
            f"{config.name}: the grid has more than {LARGEST_GRID:,} points; give fewer choices"
        )
    points = [
        dict(zip(grid, combination, strict=True))
        for grid in grids
        for combination in itertools.product(*grid.values())
    ]
    order = np.random.default_rng(config.seed).permutation(len(points))
    return [points[i] for i in order]


def is_finite(config: StudyConfig) -> bool:
    """Whether the space has finitely many points: choices, and ranges with a step."""
    return not any(isinstance(d, Range) and d.step is None for d in searched(config).values())


def finite_points(config: StudyConfig) -> list[dict[str, Any]] | None:
    """Return the :func:`grid_points`; None if there are infinitely many or more than :data:`LARGEST_GRID`."""
    if not is_finite(config):
        return None
    try:
        return grid_points(config)
    except ConfigError:
        return None


def _dimensions(config: StudyConfig) -> dict[str, Dimension]:
    """Return the space with a width for each layer of the deepest network."""
    assert config.space is not None
    space = dict(config.space)
    if isinstance(architectures := space.get("hidden"), Choices):
        # Optuna cannot choose among lists.
        space["hidden"] = Choices(tuple(map(widths_text, architectures.choices)))
    if "layers" not in space:
        return space
    layers, width = space["layers"], space.pop("width")
    deepest = max(layers.choices) if isinstance(layers, Choices) else layers
    deepest = deepest.high if isinstance(deepest, Range) else deepest
    assert isinstance(deepest, int)
    widths = {
        width_parameter(layer, element): width
        for element in config.elements_with_widths or (None,)
        for layer in range(1, deepest + 1)
    }
    return {"layers": space.pop("layers")} | widths | space


def searched(config: StudyConfig) -> dict[str, Range[Any] | Choices[Any]]:
    """Return the parameters of a search with what each is searched over."""
    return {name: d for name, d in _dimensions(config).items() if isinstance(d, Range | Choices)}


def _distribution(dimension: Range[Any] | Choices[Any]) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.choices)
    low, high, step = dimension.low, dimension.high, dimension.step
    if isinstance(low, int):
        return IntDistribution(low, high, log=dimension.log, step=step or 1)
    return FloatDistribution(low, high, log=dimension.log, step=step)


def _grid_values(dimension: Range[Any] | Choices[Any]) -> list[Any]:
    if isinstance(dimension, Choices):
        return list(dimension.choices)
    # Decimals are exact; with floating-point numbers, 0.1 + 0.1 + 0.1 is greater than 0.3.
    low, high, step = (Decimal(str(x)) for x in (dimension.low, dimension.high, dimension.step))
    return [type(dimension.low)(low + n * step) for n in range(round((high - low) / step) + 1)]
