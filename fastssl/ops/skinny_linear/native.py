"""`skinny_linear` by the compiled CPU kernels: one reading of the weight for all rows, on every instruction set."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.backend import Supports
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear.norm import RowNorm

ACTIVATIONS = {"none": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3, "swiglu": 4}
"""As in csrc/skinny_linear/skinny_linear.h."""
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


def forward(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    *,
    norm: RowNorm | None,
    activation: str,
    residual: Tensor | None,
    vnni: bool = True,
) -> Tensor:
    """Return y of `fastssl.ops.skinny_linear`; `vnni` allows the instructions of that name, where there are any."""
    scale = None
    if isinstance(weight, QuantizedWeight):
        weight, scale = weight.packed, weight.scale
    elif not weight.is_contiguous():
        weight = weight.contiguous()
    norm_weight, norm_bias, eps, kind = norm or (None, None, 0.0, "")
    return torch.ops.fastssl.skinny_linear(
        x, weight, scale, bias, norm_weight, norm_bias, eps, kind == "layer_norm", ACTIVATIONS[activation], residual,
        vnni,
    )  # fmt: skip


@extension.fake_kernel("fastssl::skinny_linear")
def _forward_fake(x, weight, scale, bias, norm_weight, norm_bias, eps, centred, activation, residual, vnni):
    outputs = weight.shape[0] if scale is None else scale.shape[0]
    if activation == ACTIVATIONS["swiglu"]:
        outputs //= 2
    return x.new_empty(*x.shape[:-1], outputs)
