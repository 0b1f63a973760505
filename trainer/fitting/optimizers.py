"""Optimizers by name. It imports no torch before one is used: their names are the choices of a setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from trainer.lazy_import import LazyImport

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainer.config import TrainConfig
else:
    torch = LazyImport("torch")

#: Functions that make an optimizer from a list of weights, with the keywords ``lr``, ``weight_decay`` and
#: ``capturable`` (whether a CUDA graph captures its step). Weight decay is an L2 term of the loss in adam,
#: and a separate shrinking of the weights in adamw.
OPTIMIZERS: Final[Mapping[str, Callable[..., torch.optim.Optimizer]]] = {
    "adam": lambda weights, **settings: torch.optim.Adam(weights, fused=True, **settings),
    "adamw": lambda weights, **settings: torch.optim.AdamW(weights, fused=True, **settings),
}


def make_optimizer(config: TrainConfig, weights: torch.nn.Parameter) -> torch.optim.Optimizer:
    """Create the configured optimizer of ``weights`` (P,).

    On a GPU its learning rate is a tensor there, so that a captured step follows its changes.
    """
    on_gpu = weights.is_cuda
    rate = torch.tensor(config.learning_rate, device=weights.device) if on_gpu else config.learning_rate
    return OPTIMIZERS[config.optimizer](
        [weights], lr=rate, weight_decay=config.weight_decay, capturable=on_gpu
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the following steps."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def step_together(optimizers: Sequence[torch.optim.Optimizer], gradients: Sequence[Tensor]) -> None:
    """Take a step with optimizers that :func:`make_optimizer` made for a GPU, in few operations.

    Parameters
    ----------
    gradients : (N,) for each optimizer
    """
    for optimizer, gradient in zip(optimizers, gradients, strict=True):
        optimizer.param_groups[0]["params"][0].grad = gradient
    fused = {torch.optim.Adam: torch._fused_adam_, torch.optim.AdamW: torch._fused_adamw_}
    # The first step creates the state.
    if not all(optimizer.state and type(optimizer) in fused for optimizer in optimizers):
        for optimizer in optimizers:
            optimizer.step()
        return
    groups = [optimizer.param_groups[0] for optimizer in optimizers]
    weights = [group["params"][0] for group in groups]
    states = [optimizer.state[some] for optimizer, some in zip(optimizers, weights, strict=True)]
    torch._foreach_add_([state["step"] for state in states], 1)
    for optimizer, group, some, state, gradient in zip(
        optimizers, groups, weights, states, gradients, strict=True
    ):
        fused[type(optimizer)](
            [some.detach()],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
