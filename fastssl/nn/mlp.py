"""The feed-forward network of a transformer block, and the activations it may use."""

import functools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
"""Name, as in Hugging Face's `hidden_act` -> function."""


class MLP(nn.Module):
    """``down(activation(up(x)))``.

    Args:
        hidden_size: E.
        intermediate_size: F, the width in between.
        activation: a key of `ACTIVATIONS`.

    Source: Vaswani et al. 2017 (arXiv 1706.03762) §3.3; GELU: Hendrycks and Gimpel 2016 (arXiv 1606.08415).
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)
        self.activation = ACTIVATIONS[activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map each row by itself, (N, E) to (N, E)."""
        return self.down(self.activation(self.up(hidden_states)))
