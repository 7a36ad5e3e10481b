"""`quantized_linear` by the compiled CPU kernels: exact sums on every instruction set, VNNI where there is."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.backend import Supports
from fastssl.ops.quantized_linear.weight import QuantizedWeight

SUPPORTS = Supports(devices=("cpu",), dtypes=(torch.float32, torch.bfloat16), needs_cpu_ops=True)


def forward(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, *, gelu: bool, vnni: bool = True) -> Tensor:
    """Return (N, F) in x's dtype; `vnni` allows the instructions of that name, where the machine has them."""
    bias = None if bias is None else bias.float().contiguous()
    return torch.ops.fastssl.quantized_linear(x, weight.packed, weight.scale, weight.sum, bias, gelu, vnni)


@extension.fake_kernel("fastssl::quantized_linear")
def _forward_fake(x, packed, scale, sum, bias, gelu, vnni):
    return x.new_empty(x.shape[0], scale.shape[0])
