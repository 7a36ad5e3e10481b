"""Layer norm on a GPU, each direction: alone, and behind dropout and a residual."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.limits import copy_of
from benchmarks.gpu.problem import Direction, Problem, Run
from benchmarks.peers import gpu_libraries, torch_compile, torch_eager
from fastssl.ops.layer_norm.api import layer_norm
from fastssl.ops.layer_norm.cases import LayerNormCase

DTYPE = torch.bfloat16
WIDTHS, ROWS = (768, 1024, 4096, 8192), 16384
CHECKED_ROWS = 515
SEED = 2**40 + 5
TENSORS = {
    ("forward", False): 2,
    ("backward", False): 3,
    ("forward", True): 3,
    ("backward", True): 4,
}
"""(direction, fused) -> tensors that must be read or written. Forward: x (and residual), y; the sum of a fused one is
written in training alone. Backward: x or the sum, dy, dx (and dresidual)."""


def cases(run: Run) -> Mapping[str, Callable[[], Problem]]:
    """Return every width, plain and fused, forward and backward."""
    widths, rows = ((40, 96), 19) if run.rehearse else (WIDTHS, ROWS)
    return {
        f"{rows} x {width}{', residual + dropout' if fused else ''}, {direction}": partial(
            problem, LayerNormCase(shape=(rows, width), residual=fused, dropout_p=0.1 * fused), direction, run
        )
        for width in widths
        for fused in (False, True)
        for direction in ("forward", "backward")
    }


def problem(case: LayerNormCase, direction: Direction, run: Run, checked: bool = False) -> Problem:
    """Return a case beside PyTorch eager and compiled, Liger and QuACK.

    Args:
        case: shape and options.
        direction: what is timed.
        run: where.
        checked: whether this is the small case that stands in for a large one before the float64 definition.
    """
    rows, width = case.shape
    fused = case.residual

    def draw(number: int) -> dict[str, Tensor]:
        generator = torch.Generator(run.device).manual_seed(number)
        shapes = {"x": case.shape, "weight": (width,), "bias": (width,)} | ({"residual": case.shape} if fused else {})
        return {
            name: torch.randn(shape, generator=generator, device=run.device).to(DTYPE) for name, shape in shapes.items()
        }

    num_bytes = TENSORS[direction, fused] * rows * width * DTYPE.itemsize
    small = None if checked else problem(replace(case, shape=(CHECKED_ROWS, width)), direction, run, checked=True)
    return Problem(
        draw=draw,
        ours=partial(layer_norm, eps=case.eps, dropout_p=case.dropout_p, seed=SEED if case.dropout_p else None),
        peers=_peers(case, direction, run, checked),
        direction=direction,
        work=num_bytes,
        unit="B",
        limit=copy_of(run.device, num_bytes),
        comparable=case.dropout_p == 0,
        checked=small,
    )


def _peers(case: LayerNormCase, direction: Direction, run: Run, checked: bool) -> dict[str, Callable[..., Tensor]]:
    if case.residual:
        eager = partial(torch_eager.dropout_add_layer_norm, eps=case.eps, dropout_p=case.dropout_p)
    else:
        eager = partial(torch_eager.layer_norm, eps=case.eps)
    peers = {"torch eager": eager}
    if not run.rehearse:
        # Before the definition its eager form stands in for it: compiling twice would cost more than all the timing.
        peers["torch.compile"] = eager if checked else torch_compile.compiled(eager)
    if not case.residual and gpu_libraries.installed("liger_kernel"):
        peers["Liger"] = partial(gpu_libraries.liger_layer_norm, eps=case.eps)
    if not case.residual and direction == "forward" and gpu_libraries.installed("quack"):
        peers["QuACK"] = partial(gpu_libraries.quack_layer_norm, eps=case.eps)
    return peers
