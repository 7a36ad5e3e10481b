"""Forward and backward of an operator as one launch, and the check that contenders give the same numbers."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.oracle import assert_within_budget

Outputs = dict[str, Tensor]
"""The output, and the gradient of every input, by name."""


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


def assert_agreement(found: Mapping[str, Callable[[], Outputs]], same: Outputs, exact: Outputs) -> None:
    """Hold every output of every contender to the error budget of the tests.

    Args:
        found: contender -> launch.
        same: outputs of the definition in the dtype of the contenders.
        exact: outputs of the definition in float64.

    Raises:
        AssertionError: naming contender, output, error and budget.
    """
    for contender, launch in found.items():
        for name, value in launch().items():
            assert_within_budget(f"{contender}: {name}", value, same[name], exact[name], value.dtype)


def widened(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs in float64."""
    return {name: tensor.double() for name, tensor in inputs.items()}
