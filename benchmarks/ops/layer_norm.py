"""Layer norm, alone and behind dropout and a residual, forward and backward."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import copy_of
from benchmarks.ops.agreement import assert_agreement, forward_backward, widened
from benchmarks.peers import torch_compile, torch_eager
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.layer_norm.api import layer_norm
from fastssl.ops.layer_norm.cases import BENCHMARK_CASES, LayerNormCase

QUICK = ("4096 x 768", "4096 x 768 + residual, dropout")
SEED = 11
PLAIN_TENSORS = 5
"""Forward: x read, y written. Backward: x and dy read, dx written."""
FUSED_TENSORS = 8
"""Forward: x and residual read, their sum and y written. Backward: the sum and dy read, dx and dresidual written."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the shapes of BERT, alone and behind dropout and a residual."""
    names = QUICK if run.quick else BENCHMARK_CASES
    return {name: partial(comparison, BENCHMARK_CASES[name]) for name in names}


def comparison(case: LayerNormCase) -> Comparison:
    """Compare with F.layer_norm, or with its composition, eager and compiled, where there is a residual.

    With dropout the masks differ, so only ours is checked, against its definition.
    """
    inputs = case.inputs(torch.float32)
    cotangent = torch.randn(case.shape, generator=torch.Generator().manual_seed(SEED))
    ours = partial(layer_norm, eps=case.eps, dropout_p=case.dropout_p, seed=SEED)
    functions = {OURS: ours} | (_composed(case) if case.residual else {"F.layer_norm": _stock(case)})
    launches = {name: forward_backward(function, inputs, cotangent) for name, function in functions.items()}
    comparable = {OURS: launches[OURS]} if case.dropout_p else launches
    reference = partial(ours, backend="reference")

    def check() -> None:
        exact = forward_backward(reference, widened(inputs), cotangent.double())()
        assert_agreement(comparable, forward_backward(reference, inputs, cotangent)(), exact)

    num_bytes = (FUSED_TENSORS if case.residual else PLAIN_TENSORS) * inputs["x"].nbytes
    return Comparison(
        contenders={name: timed(launch) for name, launch in launches.items()},
        check=check,
        work=num_bytes,
        unit="B",
        limit=copy_of(num_bytes),
    )


def _stock(case: LayerNormCase) -> Callable[..., Tensor]:
    return partial(torch_eager.layer_norm, eps=case.eps)


def _composed(case: LayerNormCase) -> dict[str, Callable[..., Tensor]]:
    composed = partial(torch_eager.dropout_add_layer_norm, eps=case.eps, dropout_p=case.dropout_p)
    return {"composed": composed, "torch.compile": torch_compile.compiled(composed)}
