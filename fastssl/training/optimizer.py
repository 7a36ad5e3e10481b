"""AdamW, with weight decay on matrices only."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import AdamW

from fastssl.training.config import TrainingConfig
from fastssl.training.row_gradients import values_of_gradients

_DOT_LENGTH = 1 << 18


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, object]]:
    """Return groups of trainable parameters: with decay (two dimensions or more), and without (biases, norms).

    Args:
        model: whose parameters.
        weight_decay: of matrices.
        lr_scales: parameter's name -> factor of its learning rate, the "lr_scale" of its group; 1 where not named.
    """
    groups: dict[float, tuple[list, list]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed, plain = groups.setdefault((lr_scales or {}).get(name, 1.0), ([], []))
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for scale, pair in groups.items()
        for parameters, decay in zip(pair, (weight_decay, 0.0), strict=True)
    ]


def make_optimizer(model: nn.Module, config: TrainingConfig, lr_scales: Mapping[str, float] | None = None) -> AdamW:
    """Return torch's fused AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the model's trainable parameters.

    Raises:
        ValueError: if the model has no trainable parameter.
    """
    groups = [group for group in parameter_groups(model, config.weight_decay, lr_scales) if group["params"]]
    if not groups:
        raise ValueError("the model has no trainable parameter; expected at least one with requires_grad=True")
    return AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Scale all gradients to a global 2-norm of at most `max_norm` (0: leave them) and return the norm before, 0-d."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = values_of_gradients(parameters)
    norm = _total_norm(gradients)
    if max_norm > 0 and not norm <= max_norm:
        scale = max_norm / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.device))
    return norm


def _total_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Return the 2-norm of all gradients together, 0-d.

    On a CPU as dot products, which run at the speed of memory there; short ones, added up in double precision, so that
    nothing is lost in a long float32 sum.
    """
    if any(gradient.device.type != "cpu" or gradient.dtype != torch.float32 for gradient in gradients):
        return nn.utils.get_total_norm(gradients)
    parts = (part for gradient in gradients for part in gradient.reshape(-1).split(_DOT_LENGTH))
    return torch.tensor(math.sqrt(sum(torch.dot(part, part).item() for part in parts)))
