"""Named shapes and edge inputs of `bias_gelu`, for tests and benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BiasGeluCase:
    """One call, or one linear map with a call behind it."""

    shape: tuple[int, ...]
    """Of x; the last dimension is F."""
    inputs_width: int = 0
    """E, width of the rows that the linear map of a benchmark takes."""
    magnitude: float = 1.0
    """Standard deviation of x."""

    def inputs(self, dtype: torch.dtype, bias_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the tensors of a call, by the names of the arguments; the same for every call of this method."""
        generator = torch.Generator().manual_seed(13)
        return {
            "x": (torch.randn(self.shape, generator=generator) * self.magnitude).to(dtype),
            "bias": torch.randn(self.shape[-1], generator=generator).to(bias_dtype or dtype),
        }

    def linear_inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors of the linear map and its bias, scaled so that its product has unit variance."""
        generator = torch.Generator().manual_seed(13)
        rows, width = self.shape
        return {
            "hidden": torch.randn(rows, self.inputs_width, generator=generator).to(dtype),
            "weight": (torch.randn(width, self.inputs_width, generator=generator) * self.inputs_width**-0.5).to(dtype),
            "bias": torch.randn(width, generator=generator).to(dtype),
        }


EDGE_CASES = {
    "one element": BiasGeluCase(shape=(1, 1)),
    "no rows": BiasGeluCase(shape=(0, 40)),
    "shorter than a vector": BiasGeluCase(shape=(3, 7)),
    "prime": BiasGeluCase(shape=(13, 131)),
    "three dimensions": BiasGeluCase(shape=(2, 3, 40)),
    "many rows": BiasGeluCase(shape=(700, 96)),
    "tails": BiasGeluCase(shape=(30, 100), magnitude=4.0),
    "1e4": BiasGeluCase(shape=(6, 100), magnitude=1e4),
}

BENCHMARK_CASES = {
    "1024 x 768 -> 3072": BiasGeluCase(shape=(1024, 3072), inputs_width=768),
    "2048 x 256 -> 1024": BiasGeluCase(shape=(2048, 1024), inputs_width=256),
    "600 x 384 -> 1536": BiasGeluCase(shape=(600, 1536), inputs_width=384),
}
