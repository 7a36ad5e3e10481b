"""Named shapes and edge inputs of `quantized_linear`, for tests and benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class QuantizedLinearCase:
    """One call: shapes, options and the range of the values."""

    shape: tuple[int, ...]
    """Of x; the last dimension is E."""
    outputs: int
    """F."""
    bias: bool = True
    """Whether there is a shift."""
    activation: str = "none"
    """Of the outputs."""
    magnitude: float = 1.0
    """Standard deviation of x; 0 makes constant rows."""
    offset: float = 0.0
    """Added to x."""
    extreme: bool = False
    """Whether the values of x and of the weight are the smallest and largest of their rows, with the same signs or with
    opposite ones (a negative magnitude), so that the sums are as large as can be."""

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return x, the weight (F, E) before it is quantised, and the bias; the same for every call of this method."""
        generator = torch.Generator().manual_seed(17)
        x = torch.randn(self.shape, generator=generator) * self.magnitude + self.offset
        weight = torch.randn(self.outputs, self.shape[-1], generator=generator) * self.shape[-1] ** -0.5
        if self.extreme:
            signs = torch.ones(self.shape[-1]).index_fill(0, torch.arange(0, self.shape[-1], 3), -1)
            x, weight = (signs * self.magnitude).repeat(self.shape[0], 1), signs.repeat(self.outputs, 1)
        tensors = {"x": x.to(dtype), "weight": weight}
        if self.bias:
            tensors["bias"] = torch.randn(self.outputs, generator=generator)
        return tensors


EDGE_CASES = {
    "one element": QuantizedLinearCase(shape=(1, 1), outputs=1),
    "no rows": QuantizedLinearCase(shape=(0, 40), outputs=24),
    "shorter than a quad": QuantizedLinearCase(shape=(3, 3), outputs=5, activation="gelu"),
    "prime": QuantizedLinearCase(shape=(13, 131), outputs=47, activation="gelu"),
    "no bias": QuantizedLinearCase(shape=(2, 3, 40), outputs=33, bias=False),
    "a tile and a row": QuantizedLinearCase(shape=(13, 64), outputs=32),
    "several blocks": QuantizedLinearCase(shape=(503, 96), outputs=80, activation="gelu"),
    "zeros": QuantizedLinearCase(shape=(4, 64), outputs=17, magnitude=0.0),
    "1e4": QuantizedLinearCase(shape=(6, 100), outputs=40, magnitude=1e4, activation="gelu"),
    "1e-20": QuantizedLinearCase(shape=(6, 100), outputs=40, magnitude=1e-20, bias=False),
    "far from zero": QuantizedLinearCase(shape=(9, 70), outputs=20, offset=30.0),
    "constant rows": QuantizedLinearCase(shape=(4, 20), outputs=6, magnitude=0.0, offset=3.0),
    "largest sums": QuantizedLinearCase(shape=(5, 3072), outputs=40, extreme=True),
    "smallest sums": QuantizedLinearCase(shape=(5, 3072), outputs=40, extreme=True, magnitude=-1.0),
}

BENCHMARK_CASES = {
    f"{rows} x {inputs} to {outputs}": QuantizedLinearCase(shape=(rows, inputs), outputs=outputs, activation=activation)
    for rows in (64, 2048)
    for inputs, outputs, activation in (
        (384, 1152, "none"),
        (384, 1536, "gelu"),
        (1536, 384, "none"),
        (768, 2304, "none"),
        (768, 3072, "gelu"),
        (3072, 768, "none"),
    )
}
