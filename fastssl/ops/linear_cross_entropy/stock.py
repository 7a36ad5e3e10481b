"""`linear_cross_entropy` by PyTorch's own linear map and cross-entropy; the logits of labelled rows exist whole."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.surroundings import has_values

SUPPORTS = Supports(
    refuses={
        "PyTorch's cross-entropy has no z-loss": lambda z_loss, **_: z_loss != 0,
        "PyTorch's cross-entropy has no softcap": lambda softcap, **_: softcap is not None,
    }
)

_NO_TARGET = torch.iinfo(torch.int64).min
"""What PyTorch ignores where every row has a label: its own default would pass for one without."""


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
    """Return (losses (N), lse (N), number of correct predictions (0-d)); differentiable by autograd.

    Tensors without values, and a compiled graph, cannot drop rows by their content: there PyTorch's own `ignore_index`
    does the work.
    """
    everywhere = ignore_index is None or not has_values(targets)
    rows = slice(None) if everywhere else targets != ignore_index
    labels = targets[rows]
    bias = None if bias is None else bias.to(product_dtype)
    logits = F.linear(hidden[rows].to(product_dtype), weight.to(product_dtype), bias)
    logits = logits.to(torch.promote_types(product_dtype, torch.float32))
    ignored = _NO_TARGET if ignore_index is None else ignore_index
    losses = F.cross_entropy(logits, labels, ignore_index=ignored, label_smoothing=label_smoothing, reduction="none")
    lse = logits.detach().logsumexp(-1)
    num_correct = (logits.detach().argmax(-1) == labels).sum()
    if ignore_index is None:
        return losses, lse, num_correct
    if everywhere:
        return losses, lse * (targets != ignore_index), num_correct
    zeros = torch.zeros(targets.shape, dtype=logits.dtype, device=targets.device)
    return zeros.masked_scatter(rows, losses), zeros.masked_scatter(rows, lse), num_correct
