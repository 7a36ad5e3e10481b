"""`skinny_linear` by the compiled CPU kernels: one reading of the weight for all rows, on every instruction set."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.backend import Supports
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear.norm import KINDS, RowNorm

ACTIVATIONS = {"none": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "swiglu": 4}
INSTRUCTIONS = {"general": 0, "vnni": 1, "amx": 2}
"""What multiplies 8-bit weights. Both as in csrc/skinny_linear/skinny_linear.h."""
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
MAX_ROWS = 32
"""More rows of a floating weight are better left to the library's product."""
MAX_8_BIT_INPUTS = 32768
"""More products of bytes may leave 32 bits."""

SUPPORTS = Supports(
    devices=("cpu",),
    dtypes=(torch.float32,),
    needs_cpu_ops=True,
    refuses={
        "the weight is neither float32 nor bfloat16, nor has it 8 bits": lambda weight_dtype, **_: (
            weight_dtype not in WEIGHT_DTYPES
        ),
        f"x has more than {MAX_ROWS} rows": lambda weight_dtype, rows, **_: (
            rows > MAX_ROWS and weight_dtype is not torch.int8
        ),
        f"an 8-bit weight has more than {MAX_8_BIT_INPUTS} columns": lambda weight_dtype, inputs, **_: (
            inputs > MAX_8_BIT_INPUTS and weight_dtype is torch.int8
        ),
    },
)


def is_usual(x: Tensor, weight: Tensor | QuantizedWeight, norm: RowNorm | None) -> bool:
    """Return whether `forward` serves a call, or finds what is wrong with it; False where it takes more to tell."""
    if torch.is_grad_enabled() or x.dtype is not torch.float32 or not x.is_cpu or not extension.cpu_ops_loaded():
        return False
    if norm is not None and norm.kind not in KINDS:
        return False
    if type(weight) is QuantizedWeight:
        return x.dim() > 0 and x.shape[-1] == weight.in_features <= MAX_8_BIT_INPUTS
    return weight.dim() == 2 and x.numel() <= MAX_ROWS * weight.shape[-1] and weight.dtype in WEIGHT_DTYPES


def forward(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    *,
    norm: RowNorm | None,
    activation: str,
    residual: Tensor | None,
    instructions: str = "amx",
) -> Tensor:
    """Return y of `fastssl.ops.skinny_linear`; `instructions` are the best that may be used, where there are any."""
    scale = None
    if isinstance(weight, QuantizedWeight):
        weight, scale = weight.packed, weight.scale
    elif not weight.is_contiguous():
        weight = weight.contiguous()
    norm_weight, norm_bias, eps, kind = norm or (None, None, 0.0, "")
    return torch.ops.fastssl.skinny_linear(
        x, weight, scale, bias, norm_weight, norm_bias, eps, kind == "layer_norm", ACTIVATIONS.get(activation, -1),
        residual, INSTRUCTIONS[instructions],
    )  # fmt: skip


@extension.fake_kernel("fastssl::skinny_linear")
def _forward_fake(x, weight, scale, bias, norm_weight, norm_bias, eps, centred, activation, residual, instructions):
    outputs = weight.shape[0] if scale is None else scale.shape[0]
    if activation == ACTIVATIONS["swiglu"]:
        outputs //= 2
    return x.new_empty(*x.shape[:-1], outputs)
