"""The feed-forward network of a transformer block, and the activations it may use."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.nn.plain import is_plain
from fastssl.ops.bias_gelu.api import bias_gelu


def _tanh_gelu(x: Tensor) -> Tensor:  # no partial: a copy of a model would hold another one, which is not found below
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": F.relu,
    "silu": F.silu,
}
"""Name, as in Hugging Face's `hidden_act` -> function."""
APPROXIMATIONS: dict[Callable[[Tensor], Tensor], str] = {F.gelu: "none", _tanh_gelu: "tanh"}
"""GELU -> how it is approximated, as in `torch.nn.functional.gelu`."""


def activated(linear: nn.Module, activation: Callable[[Tensor], Tensor], x: Tensor, backend: str) -> Tensor:
    """Return ``activation(linear(x))``, the bias of a plain linear map and a GELU in one pass over its product.

    Args:
        linear: any map of rows; fused where it is a plain `nn.Linear`.
        activation: a value of `ACTIVATIONS`, or any function; fused where it is a GELU.
        x: (N, E).
        backend: of the fused operator.
    """
    if activation in APPROXIMATIONS and is_plain(linear, nn.Linear) and linear.bias is not None:
        product = F.linear(x, linear.weight)
        return bias_gelu(product, linear.bias, approximate=APPROXIMATIONS[activation], backend=backend)
    return activation(linear(x))


class MLP(nn.Module):
    """``down(activation(up(x)))``.

    Args:
        hidden_size: E.
        intermediate_size: F, the width in between.
        activation: a key of `ACTIVATIONS`.
        bias: whether its two maps have biases.

    Source: Vaswani et al. 2017 (arXiv 1706.03762) §3.3; GELU: Hendrycks and Gimpel 2016 (arXiv 1606.08415).
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, *, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias)
        self.activation = ACTIVATIONS[activation]
        self.backend = "auto"

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map each row by itself, (N, E) to (N, E)."""
        return self.down(activated(self.up, self.activation, hidden_states, self.backend))


class GatedMLP(nn.Module):
    """``down(activation(gate(x)) * up(x))``, gate and up in one matrix product.

    Args:
        hidden_size: E.
        intermediate_size: F, the width in between.
        activation: a key of `ACTIVATIONS`; "silu" makes it SwiGLU.
        bias: whether its maps have biases.

    Source: Shazeer 2020 (arXiv 2002.05202) §2.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * intermediate_size, bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map each row by itself, (N, E) to (N, E)."""
        gate, up = self.gate_up(hidden_states).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)
