"""The first half of a feed-forward network, forward and backward: a linear map, its bias, and GELU."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import LinearShape, sgemm_of
from benchmarks.ops.agreement import assert_agreement, forward_backward, widened
from benchmarks.peers import torch_compile, torch_eager
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.bias_gelu.api import bias_gelu
from fastssl.ops.bias_gelu.cases import BENCHMARK_CASES, BiasGeluCase

QUICK = ("2048 x 256 -> 1024",)
SEED = 17


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the shapes of BERT base, mini, and MiniLM."""
    names = QUICK if run.quick else BENCHMARK_CASES
    return {name: partial(comparison, BENCHMARK_CASES[name]) for name in names}


def comparison(case: BiasGeluCase) -> Comparison:
    """Compare with F.gelu(F.linear(...)), eager and compiled."""
    inputs = case.linear_inputs(torch.float32)
    cotangent = torch.randn(case.shape, generator=torch.Generator().manual_seed(SEED))
    functions = {
        OURS: _ours,
        "F.gelu(F.linear)": torch_eager.linear_then_gelu,
        "torch.compile": torch_compile.compiled(torch_eager.linear_then_gelu),
    }
    launches = {name: forward_backward(function, inputs, cotangent) for name, function in functions.items()}
    reference = partial(_ours, backend="reference")

    def check() -> None:
        exact = forward_backward(reference, widened(inputs), cotangent.double())()
        assert_agreement(launches, forward_backward(reference, inputs, cotangent)(), exact)

    product = LinearShape(rows=case.shape[0], inputs=case.inputs_width, outputs=case.shape[1])
    return Comparison(
        contenders={name: timed(launch) for name, launch in launches.items()},
        check=check,
        work=product.flops,
        unit="FLOP",
        limit=sgemm_of([product]),
    )


def _ours(hidden: Tensor, weight: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    return bias_gelu(F.linear(hidden, weight), bias, backend=backend)
