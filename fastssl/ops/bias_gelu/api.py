"""The public bias + GELU: checks, backend choice, autograd."""

import torch
from torch import Tensor

from fastssl.ops.backend import remembered_choice
from fastssl.ops.bias_gelu import native, reference, stock, triton_backend
from fastssl.ops.recording import differentiable_once, is_recorded

BACKENDS = {"native": native, "triton": triton_backend, "stock": stock, "reference": reference}
FUSED = [name for name, module in BACKENDS.items() if hasattr(module, "backward")]
"""Backends with a backward of their own; the others are made of operators that PyTorch differentiates."""
APPROXIMATIONS = ("none", "tanh")


def bias_gelu(x: Tensor, bias: Tensor, *, approximate: str = "none", backend: str = "auto") -> Tensor:
    """Add a bias and apply the Gaussian error linear unit, in one pass over memory.

    t = x + bias;  y = t Phi(t), where Phi is the normal distribution function, (1 + erf(t / sqrt(2))) / 2
    With approximate="tanh": y = t (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3))) / 2

    What `x` should be: a linear map's product without its bias, so that the bias costs no pass of its own, and its
    gradient, a sum over rows, comes from the pass that computes the gradient of `x`.

    Args:
        x: (..., F) float32, bfloat16, float16 or float64.
        bias: (F), of any of these dtypes, for example float32 beside 16-bit activations.
        approximate: "none" or "tanh", as in `torch.nn.functional.gelu`.
        backend: "auto", "native", "triton", "stock" or "reference".

    Returns:
        y, shape and dtype of `x`.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, an unknown approximation, or a backend that cannot
            run the call.

    Numerics: float32 arithmetic (float64 for float64 inputs); natively and in Triton Phi to within 1e-7 absolute.
    Memory: saves `x` and `bias`. Differentiable once (native, triton).

    Source: Hendrycks, Gimpel, "Gaussian Error Linear Units" (2016), arXiv 1606.08415, section 2.
    """
    _check(x, bias, approximate)
    name = backend_for(backend, x.device, x.dtype, bias.dtype)
    if name in FUSED and is_recorded(x, bias):
        if torch.compiler.is_compiling():  # its autograd.Function takes no tensor twice; a view is another tensor
            bias = bias.view_as(bias)
        return _FusedBiasGelu.apply(name, x, bias, approximate)
    return BACKENDS[name].forward(x, bias, approximate=approximate)


def backend_for(requested: str, device: torch.device, dtype: torch.dtype, bias_dtype: torch.dtype) -> str:
    """Return the name of the backend that serves x of a device and dtype; see `fastssl.ops.backend.choose`."""
    return remembered_choice("bias_gelu", requested, BACKENDS, device, dtype, {"bias_dtype": bias_dtype})


class _FusedBiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, x, bias, approximate):
        ctx.save_for_backward(x, bias)
        ctx.backend, ctx.approximate = backend, approximate
        return BACKENDS[backend].forward(x, bias, approximate=approximate)

    @staticmethod
    @differentiable_once
    def backward(ctx, saved, grad_y):
        x, bias = saved()
        grad_x, grad_bias = BACKENDS[ctx.backend].backward(grad_y, x, bias, approximate=ctx.approximate)
        return None, grad_x, grad_bias.to(bias.dtype), None


def _check(x: Tensor, bias: Tensor, approximate: str) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"bias_gelu: x needs a last dimension of at least one element, got shape {tuple(x.shape)}")
    if bias.shape != x.shape[-1:]:
        raise ValueError(
            f"bias_gelu: bias must have shape {tuple(x.shape[-1:])} for x of shape {tuple(x.shape)}, "
            f"got {tuple(bias.shape)}"
        )
    for name, tensor in (("x", x), ("bias", bias)):
        if not tensor.is_floating_point():
            raise ValueError(f"bias_gelu: {name} must be floating point, got {tensor.dtype}")
    if bias.device != x.device:
        raise ValueError(f"bias_gelu: bias must be on {x.device} like x, got {bias.device}")
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"bias_gelu: approximate must be one of {APPROXIMATIONS}, got {approximate!r}")
