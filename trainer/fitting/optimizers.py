"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from trainer.config import Optimizer, TrainConfig

#: Weight decay is an L2 term of the loss in adam, and a shrinking of the weights beside it in adamw.
OPTIMIZERS: dict[Optimizer, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def make_optimizer(config: TrainConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The configured optimizer, one fused pass over all parameters a step."""
    return OPTIMIZERS[config.optimizer](
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
