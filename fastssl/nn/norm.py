"""Layer normalisation with everything that stands in front of it in a transformer: dropout and the residual sum."""

import torch
from torch import Tensor, nn

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
