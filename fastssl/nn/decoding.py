"""One new token of each sequence through a block: what generation does over and over, at the memory's speed.

The rows are few, so reading the weights is nearly all that a step costs. Each linear map is one call that norms its
rows on the way in, and adds bias, activation and residual on the way out; attention is one call that turns, remembers
and attends.
"""

from collections.abc import Callable
from functools import partial

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

Rotary = tuple[Tensor, Tensor]
"""cos and sin, (B, D) each."""
MAX_ROWS = 32
"""More sequences are better served by the products that read a prompt."""
_FUSED = {F.gelu: "gelu", ACTIVATIONS["gelu_new"]: "gelu_tanh", F.silu: "silu"}
"""Function of an MLP -> its name in `skinny_linear`."""


class RowMap:
    """``activation(module(norm(x))) + residual`` for few rows, what belongs to it looked up once and not each time.

    Args:
        module: its weight may be fp32, bf16 or of 8 bits; an embedding scores with its rows. What a quantised map has
            fused is not applied.
        norm: of the rows of x.
        activation: as in `skinny_linear`.
    """

    def __init__(
        self,
        module: nn.Linear | nn.Embedding | QuantizedLinear,
        norm: LayerNorm | RMSNorm | None = None,
        activation: str = "none",
    ) -> None:
        self._weight = quantized_weight(module) if isinstance(module, QuantizedLinear) else module.weight
        self._bias = getattr(module, "bias", None)
        self._activation = activation
        self._norm = None
        if norm is not None:
            kind = "layer_norm" if isinstance(norm, LayerNorm) else "rms_norm"
            self._norm = RowNorm(norm.weight, getattr(norm, "bias", None), norm.eps, kind)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (B, E) fp32; the residual is added last."""
        return skinny_linear(
            x, self._weight, self._bias, norm=self._norm, activation=self._activation, residual=residual
        )


class DecodingBlock:
    """A block, made ready to be called once a token.

    Args:
        block: without dropout. It is not to be given other weights in the meantime; its own may change in place.
    """

    def __init__(self, block: CausalBlock) -> None:
        self._attention = block.attention
        heads, shared = block.attention.num_heads, block.attention.num_key_value_heads
        self._sizes, self._shape = (heads, shared, shared), (-1, heads + 2 * shared, block.attention.head_dim)
        self._qkv = RowMap(block.attention.qkv, block.attention_norm)
        self._output, self._down = RowMap(block.attention.output), RowMap(block.mlp.down)
        self._hidden = _hidden(block)

    def __call__(self, stream: Tensor, cache: LayerCache, lengths: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the residual stream behind the block, (B, E) from (B, E), for one new token of each sequence.

        Args:
            stream: (B, E) fp32.
            cache: of this layer; it takes the new keys and values.
            lengths: (B) int32, tokens in the cache before this one.
            rotary: as in `cached_attention`, see `rotary_tables`; None where positions are embedded.
        """
        q, k, v = self._qkv(stream).view(self._shape).split_with_sizes(self._sizes, dim=1)
        attention = self._attention
        mixed = cached_attention(
            q, k, v, cache.keys, cache.values, lengths, window=attention.window, rotary=rotary,
            backend=attention.backend,
        )  # fmt: skip
        stream = self._output(mixed.flatten(1), stream)
        return self._down(self._hidden(stream), stream)


def rotary_tables(rotation: Rotation | None) -> Rotary | None:
    """Return the turns of new tokens as `cached_attention` takes them: once for the first half of a head, once more."""
    return None if rotation is None else tuple(torch.cat((turn, turn), dim=-1) for turn in rotation)


def quantized_weight(module: QuantizedLinear) -> QuantizedWeight:
    """Return the weight of a quantised map."""
    return QuantizedWeight(packed=module.packed, scale=module.scale, sum=module.sum, in_features=module.in_features)


def _hidden(block: CausalBlock) -> Callable[[Tensor], Tensor]:
    """Return what leads from the stream to what the feed-forward network maps down again."""
    mlp, norm = block.mlp, block.mlp_norm
    if isinstance(mlp, GatedMLP):
        if mlp.activation is F.silu:
            return RowMap(mlp.gate_up, norm, "swiglu")
        return partial(_gated, RowMap(mlp.gate_up, norm), mlp.activation)
    if isinstance(mlp.up, QuantizedLinear) and mlp.up.activation != "none":
        return RowMap(mlp.up, norm, mlp.up.activation)
    fused = _FUSED.get(mlp.activation)
    return partial(_activated, RowMap(mlp.up, norm), mlp.activation) if fused is None else RowMap(mlp.up, norm, fused)


def _gated(gate_up: RowMap, activation: Callable[[Tensor], Tensor], stream: Tensor) -> Tensor:
    gate, up = gate_up(stream).chunk(2, dim=-1)
    return activation(gate) * up


def _activated(up: RowMap, activation: Callable[[Tensor], Tensor], stream: Tensor) -> Tensor:
    return activation(up(stream))
