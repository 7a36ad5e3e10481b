"""`bias_gelu` by the compiled CPU kernels: one pass over memory in each direction, on every instruction set."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.backend import Supports

SUPPORTS = Supports(
    devices=("cpu",),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    needs_cpu_ops=True,
    refuses={"the bias is float64": lambda bias_dtype: bias_dtype == torch.float64},
)


def forward(x: Tensor, bias: Tensor, *, approximate: str) -> Tensor:
    """Return y of `fastssl.ops.bias_gelu`, without a graph for autograd."""
    return torch.ops.fastssl.bias_gelu_forward(x, bias, approximate == "tanh")


def backward(grad_y: Tensor, x: Tensor, bias: Tensor, *, approximate: str) -> tuple[Tensor, Tensor]:
    """Return the gradients of `x`, in its dtype, and of `bias`, float32."""
    return torch.ops.fastssl.bias_gelu_backward(grad_y, x, bias, approximate == "tanh")


@extension.fake_kernel("fastssl::bias_gelu_forward")
def forward_fake(x, bias, tanh):
    """Return what the forward of the fused backends returns, uninitialised."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@extension.fake_kernel("fastssl::bias_gelu_backward")
def backward_fake(grad_y, x, bias, tanh):
    """Return what their backward returns, uninitialised."""
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return grad_x, bias.new_empty(bias.shape, dtype=torch.float32)
