"""Named shapes and edge inputs of `skinny_linear`, for tests and benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.ops.quantized_linear.weight import quantize_weight
from fastssl.ops.skinny_linear.norm import RowNorm


@dataclass(frozen=True, kw_only=True)
class SkinnyLinearCase:
    """One call: shapes, options and the range of the values."""

    shape: tuple[int, ...]
    """Of x; the last dimension is E."""
    outputs: int
    """F."""
    bias: bool = True
    """Whether there is a shift."""
    norm: str | None = None
    """Kind of the norm in front, or None."""
    activation: str = "none"
    """Of the outputs."""
    residual: bool = False
    """Whether something is added at the end."""
    magnitude: float = 1.0
    """Standard deviation of x."""

    def inputs(
        self, weight_dtype: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32
    ) -> dict[str, object]:
        """Return the arguments of a call, by name; the same for every call of this method.

        Args:
            weight_dtype: of the weight; torch.int8 for one of `quantize_weight`.
            dtype: of all others; the weight is rounded before it is widened to it, where it is wider.
        """
        generator = torch.Generator().manual_seed(19)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        inputs = self.shape[-1]
        weight = draw(self.outputs, inputs) * inputs**-0.5
        arguments = {
            "x": (draw(*self.shape) * self.magnitude).to(dtype),
            "weight": quantize_weight(weight) if weight_dtype == torch.int8 else weight.to(weight_dtype),
            "bias": draw(self.outputs).to(dtype) if self.bias else None,
            "activation": self.activation,
        }
        if self.norm is not None:
            shift = draw(inputs).to(dtype) if self.norm == "layer_norm" else None
            arguments["norm"] = RowNorm((1 + draw(inputs) / 4).to(dtype), shift, 1e-5, self.norm)
        if self.residual:
            width = self.outputs // 2 if self.activation == "swiglu" else self.outputs
            arguments["residual"] = draw(*self.shape[:-1], width).to(dtype)
        return arguments


EDGE_CASES = {
    "one element": SkinnyLinearCase(shape=(1, 1), outputs=1),
    "no rows": SkinnyLinearCase(shape=(0, 40), outputs=24, norm="layer_norm"),
    "one dimension": SkinnyLinearCase(shape=(40,), outputs=9, norm="rms_norm"),
    "shorter than a vector": SkinnyLinearCase(shape=(3, 3), outputs=5, activation="gelu"),
    "prime": SkinnyLinearCase(shape=(13, 131), outputs=47, activation="gelu_tanh", norm="layer_norm", residual=True),
    "no bias": SkinnyLinearCase(shape=(2, 3, 40), outputs=33, bias=False, norm="rms_norm"),
    "gated": SkinnyLinearCase(shape=(3, 48), outputs=38, activation="swiglu", residual=True),
    "gated whole panels": SkinnyLinearCase(shape=(5, 64), outputs=128, bias=False, activation="swiglu"),
    "silu": SkinnyLinearCase(shape=(7, 65), outputs=34, activation="silu"),
    "longer than a piece": SkinnyLinearCase(shape=(5, 2100), outputs=21, norm="layer_norm", residual=True),
    "many rows": SkinnyLinearCase(shape=(32, 96), outputs=80, activation="gelu"),
    "1e4": SkinnyLinearCase(shape=(6, 100), outputs=40, magnitude=1e4, activation="gelu"),
    "1e-20": SkinnyLinearCase(shape=(6, 100), outputs=40, magnitude=1e-20, bias=False),
    "zeros": SkinnyLinearCase(shape=(4, 64), outputs=17, magnitude=0.0),
}

GPT2_MAPS = {
    "768 to 2304": SkinnyLinearCase(shape=(1, 768), outputs=2304, norm="layer_norm"),
    "768 to 768": SkinnyLinearCase(shape=(1, 768), outputs=768, residual=True),
    "768 to 3072": SkinnyLinearCase(shape=(1, 768), outputs=3072, norm="layer_norm", activation="gelu_tanh"),
    "3072 to 768": SkinnyLinearCase(shape=(1, 3072), outputs=768, residual=True),
    "768 to 50257": SkinnyLinearCase(shape=(1, 768), outputs=50257, bias=False, norm="layer_norm"),
}
"""The linear maps of a block of GPT-2, with what belongs to them, and its head."""
