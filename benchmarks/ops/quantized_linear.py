"""The 8-bit linear map, quantisation of its inputs and GELU included, beside the same map in fp32."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import Limit
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.quantized_linear.api import quantized_linear
from fastssl.ops.quantized_linear.cases import BENCHMARK_CASES, QuantizedLinearCase
from fastssl.ops.quantized_linear.weight import QuantizedWeight, quantize_weight
from tests.oracle import assert_within_budget

QUICK = ("64 x 384 to 1536", "2048 x 768 to 3072")
LARGEST_DIFFERENCE = 0.05
"""Between 8 bits and fp32, in units of the largest output."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the linear maps of MiniLM and of BERT-base, few rows and many."""
    names = QUICK if run.quick else BENCHMARK_CASES
    return {name: partial(comparison, BENCHMARK_CASES[name]) for name in names}


def comparison(case: QuantizedLinearCase) -> Comparison:
    """Compare with fp32, and with PyTorch's own 8-bit map, which has one scale for all rows."""
    x, weight, bias = case.inputs(torch.float32).values()
    quantized = quantize_weight(weight)
    activate = F.gelu if case.activation == "gelu" else lambda y: y
    ours = partial(quantized_linear, x, quantized, bias, activation=case.activation)
    contenders = {
        OURS: ours,
        "fp32": lambda: activate(F.linear(x, weight, bias)),
        "PyTorch int8": _of_pytorch(x, quantized, bias, activate),
    }

    def check() -> None:
        exact = contenders["fp32"]()
        outputs = {name: launch() for name, launch in contenders.items()}
        definition = quantized_linear(x.double(), quantized, bias, activation=case.activation, backend="reference")
        same = quantized_linear(x, quantized, bias, activation=case.activation, backend="reference")
        assert_within_budget(OURS, outputs[OURS], same, definition)
        for name, output in outputs.items():
            difference = (output - exact).abs().max() / exact.abs().max()
            assert difference <= LARGEST_DIFFERENCE, f"{name}: differs from fp32 by {difference:.3f}"

    flops = 2.0 * x.numel() * case.outputs
    out = torch.empty(x.shape[0], case.outputs)
    return Comparison(
        contenders={name: timed(torch.inference_mode()(launch)) for name, launch in contenders.items()},
        check=check,
        work=flops,
        unit="FLOP",
        limit=Limit(work=flops, launch=timed(lambda: torch.mm(x, weight.T, out=out))),
    )


def _of_pytorch(
    x: Tensor, weight: QuantizedWeight, bias: Tensor, activate: Callable[[Tensor], Tensor]
) -> Callable[[], Tensor]:
    zeros = torch.zeros(weight.out_features, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch means to drop its quantised tensors
        values = torch._make_per_channel_quantized_tensor(weight.values(), weight.scale.double(), zeros, 0)
        packed = torch.ops.quantized.linear_prepack(values, bias)
    return lambda: activate(torch.ops.quantized.linear_dynamic(x, packed, False))
