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
    """The configured optimizer of ``weights`` (P,), one fused pass over them a step.

    On a GPU its rate is a tensor there, so that steps which are recorded once follow when it changes.
    """
    on_gpu = weights.is_cuda
    rate = torch.tensor(config.learning_rate, device=weights.device) if on_gpu else config.learning_rate
    return OPTIMIZERS[config.optimizer](
        [weights], lr=rate, weight_decay=config.weight_decay, fused=True, capturable=on_gpu
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the steps that follow have this learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
