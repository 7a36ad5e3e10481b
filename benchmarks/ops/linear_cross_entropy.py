"""The softmax over the vocabulary fused with its linear map, forward and backward: time and peak memory."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks import memory
from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import LinearShape, sgemm_of
from benchmarks.ops.agreement import assert_agreement, forward_backward, widened
from benchmarks.peers import torch_compile, torch_eager
from benchmarks.suites import Run
from benchmarks.timing import Effort, timed
from fastssl.ops.linear_cross_entropy.api import linear_cross_entropy
from fastssl.ops.linear_cross_entropy.cases import BENCHMARK_CASES, LinearCrossEntropyCase

QUICK, WHOLE = ("bert-mini",), ("masked LM, 15 % predicted", "GPT-2 vocabulary")
EFFORT = Effort(seconds=4.0, min_rounds=4, warmup_rounds=1)


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return masked LM, where few rows carry a label, and causal LM, where all do."""
    names = QUICK if run.quick else WHOLE
    return {name: partial(comparison, BENCHMARK_CASES[name]) for name in names}


def comparison(case: LinearCrossEntropyCase) -> Comparison:
    """Compare with the plain form on all rows, on labelled rows, compiled, and with PyTorch's own fused operator.

    Of the fused operator's options, the fastest of a sweep is taken.
    """
    inputs = case.inputs(torch.float32)
    targets = inputs.pop("targets")
    functions = {
        OURS: linear_cross_entropy,
        "F.cross_entropy(F.linear)": torch_eager.linear_then_cross_entropy,
        "torch.compile": torch_compile.compiled(torch_eager.linear_then_cross_entropy),
    }
    if case.labelled < 1:
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

    num_labelled = int((targets != -100).sum())
    product = LinearShape(rows=num_labelled, inputs=case.width, outputs=case.vocab_size)
    return Comparison(
        contenders={name: timed(launch) for name, launch in launches.items()},
        check=check,
        work=product.flops,
        unit="FLOP",
        limit=sgemm_of([product]),
        effort=EFFORT,
        memory=launches if memory.can_measure() else {},
    )
