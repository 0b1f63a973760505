"""Studies of rows, whose configurations are listed: each row is a trial."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from search.study import Row, StudyConfig
from trainer.config import TrainConfig, load_config, searchable_fields
from trainer.networks.widths import widest

logger = logging.getLogger("anitune")

WIDTH = "width_"
"""Prefix of the parameters that hold the width of a layer: ``width_2``, or by element ``width_H_2``."""


def width_parameter(layer: int, element: str | None = None) -> str:
    """Return the name of the parameter of a layer's width, from layer 1; None: of all elements."""
    return f"{WIDTH}{layer}" if element is None else f"{WIDTH}{element}_{layer}"


def layer_of(parameter: str) -> int | None:
    """Invert :func:`width_parameter`; None if the parameter is no width."""
    return int(parameter.rpartition("_")[2]) if parameter.startswith(WIDTH) else None


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a training with layers and widths instead of ``hidden``, as in a search."""
    settings = dataclasses.asdict(config)
    hidden = settings.pop("hidden")
    of_elements = hidden if isinstance(hidden, dict) else {None: hidden}
    widths = {
        width_parameter(layer, element): width
        for element, each in of_elements.items()
        for layer, width in enumerate(each, start=1)
    }
    return {"layers": len(widest(hidden))} | widths | settings


def row_settings(config: StudyConfig, row: Row) -> dict[str, Any]:
    """Return the settings of a row's training, from the study and the row."""
    return config.training | row.training


def row_params(config: StudyConfig, row: Row) -> dict[str, Any]:
    """Return the searchable settings of a row, by the names that they have in a search."""
    settings = load_config(TrainConfig, row_settings(config, row), config.name)
    params = flat_settings(settings)
    widths = [name for name in params if layer_of(name) is not None]
    features = ("features",) if settings.features is not None else ()
    names = ("layers", *widths, *searchable_fields(), *features)
    return {name: params[name] for name in names if name in params}


def scale_batches(config: StudyConfig, train_structures: int) -> StudyConfig:
    """Scale the batch sizes of rows, so that an epoch has as many steps as on the data they were meant for.

    Parameters
    ----------
    train_structures : size of the training set
    """
    if config.rows is None or config.scale_batch_from is None:
        return config
    factor = train_structures / config.scale_batch_from
    sizes: dict[int, int] = {}
    rows = []
    for row in config.rows:
        meant = row_settings(config, row).get("batch_size", TrainConfig.batch_size)
        sizes[meant] = max(1, round(meant * factor))
        rows.append(dataclasses.replace(row, training=row.training | {"batch_size": sizes[meant]}))
    logger.info(
        "%s: batch sizes scaled to %s training structures from %s, to keep the steps per epoch: %s",
        config.name,
        f"{train_structures:,}",
        f"{config.scale_batch_from:,}",
        ", ".join(f"{meant:,} is {size:,}" for meant, size in sizes.items()),
    )
    return dataclasses.replace(config, rows=tuple(rows), scale_batch_from=None)
