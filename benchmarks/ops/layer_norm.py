"""Layer norm, alone and behind dropout and a residual, forward and backward."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import copy_of
from benchmarks.ops.agreement import assert_agreement, forward_backward, widened
from benchmarks.peers import torch_compile, torch_eager
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.layer_norm.api import layer_norm

ROWS, WIDTHS, QUICK_WIDTHS = 4096, (384, 768, 1024, 4096), (768,)
DROPOUT, SEED, EPS = 0.1, 11, 1e-12


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the plain cases, then those with dropout and residual."""
    widths = QUICK_WIDTHS if run.quick else WIDTHS
    plain = {f"{ROWS}x{width}": partial(plain_case, width) for width in widths}
    fused = {f"{ROWS}x{width}, dropout + residual": partial(fused_case, width) for width in widths}
    return plain | fused


def plain_case(width: int) -> Comparison:
    """Compare y = LN(x) with F.layer_norm."""
    inputs, cotangent = _inputs(width, residual=False)
    launches = {
        OURS: forward_backward(partial(layer_norm, eps=EPS), inputs, cotangent),
        "F.layer_norm": forward_backward(partial(torch_eager.layer_norm, eps=EPS), inputs, cotangent),
    }
    reference = partial(layer_norm, eps=EPS, backend="reference")

    def check() -> None:
        exact = forward_backward(reference, widened(inputs), cotangent.double())()
        assert_agreement(launches, forward_backward(reference, inputs, cotangent)(), exact)

    # Forward: x read, y written. Backward: x and dy read, dx written.
    return _comparison(launches, check, tensors=5, width=width)


def fused_case(width: int) -> Comparison:
    """Compare y = LN(residual + dropout(x)) with its composition; the masks differ, so only ours is checked."""
    inputs, cotangent = _inputs(width, residual=True)
    ours = partial(layer_norm, eps=EPS, dropout_p=DROPOUT, seed=SEED)
    composed = partial(torch_eager.dropout_add_layer_norm, eps=EPS, dropout_p=DROPOUT)
    launches = {
        OURS: forward_backward(ours, inputs, cotangent),
        "composed": forward_backward(composed, inputs, cotangent),
        "torch.compile": forward_backward(torch_compile.compiled(composed), inputs, cotangent),
    }
    reference = partial(ours, backend="reference")

    def check() -> None:
        exact = forward_backward(reference, widened(inputs), cotangent.double())()
        assert_agreement({OURS: launches[OURS]}, forward_backward(reference, inputs, cotangent)(), exact)

    # Forward: x and residual read, their sum and y written. Backward: the sum and dy read, dx and dresidual written.
    return _comparison(launches, check, tensors=8, width=width)


def _inputs(width: int, *, residual: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    random = partial(torch.randn, generator=generator)
    inputs = {"x": random(ROWS, width), "weight": random(width), "bias": random(width)}
    if residual:
        inputs["residual"] = random(ROWS, width)
    return inputs, random(ROWS, width)


def _comparison(launches: Mapping, check: Callable[[], None], *, tensors: int, width: int) -> Comparison:
    num_bytes = tensors * ROWS * width * 4
    return Comparison(
        contenders={name: timed(launch) for name, launch in launches.items()},
        check=check,
        work=num_bytes,
        limit=copy_of(num_bytes),
    )
