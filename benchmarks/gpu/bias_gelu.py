"""Bias and GELU behind a linear map on a GPU, each direction, at the widths of BERT's feed-forward layers."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.limits import copy_of
from benchmarks.gpu.problem import Direction, Problem, Run
from benchmarks.peers import torch_compile, torch_eager
from fastssl.ops.bias_gelu.api import bias_gelu

DTYPE = torch.bfloat16
WIDTHS, ROWS = (3072, 4096), 16384
CHECKED_ROWS = 515
TENSORS = {"forward": 2, "backward": 3}
"""Direction -> tensors that must be read or written: x and y; x, dy and dx."""


def cases(run: Run) -> Mapping[str, Callable[[], Problem]]:
    """Return every width, forward and backward, and the tanh form of the first."""
    widths, rows = ((40, 96), 19) if run.rehearse else (WIDTHS, ROWS)
    calls = [*((width, "none") for width in widths), (widths[0], "tanh")]
    return {
        f"{rows} x {width}{', tanh' if approximate == 'tanh' else ''}, {direction}": partial(
            problem, (rows, width), approximate, direction, run
        )
        for width, approximate in calls
        for direction in TENSORS
    }


def problem(shape: tuple[int, int], approximate: str, direction: Direction, run: Run, checked: bool = False) -> Problem:
    """Return a case beside PyTorch, eager and compiled.

    Args:
        shape: of x.
        approximate: "none" or "tanh".
        direction: what is timed.
        run: where.
        checked: whether this is the small case that stands in for a large one before the float64 definition.
    """
    rows, width = shape

    def draw(number: int) -> dict[str, Tensor]:
        generator = torch.Generator(run.device).manual_seed(number)
        shapes = {"x": shape, "bias": (width,)}
        return {
            name: torch.randn(size, generator=generator, device=run.device).to(DTYPE) for name, size in shapes.items()
        }

    num_bytes = TENSORS[direction] * rows * width * DTYPE.itemsize
    small = None if checked else problem((CHECKED_ROWS, width), approximate, direction, run, checked=True)
    return Problem(
        draw=draw,
        ours=partial(bias_gelu, approximate=approximate),
        peers=_peers(approximate, run, checked),
        direction=direction,
        work=num_bytes,
        unit="B",
        limit=copy_of(run.device, num_bytes),
        checked=small,
    )


def _peers(approximate: str, run: Run, checked: bool) -> dict[str, Callable[..., Tensor]]:
    eager = partial(torch_eager.bias_gelu, approximate=approximate)
    peers = {"torch eager": eager}
    if not run.rehearse:
        # Before the definition its eager form stands in for it: compiling twice would cost more than all the timing.
        peers["torch.compile"] = eager if checked else torch_compile.compiled(eager)
    return peers
