"""Forward and backward of an operator as one launch, and the check that contenders give the same numbers."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.comparison import OURS
from tests.oracle import assert_within_budget

Outputs = dict[str, Tensor]
"""The output, and the gradient of every input, by name."""


PEER_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Error of a peer above which it computes something else, in units of the largest magnitude."""


def forward_backward(
    function: Callable[..., Tensor], inputs: Mapping[str, Tensor], cotangent: Tensor | None = None
) -> Callable[[], Outputs]:
    """Return a launch of `function(**inputs)` and of its backward.

    Args:
        function: returns one tensor.
        inputs: floating tensors; contenders may share them, since gradients are returned and not accumulated.
        cotangent: gradient of the output; None for a scalar loss.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}

    def launch() -> Outputs:
        out = function(**leaves)
        found = torch.autograd.grad(out, list(leaves.values()), cotangent)
        return {"output": out.detach()} | {f"gradient of {name}": g for name, g in zip(leaves, found, strict=True)}

    return launch


def assert_agreement(
    found: Mapping[str, Callable[[], Outputs]], same: Outputs, exact: Outputs, dtype: torch.dtype | None = None
) -> None:
    """Hold our outputs to the error budget of the tests, and a peer's to the same mathematics.

    A peer may be less exact than we allow ourselves (sums of thousands of rows in one float32, say) and still be one.

    Args:
        found: contender -> launch.
        same: outputs of the definition in the dtype of the contenders.
        exact: outputs of the definition in float64.
        dtype: whose floor and tolerance hold, where an output is wider than the inputs; None: each output's own.

    Raises:
        AssertionError: naming contender, output and error.
    """
    for contender, launch in found.items():
        for name, value in launch().items():
            title = f"{contender}: {name}"
            if contender == OURS:
                assert_within_budget(title, value, same[name], exact[name], dtype or value.dtype)
            else:
                _assert_same_mathematics(title, value, exact[name], dtype or value.dtype)


def _assert_same_mathematics(title: str, value: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, exact.abs().max().item())
    error = (value.double() - exact).abs().max().item()
    assert error <= PEER_TOLERANCE[dtype] * scale, f"{title}: error {error:.3e} at a scale of {scale:.3e}"


def widened(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs in float64."""
    return {name: tensor.double() for name, tensor in inputs.items()}
