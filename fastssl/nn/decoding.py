"""One new token of each sequence through a block: what generation does over and over, at the memory's speed.

The rows are few, so reading the weights is nearly all that a step costs. A block is one call of `decoder_block`, whose
parameters are put together once for many tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.nn.causal_attention import CausalSelfAttention
from fastssl.nn.causal_block import CausalBlock
from fastssl.nn.kv_cache import LayerCache
from fastssl.nn.mlp import ACTIVATIONS, MLP, GatedMLP
from fastssl.nn.norm import LayerNorm, RMSNorm
from fastssl.nn.plain import is_plain
from fastssl.nn.quantized import QuantizedLinear
from fastssl.nn.rotary import Rotation
from fastssl.ops.decoder_block.api import decoder_block
from fastssl.ops.decoder_block.weights import BlockWeights, LinearMap
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear.api import skinny_linear
from fastssl.ops.skinny_linear.norm import RowNorm

Rotary = tuple[Tensor, Tensor]
"""cos and sin, (B, D) each."""
MAX_ROWS = 32
"""More sequences are better served by the products that read a prompt."""
_FUSED = {F.gelu: "gelu", ACTIVATIONS["gelu_new"]: "gelu_tanh", F.silu: "silu"}
"""Function of an MLP -> its name in `decoder_block`."""


class DecodingBlock:
    """A block, made ready to be called once a token.

    Args:
        block: one that `decodes`. It is to be made ready again where it gets other weights.
    """

    @staticmethod
    def decodes(block: CausalBlock) -> bool:
        """Return whether a block does what its parameters say and no more, and its network is one that is known."""
        attention, mlp = block.attention, block.mlp
        if not (
            is_plain(block, CausalBlock)
            and is_plain(attention, CausalSelfAttention)
            and is_plain(mlp, MLP, GatedMLP)
            and all(is_plain(norm, LayerNorm, RMSNorm) for norm in (block.attention_norm, block.mlp_norm))
        ):
            return False
        maps = (attention.qkv, attention.output, _up(mlp), mlp.down)
        return all(is_plain(linear, nn.Linear, QuantizedLinear) for linear in maps) and bool(fused_activation(mlp))

    def __init__(self, block: CausalBlock) -> None:
        attention, mlp = block.attention, block.mlp
        # PyTorch's own dictionaries, since this is asked for each token.
        self._hooks = [hooks for part in block.modules() for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self._weights = BlockWeights(
            attention_norm=row_norm(block.attention_norm),
            qkv=linear_map(attention.qkv),
            out=linear_map(attention.output),
            mlp_norm=row_norm(block.mlp_norm),
            up=linear_map(_up(mlp)),
            down=linear_map(mlp.down),
        )
        self._activation = fused_activation(mlp)
        self._window, self._backend = attention.window, attention.backend

    @property
    def has_hooks(self) -> bool:
        """Whether somebody has hung a hook on a part of the block since."""
        return any(self._hooks)

    def __call__(self, stream: Tensor, cache: LayerCache, lengths: Tensor, rotary: Rotary | None) -> Tensor:
        """Return the residual stream behind the block, (B, E) from (B, E), for one new token of each sequence.

        Args:
            stream: (B, E) fp32.
            cache: of this layer; it takes the new keys and values.
            lengths: (B) int32, tokens in the cache before this one.
            rotary: as in `cached_attention`, see `rotary_tables`; None where positions are embedded.
        """
        return decoder_block(
            stream,
            self._weights,
            cache.keys,
            cache.values,
            lengths,
            activation=self._activation,
            window=self._window,
            rotary=rotary,
            backend=self._backend,
        )


def scores(head: nn.Linear | nn.Embedding | QuantizedLinear, stream: Tensor, norm: LayerNorm | RMSNorm) -> Tensor:
    """Return the scores (B, V) of the residual stream (B, E) fp32 behind the last block; an embedding scores too."""
    return skinny_linear(stream, *linear_map(head), norm=row_norm(norm))


def fused_activation(mlp: MLP | GatedMLP) -> str | None:
    """Return what `decoder_block` calls the activation of a network; None where it has none such."""
    if isinstance(mlp, GatedMLP):
        return "swiglu" if mlp.activation is F.silu else None
    if isinstance(mlp.up, QuantizedLinear) and mlp.up.activation != "none":
        return mlp.up.activation
    return _FUSED.get(mlp.activation)


def _up(mlp: MLP | GatedMLP) -> nn.Linear | QuantizedLinear:
    return mlp.gate_up if isinstance(mlp, GatedMLP) else mlp.up


def rotary_tables(rotation: Rotation | None) -> Rotary | None:
    """Return the turns of new tokens as `cached_attention` takes them: once for the first half of a head, once more."""
    return None if rotation is None else tuple(torch.cat((turn, turn), dim=-1) for turn in rotation)


def linear_map(module: nn.Linear | nn.Embedding | QuantizedLinear) -> LinearMap:
    """Return weight and bias of a map, the bias in fp32; what a quantised map has fused is not part of it."""
    bias = getattr(module, "bias", None)
    return LinearMap(
        quantized_weight(module) if isinstance(module, QuantizedLinear) else module.weight,
        None if bias is None else bias.float(),
    )


def row_norm(norm: LayerNorm | RMSNorm) -> RowNorm:
    """Return the parameters of a norm, in fp32."""
    if isinstance(norm, RMSNorm):
        return RowNorm(norm.weight.float(), None, norm.eps, "rms_norm")
    return RowNorm(norm.weight.float(), norm.bias.float(), norm.eps, "layer_norm")


def quantized_weight(module: QuantizedLinear) -> QuantizedWeight:
    """Return the weight of a quantised map."""
    return QuantizedWeight(packed=module.packed, scale=module.scale, sum=module.sum, in_features=module.in_features)
