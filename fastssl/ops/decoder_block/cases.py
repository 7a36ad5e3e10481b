"""Named shapes and edge inputs of `decoder_block`, for tests and benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.ops.cached_attention.cases import CachedAttentionCase
from fastssl.ops.decoder_block.weights import BlockWeights, LinearMap
from fastssl.ops.quantized_linear.weight import quantize_weight
from fastssl.ops.skinny_linear.norm import RowNorm


@dataclass(frozen=True, kw_only=True)
class DecoderBlockCase:
    """One call: shapes and options."""

    attention: CachedAttentionCase
    """Sequences, heads and caches."""
    inputs_width: int
    """E."""
    hidden: int
    """F."""
    norm: str = "layer_norm"
    """Kind of the norms."""
    bias: bool = True
    """Whether the maps have shifts."""
    activation: str = "gelu_tanh"
    """Of the feed-forward network."""

    def inputs(
        self, weight_dtype: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32
    ) -> dict[str, object]:
        """Return the arguments of a call, by name; the same for every call of this method.

        Args:
            weight_dtype: of the maps' weights; torch.int8 for those of `quantize_weight`.
            dtype: of all else.
        """
        generator = torch.Generator().manual_seed(29)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def linear(inputs: int, outputs: int) -> LinearMap:
            weight = draw(outputs, inputs) * inputs**-0.5
            weight = quantize_weight(weight) if weight_dtype == torch.int8 else weight.to(weight_dtype)
            return LinearMap(weight, draw(outputs).to(dtype) if self.bias else None)

        def norm() -> RowNorm:
            shift = draw(self.inputs_width).to(dtype) if self.norm == "layer_norm" else None
            return RowNorm((1 + draw(self.inputs_width) / 4).to(dtype), shift, 1e-5, self.norm)

        case = self.attention
        heads, key_heads = case.heads * case.width, (case.key_heads or case.heads) * case.width
        up = 2 * self.hidden if self.activation == "swiglu" else self.hidden
        arguments = case.inputs(dtype, dtype)
        kept = ("lengths", "window", "k_cache", "v_cache", "rotary")
        return {name: arguments[name] for name in kept if name in arguments} | {
            "x": draw(len(case.lengths), self.inputs_width).to(dtype),
            "activation": self.activation,
            "weights": BlockWeights(
                attention_norm=norm(),
                qkv=linear(self.inputs_width, heads + 2 * key_heads),
                out=linear(heads, self.inputs_width),
                mlp_norm=norm(),
                up=linear(self.inputs_width, up),
                down=linear(self.hidden, self.inputs_width),
            ),
        }


EDGE_CASES = {
    "gpt2": DecoderBlockCase(
        attention=CachedAttentionCase(lengths=(9, 0, 30), slots=31, heads=3, width=16), inputs_width=48, hidden=192
    ),
    "llama": DecoderBlockCase(
        attention=CachedAttentionCase(lengths=(40, 7), slots=32, heads=4, key_heads=2, width=8, window=32, rotary=True),
        inputs_width=40,
        hidden=72,
        norm="rms_norm",
        bias=False,
        activation="swiglu",
    ),
    "one number": DecoderBlockCase(
        attention=CachedAttentionCase(lengths=(0,), slots=1, heads=1, width=1), inputs_width=1, hidden=1
    ),
    "primes": DecoderBlockCase(
        attention=CachedAttentionCase(lengths=(5,) * 11, slots=7, heads=3, key_heads=1, width=7),
        inputs_width=29,
        hidden=53,
        activation="gelu",
    ),
    "no sequences": DecoderBlockCase(
        attention=CachedAttentionCase(lengths=(), slots=7, heads=3, width=8), inputs_width=24, hidden=32
    ),
}


def gpt2_block(sequences: int, length: int) -> DecoderBlockCase:
    """Return a block of GPT-2 124M."""
    attention = CachedAttentionCase(lengths=(length,) * sequences, slots=length + 1, heads=12, width=64)
    return DecoderBlockCase(attention=attention, inputs_width=768, hidden=3072)
