"""One new token of each sequence through a block: what generation does over and over, at the memory's speed.

The rows are few, so reading the weights is nearly all that a step costs. Each linear map is one call that norms its
rows on the way in, and adds bias, activation and residual on the way out; attention is one call that turns, remembers
and attends.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.nn.causal_block import CausalBlock
from fastssl.nn.kv_cache import LayerCache
from fastssl.nn.mlp import ACTIVATIONS, GatedMLP
from fastssl.nn.norm import LayerNorm, RMSNorm
from fastssl.nn.quantized import QuantizedLinear
from fastssl.nn.rotary import Rotation
from fastssl.ops.cached_attention.api import cached_attention
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear.api import skinny_linear
from fastssl.ops.skinny_linear.norm import RowNorm

MAX_ROWS = 32
"""More sequences are better served by the products that read a prompt."""
_FUSED = {F.gelu: "gelu", ACTIVATIONS["gelu_new"]: "gelu_tanh", F.silu: "silu"}
"""Function of an MLP -> its name in `skinny_linear`."""


def decode_block(
    block: CausalBlock, stream: Tensor, cache: LayerCache, lengths: Tensor, rotation: Rotation | None
) -> Tensor:
    """Return the residual stream behind a block, (B, E) from (B, E), for one new token of each sequence.

    Args:
        block: without dropout.
        stream: (B, E) fp32.
        cache: of this layer; it takes the new keys and values.
        lengths: (B) int32, tokens in the cache before this one.
        rotation: of the new tokens; None where positions are embedded.
    """
    attention = block.attention
    heads = linear(attention.qkv, stream, norm=block.attention_norm).unflatten(-1, (-1, attention.head_dim))
    sizes = (attention.num_heads, attention.num_key_value_heads, attention.num_key_value_heads)
    q, k, v = heads.split(sizes, dim=1)
    rotary = None if rotation is None else tuple(torch.cat((turn, turn), dim=-1) for turn in rotation)
    mixed = cached_attention(
        q, k, v, cache.keys, cache.values, lengths, window=attention.window, rotary=rotary, backend=attention.backend
    )
    stream = linear(attention.output, mixed.flatten(1), residual=stream)
    return linear(block.mlp.down, _hidden(block, stream), residual=stream)


def linear(
    module: nn.Linear | nn.Embedding | QuantizedLinear,
    x: Tensor,
    *,
    norm: LayerNorm | RMSNorm | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Return ``activation(module(norm(x))) + residual`` for few rows; what a quantised map has fused is not applied.

    Args:
        module: its weight may be fp32, bf16 or of 8 bits; an embedding scores with its rows.
        x: (B, E) fp32.
        norm: of the rows of x.
        activation: as in `skinny_linear`.
        residual: added last.
    """
    weight = quantized_weight(module) if isinstance(module, QuantizedLinear) else module.weight
    row_norm = None
    if norm is not None:
        kind = "layer_norm" if isinstance(norm, LayerNorm) else "rms_norm"
        row_norm = RowNorm(norm.weight, getattr(norm, "bias", None), norm.eps, kind)
    bias = getattr(module, "bias", None)
    return skinny_linear(x, weight, bias, norm=row_norm, activation=activation, residual=residual)


def quantized_weight(module: QuantizedLinear) -> QuantizedWeight:
    """Return the weight of a quantised map."""
    return QuantizedWeight(packed=module.packed, scale=module.scale, sum=module.sum, in_features=module.in_features)


def _hidden(block: CausalBlock, stream: Tensor) -> Tensor:
    """Return what the feed-forward network maps down again."""
    mlp, norm = block.mlp, block.mlp_norm
    if isinstance(mlp, GatedMLP):
        if mlp.activation is F.silu:
            return linear(mlp.gate_up, stream, norm=norm, activation="swiglu")
        gate, up = linear(mlp.gate_up, stream, norm=norm).chunk(2, dim=-1)
        return mlp.activation(gate) * up
    if isinstance(mlp.up, QuantizedLinear) and mlp.up.activation != "none":
        return linear(mlp.up, stream, norm=norm, activation=mlp.up.activation)
    fused = _FUSED.get(mlp.activation)
    if fused is None:
        return mlp.activation(linear(mlp.up, stream, norm=norm))
    return linear(mlp.up, stream, norm=norm, activation=fused)
