"""Layer normalisation with everything that stands in front of it in a transformer: dropout and the residual sum."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.nn.dropout import dropout
from fastssl.ops.layer_norm.api import layer_norm


class LayerNorm(nn.Module):
    """``y = LN(residual + dropout(x)) * weight + bias`` over the last dimension.

    Args:
        width: E, size of the last dimension.
        eps: added to the variance.

    Source: Ba, Kiros and Hinton 2016 (arXiv 1607.06450).
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.backend = "auto"
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        x: Tensor,
        *,
        residual: Tensor | None = None,
        dropout_p: float = 0.0,
        seed: Tensor | None = None,
        return_sum: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise the rows of ``residual + dropout(x)``.

        Args:
            x: (N, E).
            residual: (N, E), or None for zero.
            dropout_p: probability for `x`, where there is a seed.
            seed: 0-d int64 tensor; None: no dropout.
            return_sum: return the sum as well.

        Returns:
            (N, E), or a pair with the sum.
        """
        return layer_norm(
            x,
            self.weight,
            self.bias,
            eps=self.eps,
            residual=residual,
            dropout_p=dropout_p if seed is not None else 0.0,
            seed=seed,
            return_sum=return_sum,
            backend=self.backend,
        )


class RMSNorm(nn.Module):
    """``y = s / sqrt(mean(s^2) + eps) * weight`` over the last dimension, where ``s = residual + dropout(x)``.

    Args:
        width: E, size of the last dimension.
        eps: added to the mean square.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467) §4.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.backend = "auto"
        self.weight = nn.Parameter(torch.ones(width))

    def forward(
        self,
        x: Tensor,
        *,
        residual: Tensor | None = None,
        dropout_p: float = 0.0,
        seed: Tensor | None = None,
        return_sum: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise the rows of ``residual + dropout(x)``; arguments and results as in `LayerNorm.forward`."""
        total = dropout(x, dropout_p, seed, backend=self.backend)
        if residual is not None:
            total = residual + total
        y = F.rms_norm(total, total.shape[-1:], self.weight.to(total.dtype), self.eps).to(x.dtype)
        return (y, total) if return_sum else y
