"""The softmax over the vocabulary on a GPU, forward and backward together: few labelled rows, and all of them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.limits import product_of
from benchmarks.gpu.problem import Problem, Run
from benchmarks.peers import gpu_libraries, torch_compile, torch_eager
from fastssl.ops.linear_cross_entropy.api import linear_cross_entropy
from fastssl.ops.linear_cross_entropy.cases import LinearCrossEntropyCase

DTYPE = torch.bfloat16
CHECKED_ROWS = 300


def cases(run: Run) -> Mapping[str, Callable[[], Problem]]:
    """Return masked LM, where 15 % of the rows carry a label, and causal LM, where all do."""
    if run.rehearse:
        shapes = {"masked LM": (40, 24, 101, 0.15, True), "causal LM": (12, 24, 77, 1.0, False)}
    else:
        shapes = {
            **{f"8192 x {width}, V = 30522, 15 % predicted": (8192, width, 30522, 0.15, True) for width in (768, 1024)},
            **{f"8192 x {width}, V = 50257, all rows": (8192, width, 50257, 1.0, False) for width in (768, 1024)},
        }
    return {
        name: partial(
            problem,
            LinearCrossEntropyCase(num_rows=rows, width=width, vocab_size=vocabulary, labelled=share, bias=bias),
            run,
        )
        for name, (rows, width, vocabulary, share, bias) in shapes.items()
    }


def problem(case: LinearCrossEntropyCase, run: Run, checked: bool = False) -> Problem:
    """Return a case beside the plain form, on labelled rows, compiled, PyTorch's fused operator, Liger and QuACK.

    Args:
        case: sizes and share of labels.
        run: where.
        checked: whether this is the small case that stands in for a large one before the float64 definition.
    """
    targets = case.inputs(DTYPE)["targets"].to(run.device)
    scale = case.logit_magnitude / case.width**0.5

    def draw(number: int) -> dict[str, Tensor]:
        generator = torch.Generator(run.device).manual_seed(number)
        normal = partial(torch.randn, generator=generator, device=run.device)
        tensors = {"hidden": normal(case.num_rows, case.width), "weight": normal(case.vocab_size, case.width) * scale}
        if case.bias:
            tensors["bias"] = normal(case.vocab_size)
        return {name: tensor.to(DTYPE) for name, tensor in tensors.items()}

    small = None
    if not checked and case.num_rows > CHECKED_ROWS:
        small = problem(replace(case, num_rows=CHECKED_ROWS), run, checked=True)
    num_labelled = int((targets != -100).sum())
    return Problem(
        draw=draw,
        ours=partial(linear_cross_entropy, targets=targets),
        peers=_peers(case, targets, run, checked),
        direction="forward + backward",
        work=6.0 * num_labelled * case.width * case.vocab_size,
        unit="FLOP",
        limit=product_of(run.device, DTYPE, 64 if run.rehearse else 4096),
        checked=small,
        memory=True,
    )


def _peers(case: LinearCrossEntropyCase, targets: Tensor, run: Run, checked: bool) -> dict[str, Callable[..., Tensor]]:
    functions: dict[str, Callable[..., Tensor]] = {"F.cross_entropy(F.linear)": torch_eager.linear_then_cross_entropy}
    if case.labelled < 1:
        functions["labelled rows first"] = torch_eager.labelled_rows_first
    if not run.rehearse:
        # Before the definition its eager form stands in for it: compiling twice would cost more than all the timing.
        plain = torch_eager.linear_then_cross_entropy
        functions["torch.compile"] = plain if checked else torch_compile.compiled(plain)
        for name, function in torch_eager.fused_linear_cross_entropies().items():
            functions[f"F.linear_cross_entropy, {name}"] = function
    if gpu_libraries.installed("liger_kernel"):
        functions["Liger"] = gpu_libraries.liger_linear_cross_entropy
    if not case.bias and gpu_libraries.installed("quack"):
        functions["QuACK"] = gpu_libraries.quack_linear_cross_entropy
    return {name: partial(function, targets=targets) for name, function in functions.items()}
