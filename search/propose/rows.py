"""Studies whose configurations are listed: a row is a trial."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from search.study import Row, StudyConfig
from trainer.config import TrainConfig, load_config, searchable_fields

logger = logging.getLogger("anitune")


def row_settings(config: StudyConfig, row: Row) -> dict[str, Any]:
    """What a study sets for the training of a row."""
    return config.training | row.training


def row_params(config: StudyConfig, row: Row) -> dict[str, Any]:
    """The settings of a row that could be searched, by the names that they have in a search."""
    settings = dataclasses.asdict(load_config(TrainConfig, row_settings(config, row), config.name))
    hidden = settings["hidden"]
    params = {"layers": len(hidden)} | {f"width_{n}": width for n, width in enumerate(hidden, start=1)}
    return params | {name: settings[name] for name in searchable_fields() if name != "hidden"}


def scale_batches(config: StudyConfig, train_structures: int) -> StudyConfig:
    """The study with batches that give as many steps an epoch as on the data that its rows were meant for.

    Parameters
    ----------
    train_structures : size of the training part
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
        "%s: batch sizes scaled to %s training structures from %s, to keep the steps an epoch: %s",
        config.name,
        f"{train_structures:,}",
        f"{config.scale_batch_from:,}",
        ", ".join(f"{meant:,} is {size:,}" for meant, size in sizes.items()),
    )
    return dataclasses.replace(config, rows=tuple(rows), scale_batch_from=None)
