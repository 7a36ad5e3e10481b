"""What the machine gives, measured in the same rounds as the contenders: sgemm, copy and reading."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.rotation import COLD_BYTES
from benchmarks.timing import Launch, timed
from fastssl.ops.machine import read


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A launch of plain work whose amount is known."""

    work: float
    """Amount of work in one launch, FLOPs or bytes."""
    launch: Launch
    """Does it."""
    name: str = ""
    """What it is, where it is neither sgemm nor a copy."""


@dataclass(frozen=True, kw_only=True)
class LinearShape:
    """A linear map as a training step runs it: forward, gradient of its input, gradient of its weight."""

    rows: int
    """Rows of the input (tokens)."""
    inputs: int
    """Width of the input."""
    outputs: int
    """Width of the output."""
    count: int = 1
    """How often the step holds such a map."""

    @property
    def flops(self) -> float:
        """FLOPs of the three products of all such maps."""
        return 3.0 * self.forward_flops

    @property
    def forward_flops(self) -> float:
        """FLOPs of the forward product of all such maps."""
        return 2.0 * self.rows * self.inputs * self.outputs * self.count


def square_sgemm(size: int = 1024) -> Limit:
    """Return the limit of work that has no library product of its own: one square fp32 product."""
    a, b, out = (torch.rand(size, size) for _ in range(3))
    return Limit(work=2.0 * size**3, launch=timed(lambda: torch.mm(a, b, out=out)))


def sgemm_of(shapes: Sequence[LinearShape]) -> Limit:
    """Return the limit of a model: its own products and nothing else, each distinct shape run once and weighted.

    Its launch reports the seconds that all the products together take, `count` times each.
    """
    operands = []
    for shape in shapes:
        x, weight = torch.rand(shape.rows, shape.inputs), torch.rand(shape.outputs, shape.inputs)
        operands.append((shape.count, x, weight, torch.rand(shape.rows, shape.outputs)))
    outs = [(torch.empty_like(y), torch.empty_like(x), torch.empty_like(w)) for _, x, w, y in operands]

    def launch() -> float:
        seconds = 0.0
        for (count, x, weight, gradient), (y, input_gradient, weight_gradient) in zip(operands, outs, strict=True):
            start = time.perf_counter()
            torch.mm(x, weight.T, out=y)
            torch.mm(gradient, weight, out=input_gradient)
            torch.mm(gradient.T, x, out=weight_gradient)
            seconds += count * (time.perf_counter() - start)
        return seconds

    return Limit(work=sum(shape.flops for shape in shapes), launch=launch)


def forward_sgemm_of(shapes: Sequence[LinearShape]) -> Limit:
    """Return the limit of a model that reads and does not learn: as `sgemm_of`, its forward products alone."""
    operands = [
        (shape.count, torch.rand(shape.rows, shape.inputs), torch.rand(shape.outputs, shape.inputs)) for shape in shapes
    ]
    outs = [torch.empty(x.shape[0], weight.shape[0]) for _, x, weight in operands]

    def launch() -> float:
        seconds = 0.0
        for (count, x, weight), y in zip(operands, outs, strict=True):
            start = time.perf_counter()
            torch.mm(x, weight.T, out=y)
            seconds += count * (time.perf_counter() - start)
        return seconds

    return Limit(work=sum(shape.forward_flops for shape in shapes), launch=launch)


def copy_of(num_bytes: int) -> Limit:
    """Return the limit of memory-bound work: a copy that reads and writes `num_bytes` in all.

    The amount is that of the measured work, so that the caches help the copy as much as they help the work.
    """
    source = torch.rand(max(num_bytes // 8, 1))
    target = torch.empty_like(source)
    return Limit(work=8.0 * source.numel(), launch=timed(lambda: target.copy_(source)))


def read_of(num_bytes: int) -> Limit:
    """Return the limit of work that reads its operands once from memory: a plain reading of as many bytes.

    It goes through memory that no cache holds, so it is the limit of work whose operands rotate likewise.
    """
    pieces = torch.ones(max(COLD_BYTES // num_bytes, 1), max(num_bytes // 4, 1))
    turn = itertools.cycle(pieces)
    return Limit(work=4.0 * pieces.shape[1], launch=timed(lambda: read(next(turn))), name="read")
