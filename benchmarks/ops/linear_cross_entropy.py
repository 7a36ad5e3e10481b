"""The softmax over the vocabulary fused with its linear map, forward and backward: time and peak memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import memory
from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import LinearShape, sgemm_of
from benchmarks.ops.agreement import assert_agreement, forward_backward, widened
from benchmarks.peers import torch_compile, torch_eager
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.linear_cross_entropy.api import linear_cross_entropy


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one case."""

    rows: int
    width: int
    vocabulary: int
    predicted: int
    """Rows that carry a label; the others are ignored."""


SHAPES = {
    "1024x768x30522, 15% predicted": Shape(rows=1024, width=768, vocabulary=30522, predicted=154),
    "1024x768x50257, all predicted": Shape(rows=1024, width=768, vocabulary=50257, predicted=1024),
}


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the masked-LM case, and in a whole run the causal one."""
    names = list(SHAPES)[:1] if run.quick else SHAPES
    return {name: partial(case, SHAPES[name]) for name in names}


def case(shape: Shape) -> Comparison:
    """Compare with the plain form on all rows, on labelled rows, compiled, and with PyTorch's own fused operator."""
    inputs, targets = _inputs(shape)
    functions = {
        OURS: linear_cross_entropy,
        "F.cross_entropy(F.linear)": torch_eager.linear_then_cross_entropy,
        "torch.compile": torch_compile.compiled(torch_eager.linear_then_cross_entropy),
    }
    if shape.predicted < shape.rows:
        functions["labelled rows first"] = torch_eager.labelled_rows_first
    launches = {name: forward_backward(partial(f, targets=targets), inputs) for name, f in functions.items()}
    swept = {
        name: forward_backward(partial(f, targets=targets), inputs)
        for name, f in torch_eager.fused_linear_cross_entropies().items()
    }
    if swept:
        launches["F.linear_cross_entropy"] = swept[torch_eager.fastest(swept)]
    reference = partial(linear_cross_entropy, targets=targets, backend="reference")

    def check() -> None:
        exact = forward_backward(reference, widened(inputs))()
        assert_agreement(launches, forward_backward(reference, inputs)(), exact)

    product = LinearShape(rows=shape.predicted, inputs=shape.width, outputs=shape.vocabulary)
    return Comparison(
        contenders={name: timed(launch) for name, launch in launches.items()},
        check=check,
        work=product.flops,
        limit=sgemm_of([product]),
        memory=launches if memory.can_measure() else {},
    )


def _inputs(shape: Shape) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(shape.rows)
    random = partial(torch.randn, generator=generator)
    targets = torch.full((shape.rows,), -100)
    labelled = torch.randperm(shape.rows, generator=generator)[: shape.predicted]
    targets[labelled] = torch.randint(shape.vocabulary, (shape.predicted,), generator=generator)
    inputs = {
        "hidden": random(shape.rows, shape.width),
        "weight": random(shape.vocabulary, shape.width) * 0.02,
        "bias": random(shape.vocabulary) * 0.1,
    }
    return inputs, targets
