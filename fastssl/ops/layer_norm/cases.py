"""Named shapes and edge inputs of `layer_norm`, for tests and benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerNormCase:
    """One call: shapes, options and the range of the values."""

    shape: tuple[int, ...]
    """Of x; the last dimension is E."""
    bias: bool = True
    """Whether there is a shift."""
    residual: bool = False
    """Whether a residual is added."""
    dropout_p: float = 0.0
    """Probability of dropping an element of x."""
    eps: float = 1e-5
    """Added to the variance; without a variance its root divides every rounding error."""
    offset: float = 0.0
    """Added to x: a large mean makes the variance hard."""
    magnitude: float = 1.0
    """Standard deviation of x; 0 makes constant rows."""

    def inputs(self, dtype: torch.dtype, residual_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the tensors of a call, by the names of the arguments; the same for every call of this method."""
        generator = torch.Generator().manual_seed(11)
        width = self.shape[-1]
        tensors = {
            "x": torch.randn(self.shape, generator=generator) * self.magnitude + self.offset,
            "weight": torch.randn(width, generator=generator),
        }
        if self.bias:
            tensors["bias"] = torch.randn(width, generator=generator)
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        if self.residual:
            tensors["residual"] = torch.randn(self.shape, generator=generator).to(residual_dtype or dtype)
        return tensors


EDGE_CASES = {
    "one element": LayerNormCase(shape=(1, 1), eps=1e-2),
    "width one": LayerNormCase(shape=(5, 1), residual=True, eps=1e-2),
    "no rows": LayerNormCase(shape=(0, 40), residual=True, dropout_p=0.1),
    "shorter than a vector": LayerNormCase(shape=(3, 7)),
    "prime": LayerNormCase(shape=(13, 131), residual=True, dropout_p=0.1),
    "no bias": LayerNormCase(shape=(2, 3, 40), bias=False),
    "dropout alone": LayerNormCase(shape=(37, 96), dropout_p=0.5),
    "residual": LayerNormCase(shape=(150, 256), residual=True),
    "large mean": LayerNormCase(shape=(9, 384), offset=300.0),
    "constant rows": LayerNormCase(shape=(4, 64), magnitude=0.0, offset=2.0),
    "1e4": LayerNormCase(shape=(6, 100), magnitude=1e4, residual=True),
}

BENCHMARK_CASES = {
    f"4096 x {width}{suffix}": LayerNormCase(shape=(4096, width), **options)
    for width in (384, 768, 1024, 4096)
    for suffix, options in (("", {}), (" + residual, dropout", {"residual": True, "dropout_p": 0.1}))
}
