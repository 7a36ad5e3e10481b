"""The linear maps of GPT-2 for one new token a sequence, with the norm, activation and residual around them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import read_of
from benchmarks.rotation import Rotation
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear.api import skinny_linear
from fastssl.ops.skinny_linear.cases import GPT2_MAPS, SkinnyLinearCase
from tests.oracle import assert_within_budget

ROWS = (1, 8)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
QUICK = ("768 to 3072, 1 row, fp32", "768 to 3072, 8 rows, int8")
LARGEST_DIFFERENCE = 0.05
"""Between rounded weights and those in fp32, in units of the largest output."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return every map for one sequence and for eight, with weights of every kind."""
    every = {
        f"{name}, {rows} row{'s' * (rows > 1)}, {kind}": partial(comparison, _of_rows(case, rows), dtype)
        for name, case in GPT2_MAPS.items()
        for rows in ROWS
        for kind, dtype in DTYPES.items()
    }
    return {name: every[name] for name in QUICK} if run.quick else every


def _of_rows(case: SkinnyLinearCase, rows: int) -> SkinnyLinearCase:
    return replace(case, shape=(rows, *case.shape[1:]))


@torch.inference_mode()
def comparison(case: SkinnyLinearCase, dtype: torch.dtype) -> Comparison:
    """Compare with PyTorch's operators in the weight's dtype, and rounded weights with our own in fp32.

    Every call meets a weight that no cache holds, as in a model whose layers take turns.
    """
    arguments, wide = case.inputs(dtype), case.inputs()
    weights = _rotation(arguments["weight"])
    contenders = {OURS: partial(_call, arguments, weights)}
    if dtype == torch.float32:
        contenders["PyTorch"] = partial(_call, arguments, weights, backend="stock")
    else:
        wide_weights = _rotation(wide["weight"])
        contenders["fastssl fp32"] = partial(_call, wide, wide_weights)
        contenders["PyTorch fp32"] = partial(_call, wide, wide_weights, backend="stock")
    if dtype == torch.bfloat16:
        contenders["PyTorch"] = partial(_call, case.inputs(dtype, dtype), weights, backend="stock")

    def check() -> None:
        same, exact = skinny_linear(**arguments, backend="reference"), _exact(arguments)
        wide_exact = _exact(wide)
        for name, launch in contenders.items():
            output = launch()
            difference = (output - wide_exact).abs().max() / wide_exact.abs().max()
            assert difference <= LARGEST_DIFFERENCE, f"{name}: differs from fp32 by {difference:.3f}"
            if dtype == torch.float32 or (name == OURS and dtype == torch.bfloat16):
                assert_within_budget(name, output, same, exact)

    num_bytes = _data(arguments["weight"]).nbytes
    return Comparison(
        contenders={name: timed(torch.inference_mode()(launch)) for name, launch in contenders.items()},
        check=torch.inference_mode()(check),
        work=num_bytes,
        unit="B",
        limit=read_of(num_bytes),
    )


def _call(arguments: dict, weights: Rotation, backend: str = "auto") -> Tensor:
    return skinny_linear(**(arguments | {"weight": weights.next()}), backend=backend)


def _data(weight: Tensor | QuantizedWeight) -> Tensor:
    return weight.packed if isinstance(weight, QuantizedWeight) else weight


def _rotation(weight: Tensor | QuantizedWeight) -> Rotation:
    def make() -> Tensor | QuantizedWeight:
        copy = _data(weight).clone()
        return replace(weight, packed=copy) if isinstance(weight, QuantizedWeight) else copy

    return Rotation(make, _data(weight).nbytes)


def _exact(arguments: dict) -> Tensor:
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    return skinny_linear(**wide, backend="reference")
