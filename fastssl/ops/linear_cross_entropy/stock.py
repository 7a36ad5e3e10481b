"""`linear_cross_entropy` by PyTorch's own linear map and cross-entropy; the logits of labelled rows exist whole."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.ops.backend import Supports

SUPPORTS = Supports(
    refuses={
        "PyTorch's cross-entropy has no z-loss": lambda z_loss, **_: z_loss != 0,
        "PyTorch's cross-entropy has no softcap": lambda softcap, **_: softcap is not None,
    }
)


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    product_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (losses (N), lse (N), number of correct predictions (0-d)); differentiable by autograd.

    A compiled graph cannot drop rows by their content: there PyTorch's own `ignore_index` does the work.
    """
    labelled = targets != ignore_index
    rows = slice(None) if torch.compiler.is_compiling() else labelled
    labels = targets[rows]
    bias = None if bias is None else bias.to(product_dtype)
    logits = F.linear(hidden[rows].to(product_dtype), weight.to(product_dtype), bias)
    logits = logits.to(torch.promote_types(product_dtype, torch.float32))
    losses = F.cross_entropy(
        logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    lse = logits.detach().logsumexp(-1)
    num_correct = (logits.detach().argmax(-1) == labels).sum()
    if torch.compiler.is_compiling():
        return losses, lse * labelled, num_correct
    everywhere = torch.zeros(targets.shape, dtype=logits.dtype, device=targets.device)
    return everywhere.masked_scatter(labelled, losses), everywhere.masked_scatter(labelled, lse), num_correct
