"""The stages of a transformer block, each with its backward called by hand: what `fastssl.nn.joined_block` is made of.

A stage is told once which backends it uses and what its numbers are. Its forward takes tensors and returns, beside its
result, those that its backward needs; nothing here is recorded by autograd, and autocast is off.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.ops.attention.checks import check_devices, check_lengths
from fastssl.ops.attention.projection import whole_gradient
from fastssl.ops.products import product

Gradients = tuple[Tensor | None, ...]
"""Of a stage's parameters, in the order in which it takes them; None for a bias that is not there."""


class Norm(NamedTuple):
    """``y = LN(residual + dropout(x)) * weight + bias``."""

    backend: ModuleType
    """Of `fastssl.ops.layer_norm`, with kernels of its own."""
    eps: float
    """Added to the variance."""
    dropout_p: float
    """Of `x`; 0 without a seed."""

    def forward(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, seed: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y (N, E), and for the backward the sum (N, E), the means and the inverse deviations (N)."""
        return self.backend.forward_saving(x, weight, bias, residual, self.eps, self.dropout_p, seed)

    def backward(
        self,
        grad_y: Tensor | None,
        grad_sum: Tensor | None,
        saved: tuple[Tensor, Tensor, Tensor],
        weight: Tensor,
        bias_dtype: torch.dtype,
        seed: Tensor | None,
        with_residual: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return the gradients of x, of the residual (it may be that of x), of weight and bias."""
        total, mean, rstd = saved
        return self.backend.backward(
            grad_y,
            grad_sum,
            total,
            weight,
            mean,
            rstd,
            dropout_p=self.dropout_p,
            seed=seed,
            with_residual=with_residual,
            bias_dtype=bias_dtype,
        )


class Attention(NamedTuple):
    """``output(attention(qkv(x)))`` over packed sequences."""

    backend: ModuleType
    """Of `fastssl.ops.attention`, with kernels of its own."""
    heads: tuple[int, int, int]
    """H, H_k and H_k: of queries, keys and values."""
    head_dim: int
    """D."""
    window: tuple[int, int]
    """How many keys before and after its own position a query sees."""
    dropout_p: float
    """Of the weights; 0 without a seed."""
    max_seqlen: int
    """Length of the longest sequence."""

    def forward(
        self, x: Tensor, maps: tuple[Tensor | None, ...], cu_seqlens: Tensor, seed: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the result, and for the backward qkv, the mixed values, lse and dropout's decisions.

        Args:
            x: (N, E).
            maps: weight and bias of qkv, weight and bias of output, in the dtype of x.
            cu_seqlens: (B + 1) int32, where each sequence begins.
            seed: 0-d int64, or None.

        Raises:
            ValueError: for lengths that do not fit.
        """
        qkv = F.linear(x, maps[0], maps[1])
        q, k, v = self._split(qkv)
        check_devices(q, cu_seqlens=cu_seqlens)
        check_lengths(q, k, cu_seqlens, cu_seqlens, self.max_seqlen, self.max_seqlen, None)
        tensors = (q, k, v, None, cu_seqlens, None, None, seed)
        mixed, lse, kept = self.backend.forward_saving(*tensors, *self._numbers())
        return F.linear(mixed.flatten(1), maps[2], maps[3]), qkv, mixed, lse, kept

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        saved: tuple[Tensor, Tensor, Tensor, Tensor | None],
        maps: tuple[Tensor, Tensor],
        cu_seqlens: Tensor,
        seed: Tensor | None,
        dtypes: tuple[torch.dtype | None, ...],
    ) -> tuple[Tensor, Gradients]:
        """Return the gradient of qkv, (N, (H + 2 H_k) D), and those of weight and bias of qkv and of output.

        The gradient of x is its product with the weight of qkv, which the caller adds to what else x led to.

        Args:
            grad: (N, E), of the result.
            x, saved, cu_seqlens, seed: of the forward.
            maps: weights of qkv and output, in the dtype of x.
            dtypes: of the four parameters.
        """
        qkv, mixed, lse, kept = saved
        of_output = _gradients(grad, mixed.flatten(1), dtypes[2:])
        grad_mixed = torch.mm(grad, maps[1]).view(mixed.shape)
        tensors = (*self._split(qkv), mixed, lse, kept, None, cu_seqlens, None, None, seed)
        *parts, _ = self.backend.backward(grad_mixed, None, *tensors, *self._numbers(), False)
        grad_qkv = whole_gradient(parts).view(qkv.shape)
        return grad_qkv, (*_gradients(grad_qkv, x, dtypes[:2]), *of_output)

    def _split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.view(qkv.shape[0], -1, self.head_dim).split_with_sizes(self.heads, 1)

    def _numbers(self) -> tuple:
        return (*self.window, self.dropout_p, self.head_dim**-0.5, self.max_seqlen, self.max_seqlen)


class FeedForward(NamedTuple):
    """``down(gelu(up(x)))``."""

    backend: ModuleType
    """Of `fastssl.ops.bias_gelu`, with kernels of its own."""
    approximate: str
    """As in `torch.nn.functional.gelu`."""

    def forward(self, x: Tensor, maps: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result, and for the backward what stands in front of GELU without its bias, and what behind.

        Args:
            x: (N, E).
            maps: weight and bias of up, weight and bias of down, in the dtype of x but for the bias of up.
        """
        entering = F.linear(x, maps[0])
        activated = self.backend.forward(entering, maps[1], approximate=self.approximate)
        return F.linear(activated, maps[2], maps[3]), entering, activated

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        saved: tuple[Tensor, Tensor],
        up_bias: Tensor,
        down: Tensor,
        dtypes: tuple[torch.dtype | None, ...],
    ) -> tuple[Tensor, Gradients]:
        """Return the gradient of up's product, (N, F), and those of weight and bias of up and of down.

        Args:
            grad: (N, E), of the result.
            x, saved: of the forward.
            up_bias, down: bias of up, and weight of down in the dtype of x.
            dtypes: of the four parameters.
        """
        entering, activated = saved
        of_down = _gradients(grad, activated, dtypes[2:])
        grad_entering, grad_bias = self.backend.backward(
            torch.mm(grad, down), entering, up_bias, approximate=self.approximate
        )
        of_up = _gradients(grad_entering, x, dtypes[:2], grad_bias)
        return grad_entering, (*of_up, *of_down)


def _gradients(
    grad: Tensor, x: Tensor, dtypes: tuple[torch.dtype, torch.dtype | None], grad_bias: Tensor | None = None
) -> Gradients:
    """Return the gradients of a map's weight and bias, in their dtypes; None for a bias that is not there.

    Args:
        grad: (N, F), of what the map returns.
        x: (N, E), what it takes.
        dtypes: of weight and bias.
        grad_bias: (F), where it is known already.
    """
    weight_dtype, bias_dtype = dtypes
    grad_weight = product(grad.t(), x, weight_dtype)
    if bias_dtype is None:
        return grad_weight, None
    return grad_weight, grad.sum(0, dtype=bias_dtype) if grad_bias is None else grad_bias.to(bias_dtype)
