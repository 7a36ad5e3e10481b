"""The definition of `pre_norm_block`: its parts, one after the other, by their definitions."""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.ops.attention import reference as attention_reference
from fastssl.ops.backend import Supports
from fastssl.ops.decoder_block.weights import BlockWeights
from fastssl.ops.layer_norm import reference as layer_norm_reference
from fastssl.ops.pre_norm_block.dropout import BlockDropout

SUPPORTS = Supports(
    refuses={"it reads sequence lengths on the host, which torch.compile cannot": lambda compiling, **_: compiling}
)


def forward(*arguments, **options) -> tuple[Tensor, Tensor]:
    """Return (out, stream) of `fastssl.ops.pre_norm_block`; differentiable by autograd."""
    return compose(layer_norm_reference, attention_reference, *arguments, **options)


def compose(
    layer_norm: ModuleType,
    attention: ModuleType,
    addend: Tensor,
    residual: Tensor | None,
    weights: BlockWeights,
    cu_seqlens: Tensor,
    *,
    heads: tuple[int, int, int],
    max_seqlen: int | None,
    activation: str,
    window: tuple[int, int],
    scale: float,
    rotary: tuple[Tensor, Tensor] | None,
    dropout: BlockDropout,
) -> tuple[Tensor, Tensor]:
    """Return the outputs, made by backends of `layer_norm` and `attention`.

    Args:
        layer_norm, attention: the backends.
        addend, residual, weights, cu_seqlens, max_seqlen, activation, scale, rotary, dropout: as in `pre_norm_block`.
        heads: H, H_k and D.
        window: keys to the left and to the right.
    """
    num_heads, num_key_heads, width = heads
    norm = weights.attention_norm
    options = {"eps": norm.eps, "dropout_p": dropout.addend_p, "seed": dropout.addend_seed, "with_sum": True}
    normed, stream = layer_norm.forward(addend, norm.weight, norm.bias, residual, **options)
    q, k, v = (
        F.linear(normed, *weights.qkv)
        .unflatten(-1, (-1, width))
        .split((num_heads, num_key_heads, num_key_heads), dim=-2)
    )
    if rotary is not None:
        q, k = _turned(q, *rotary), _turned(k, *rotary)
    attended, _ = attention.forward(
        q, k, v, None, cu_seqlens, None, None, dropout.attention_seed, *window, dropout.attention_p, scale,
        max_seqlen, max_seqlen,
    )  # fmt: skip
    norm = weights.mlp_norm
    options = {"eps": norm.eps, "dropout_p": dropout.output_p, "seed": dropout.output_seed, "with_sum": True}
    addend = F.linear(attended.flatten(-2), *weights.out)
    normed, stream = layer_norm.forward(addend, norm.weight, norm.bias, stream, **options)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return F.linear(F.gelu(F.linear(normed, *weights.up), approximate=approximate), *weights.down), stream


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + D / 2]) of each head of (N, H, D)."""
    (first, second), cos, sin = x.chunk(2, dim=-1), cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
