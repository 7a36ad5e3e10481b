"""AdamW, with weight decay on matrices only."""

import torch
from torch import nn
from torch.optim import AdamW

from fastssl.training.config import TrainingConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return two groups of trainable parameters: with decay (two dimensions or more), and without (biases, norms)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> AdamW:
    """Return torch's fused AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the model's trainable parameters.

    Raises:
        ValueError: if the model has no trainable parameter.
    """
    groups = [group for group in parameter_groups(model, config.weight_decay) if group["params"]]
    if not groups:
        raise ValueError("the model has no trainable parameter; expected at least one with requires_grad=True")
    return AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Scale all gradients to a global 2-norm of at most `max_norm` (0: leave them) and return the norm before, 0-d."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
