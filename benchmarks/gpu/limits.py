"""What the device gives: products and copies of the measured size, timed in the same rounds as the contenders."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu.clock import Clock, Prepared, number_of_sets, rotating
from benchmarks.timing import Launch

PRODUCT_SIZE = 4096
"""Of the square product beside the contenders: a tenth of a millisecond and more, and near the best rate."""


@dataclass(frozen=True, kw_only=True)
class DeviceLimit:
    """Plain work whose amount is known."""

    name: str
    """ "product" or "copy"."""
    work: float
    """FLOPs, or bytes read and written."""
    works: Sequence[Prepared]
    """Does it, on several sets of operands."""

    def launch(self, clock: Clock) -> Launch:
        """Return its launch."""
        return rotating(self.works, clock)


def product_of(device: torch.device, dtype: torch.dtype, size: int = PRODUCT_SIZE) -> DeviceLimit:
    """Return a square product of random numbers (zeros would run faster than real data)."""
    sets = [tuple(torch.randn(size, size, device=device).to(dtype) for _ in range(2)) for _ in range(2)]
    out = torch.empty(size, size, dtype=dtype, device=device)

    def prepared(left: torch.Tensor, right: torch.Tensor) -> Prepared:
        return lambda: lambda: torch.mm(left, right, out=out)

    return DeviceLimit(name="product", work=2.0 * size**3, works=[prepared(*operands) for operands in sets])


def copy_of(device: torch.device, num_bytes: int) -> DeviceLimit:
    """Return a copy that reads and writes `num_bytes` in all, as cold as the contenders."""
    half = max(num_bytes // 8, 1)
    count = number_of_sets(device, 4 * half)
    sources = [torch.randn(half, device=device) for _ in range(count)]
    targets = [torch.empty_like(source) for source in sources]

    def prepared(source: torch.Tensor, target: torch.Tensor) -> Prepared:
        return lambda: lambda: target.copy_(source)

    pairs = zip(sources, targets, strict=True)
    return DeviceLimit(name="copy", work=8.0 * half, works=[prepared(*pair) for pair in pairs])
