"""The definition of `decoder_block`: its parts, one after the other, by their definitions."""

from collections.abc import Callable

from torch import Tensor

from fastssl.ops.backend import Supports
from fastssl.ops.cached_attention import reference as attention_reference
from fastssl.ops.decoder_block.weights import BlockWeights
from fastssl.ops.skinny_linear import reference as linear_reference

SUPPORTS = Supports()


def forward(x: Tensor, weights: BlockWeights, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, **options) -> Tensor:
    """Return the output of `fastssl.ops.decoder_block`."""
    return compose(
        linear_reference.forward, attention_reference.forward, x, weights, k_cache, v_cache, lengths, **options
    )


def compose(
    linear: Callable[..., Tensor],
    attend: Callable[..., Tensor],
    x: Tensor,
    weights: BlockWeights,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    activation: str,
    window: int | None,
    scale: float,
    rotary: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return the output, made by forwards of `skinny_linear` and `cached_attention`."""
    plain = {"norm": None, "activation": "none", "residual": None}
    qkv = linear(x, *weights.qkv, **(plain | {"norm": weights.attention_norm}))
    key_heads, width = k_cache.shape[1], k_cache.shape[3]
    q, k, v = qkv.unflatten(1, (-1, width)).split((qkv.shape[1] // width - 2 * key_heads, key_heads, key_heads), dim=1)
    heads = attend(q, k, v, k_cache, v_cache, lengths, window=window, scale=scale, rotary=rotary)
    x = linear(heads.flatten(1), *weights.out, **(plain | {"residual": x}))
    hidden = linear(x, *weights.up, **(plain | {"norm": weights.mlp_norm, "activation": activation}))
    return linear(hidden, *weights.down, **(plain | {"residual": x}))
