"""The one error budget of every numeric test: |out - ref64| <= 2 |torch_same_dtype - ref64| + floor[dtype].

`ref64` is the reference definition in float64; `torch_same_dtype` is the same definition in the tested dtype. A kernel
may thus be as inexact as plain PyTorch in that dtype, twice over, plus a floor for values that PyTorch happens to hit.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""Absolute floor per dtype, in units of the largest magnitude of the reference (at least one)."""


def assert_within_budget(name: str, out: Tensor, same_dtype: Tensor, ref64: Tensor, dtype: torch.dtype | None = None):
    """Check one output. `dtype` sets the floor where an output is wider than the inputs (fp32 lse of bf16 inputs).

    The comparison is over the whole tensor: largest error against largest error, so that one lucky element of
    PyTorch's does not set the budget of its neighbour. Infinities must agree exactly; NaN is never accepted.
    """
    assert out.shape == ref64.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(ref64.shape)}"
    out64, same64 = out.detach().double(), same_dtype.detach().double()
    assert not out64.isnan().any(), f"{name}: NaN in the output"
    infinite = ref64.isinf()
    assert torch.equal(out64[infinite], ref64[infinite]), f"{name}: infinities differ"
    finite = ~infinite
    if not finite.any():
        return
    error = (out64 - ref64)[finite].abs().max().item()
    same_error = (same64 - ref64)[finite].abs().max().item()
    scale = max(1.0, ref64[finite].abs().max().item())
    budget = 2 * same_error + FLOOR[dtype or out.dtype] * scale
    assert error <= budget, f"{name}: error {error:.3e} above the budget {budget:.3e} (PyTorch's own {same_error:.3e})"


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Return the gradients of <function(*inputs), cotangent> for every floating input; zeros where unused."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    out = function(*leaves)
    wanted = [x for x in leaves if x.requires_grad]
    found = torch.autograd.grad(out, wanted, cotangent.to(out), allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


def check_against_reference(
    tested: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: Sequence[Tensor], names: Sequence[str]
) -> None:
    """Check the output and every gradient of `tested` against `reference` in float64 and in the inputs' dtype.

    Args:
        tested, reference: functions of the same positional tensors that return one tensor.
        inputs: the tensors; the floating ones get gradients.
        names: one name per floating input, for messages.
    """
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    dtype = next(x.dtype for x in inputs if x.is_floating_point())
    out, same, ref = tested(*inputs), reference(*inputs), reference(*wide)
    assert_within_budget("output", out, same, ref, dtype)
    cotangent = torch.randn(ref.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(out)
    rows = zip(
        names,
        gradients(tested, inputs, cotangent),
        gradients(reference, inputs, cotangent),
        gradients(reference, wide, cotangent.double()),
        strict=True,
    )
    for name, got, same_gradient, ref_gradient in rows:
        assert_within_budget(f"gradient of {name}", got, same_gradient, ref_gradient, dtype)
