"""The definition of `linear_cross_entropy` in plain differentiable PyTorch, for any floating dtype and device."""

import torch
from torch import Tensor

from fastssl.ops.backend import Supports

SUPPORTS = Supports()


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    *,
    ignore_index: int | None,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (losses (N), lse (N), number of correct predictions (0-d)); ignored rows have loss and lse 0.

    The operands of the product are rounded to `product_dtype`; everything after is float32 (float64 where that is).
    """
    wide = torch.promote_types(product_dtype, torch.float32)
    labelled = torch.ones_like(targets, dtype=torch.bool) if ignore_index is None else targets != ignore_index
    labels = targets[labelled]
    logits = hidden[labelled].to(product_dtype).to(wide) @ weight.to(product_dtype).to(wide).T
    if bias is not None:
        logits = logits + bias.to(wide)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    lse = logits.logsumexp(-1)
    target_logits = logits.gather(-1, labels[:, None]).squeeze(-1)
    expected_logit = (1 - label_smoothing) * target_logits
    if label_smoothing > 0:  # the mean may be -inf, of which no part is zero
        expected_logit = expected_logit + label_smoothing * logits.mean(-1)
    losses = lse - expected_logit + z_loss * lse.square()
    everywhere = torch.zeros(targets.shape, dtype=wide, device=targets.device)
    num_correct = (logits.argmax(-1) == labels).sum()
    return everywhere.masked_scatter(labelled, losses), everywhere.masked_scatter(labelled, lse), num_correct
