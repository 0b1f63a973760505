"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.config import Optimizer, TrainConfig

#: Weight decay is an L2 term of the loss in adam, and a shrinking of the weights beside it in adamw.
OPTIMIZERS: dict[Optimizer, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def make_optimizer(config: TrainConfig, weights: torch.nn.Parameter) -> torch.optim.Optimizer:
    """The configured optimizer of ``weights`` (P,), one fused pass over them a step."""
    return OPTIMIZERS[config.optimizer](
        [weights], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
