"""Clipping and the AdamW update of all parameters."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import copy_of
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.adamw.api import adamw_, squared_norm
from fastssl.ops.adamw.cases import BENCHMARK_CASES, AdamWCase
from tests.oracle import assert_within_budget

QUICK = ("words of MiniLM, a third with gradients",)
NUMBERS = {"step": 10, "lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0}
BYTES_A_NUMBER = 28
"""Parameter, both averages and the gradient are read, all but the gradient written."""
BYTES_A_GRADIENT = 4
"""The norm reads it once more."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the matrices of BERT base, and an embedding of which a third of the rows were read."""
    return {name: partial(comparison, BENCHMARK_CASES[name]) for name in (QUICK if run.quick else BENCHMARK_CASES)}


def comparison(case: AdamWCase) -> Comparison:
    """Compare norm, clipping and update with torch's, fused; both update their own copies again and again."""
    ours, theirs = case.inputs(torch.float32), case.inputs(torch.float32)
    touched = [_rows_of(gradient) for gradient in ours["gradients"]]
    if case.row_gradients:  # as a training leaves them: averages of zero where no gradient ever was
        for inputs in (ours, theirs):
            for rows, *averages in zip(touched, inputs["exp_avgs"], inputs["exp_avg_sqs"], strict=True):
                for average in averages if rows is not None else ():
                    average[~rows] = 0
        theirs["gradients"] = [gradient.to_dense() for gradient in theirs["gradients"]]
    numbers = sum(p.numel() if rows is None else int(rows.sum()) * p.shape[1]
                  for p, rows in zip(ours["parameters"], touched, strict=True))  # fmt: skip
    moved = numbers * (BYTES_A_NUMBER + BYTES_A_GRADIENT)

    def check() -> None:
        results = []
        for backend in ("auto", "reference"):
            inputs = case.inputs(torch.float32)
            adamw_(**inputs, **NUMBERS, backend=backend)
            results.append(inputs["parameters"])
        exact = {name: [t.double() for t in tensors] for name, tensors in case.inputs(torch.float32).items()}
        adamw_(**exact, **NUMBERS, backend="reference")
        for index, row in enumerate(zip(*results, exact["parameters"], strict=True)):
            assert_within_budget(f"parameter {index}", *row)

    return Comparison(
        contenders={
            OURS: timed(partial(_ours, ours, touched)),
            "clip_grad_norm_, fused AdamW": timed(partial(_theirs, theirs)),
        },
        check=check,
        work=moved,
        unit="B",
        limit=copy_of(moved),
    )


def _rows_of(gradient: Tensor) -> Tensor | None:
    if not gradient.is_sparse:
        return None
    rows = torch.zeros(gradient.shape[0], dtype=torch.bool)
    rows[gradient.indices()[0]] = True
    return rows


def _ours(inputs: dict[str, list[Tensor]], touched: list[Tensor | None]) -> None:
    values = [g.values() if g.is_sparse else g for g in inputs["gradients"]]
    factor = 1.0 / (1.0 + squared_norm(values).sqrt().item())
    adamw_(**inputs, **NUMBERS, touched=touched, gradient_factor=factor)


def _theirs(inputs: dict[str, list[Tensor]]) -> None:
    norm = torch.nn.utils.get_total_norm(inputs["gradients"])
    torch._foreach_mul_(inputs["gradients"], 1.0 / (1.0 + norm))
    steps = [torch.tensor(10.0) for _ in inputs["parameters"]]
    rest = {name: number for name, number in NUMBERS.items() if name != "step"}
    torch._fused_adamw_(*inputs.values(), [], steps, **rest, amsgrad=False, maximize=False)
