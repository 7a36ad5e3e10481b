"""`decoder_block` by the compiled CPU kernels, on every instruction set."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.backend import Supports
from fastssl.ops.cached_attention.native import note_writes
from fastssl.ops.decoder_block.weights import BlockWeights, LinearMap
from fastssl.ops.quantized_linear.weight import QUAD, QuantizedWeight
from fastssl.ops.skinny_linear.native import ACTIVATIONS, INSTRUCTIONS, MAX_8_BIT_INPUTS, MAX_ROWS, WEIGHT_DTYPES
from fastssl.ops.skinny_linear.norm import KINDS

SUPPORTS = Supports(
    devices=("cpu",),
    dtypes=(torch.float32,),
    needs_cpu_ops=True,
    refuses={
        "a weight is neither float32 nor bfloat16, nor has it 8 bits": lambda weight_dtypes, **_: (
            not weight_dtypes <= set(WEIGHT_DTYPES)
        ),
        "a weight, a parameter, a rotary table or lengths are not contiguous": lambda packed, **_: not packed,
        "a parameter or a rotary table is not float32": lambda parameter_dtypes, **_: (
            parameter_dtypes != {torch.float32}
        ),
        f"there are more than {MAX_ROWS} sequences and a weight is floating": lambda rows, weight_dtypes, **_: (
            rows > MAX_ROWS and weight_dtypes != {torch.int8}
        ),
        f"a weight has more than {MAX_8_BIT_INPUTS} columns": lambda inputs, **_: inputs > MAX_8_BIT_INPUTS,
        "the caches are neither float32 nor bfloat16": lambda cache_dtype, **_: cache_dtype not in WEIGHT_DTYPES[:2],
        "the numbers of a token are not neighbours in a cache": lambda cache_strides, **_: cache_strides != 1,
    },
)


def is_usual(x: Tensor, weights: BlockWeights, window: int | None, rotary: tuple[Tensor, Tensor] | None) -> bool:
    """Return whether `forward` serves a call, or finds what is wrong with it; False where it takes more to tell."""
    if torch.is_grad_enabled() or x.dtype is not torch.float32 or not x.is_cpu or not extension.cpu_ops_loaded():
        return False
    if not weights.attention_norm.kind == weights.mlp_norm.kind in KINDS or (window is not None and window < 1):
        return False
    if rotary is not None and len(rotary) != 2:
        return False
    for weight, _ in (weights.qkv, weights.out, weights.up, weights.down):
        if type(weight) is QuantizedWeight:
            # The kernel sees no more of the number of columns than how many quads hold them.
            if weight.in_features % QUAD or weight.in_features > MAX_8_BIT_INPUTS:
                return False
        elif len(x) > MAX_ROWS:
            return False
    return True


def forward(
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
    """Return the output of `fastssl.ops.decoder_block`."""
    attention_norm, qkv, out, mlp_norm, up, down = weights
    cos, sin = rotary or (None, None)
    y = torch.ops.fastssl.decoder_block(
        x.contiguous(), attention_norm.weight, attention_norm.bias, *_operands(qkv), *_operands(out), mlp_norm.weight,
        mlp_norm.bias, *_operands(up), *_operands(down), k_cache, v_cache, lengths, cos, sin, window or 0, scale,
        attention_norm.eps, mlp_norm.eps, attention_norm.kind == "layer_norm", ACTIVATIONS.get(activation, -1),
        INSTRUCTIONS["amx"],
    )  # fmt: skip
    note_writes(k_cache, v_cache)
    return y


def _operands(linear: LinearMap) -> tuple[Tensor, Tensor | None, Tensor | None]:
    weight, bias = linear
    if type(weight) is QuantizedWeight:
        return weight.packed, weight.scale, bias
    return weight, None, bias


@extension.fake_kernel("fastssl::decoder_block")
def _forward_fake(x, *_):
    return torch.empty_like(x, memory_format=torch.contiguous_format)
