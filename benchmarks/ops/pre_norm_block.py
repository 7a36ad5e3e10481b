"""A block of a small GPT, forward and backward: in one call, by our operators one by one, and by PyTorch's."""

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
from fastssl.ops.attention.api import attention
from fastssl.ops.attention.projection import split_projection
from fastssl.ops.bias_gelu.api import bias_gelu
from fastssl.ops.decoder_block.weights import BlockWeights
from fastssl.ops.layer_norm.api import layer_norm
from fastssl.ops.pre_norm_block.api import pre_norm_block
from fastssl.ops.pre_norm_block.cases import PreNormBlockCase, small_gpt

SHAPES = {
    f"{sequences} x {length} x {width}": small_gpt(width, sequences, length)
    for sequences, length, width in (
        (12, 64, 128),
        (64, 16, 64),
        (8, 256, 128),
        (12, 64, 192),
        (12, 64, 256),
        (12, 64, 384),
    )
}
QUICK = ("12 x 64 x 128",)
SEED = 17


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return sequences of several lengths in models of several widths."""
    return {name: partial(comparison, SHAPES[name]) for name in (QUICK if run.quick else SHAPES)}


def comparison(case: PreNormBlockCase) -> Comparison:
    """Compare with our operators one after the other, and with PyTorch's, eager and compiled; no dropout."""
    tensors, rows = case.tensors(), sum(case.lengths)
    cotangent = torch.randn(rows, 2 * case.width, generator=torch.Generator().manual_seed(SEED))
    eager = partial(torch_eager.causal_block, num_heads=case.heads, num_sequences=len(case.lengths))
    functions = {
        OURS: partial(_side_by_side, case, pre_norm_block),
        "one by one": partial(_side_by_side, case, _one_by_one),
        "PyTorch": eager,
        "torch.compile": torch_compile.compiled(eager),
    }
    launches = {name: forward_backward(function, tensors, cotangent) for name, function in functions.items()}
    reference = partial(_side_by_side, case, partial(pre_norm_block, backend="reference"))

    def check() -> None:
        exact = forward_backward(reference, widened(tensors), cotangent.double())()
        assert_agreement(launches, forward_backward(reference, tensors, cotangent)(), exact)

    attended, qkv = case.heads * case.head_dim, 3 * case.heads * case.head_dim
    maps = [(case.width, qkv), (attended, case.width), (case.width, case.mlp_width), (case.mlp_width, case.width)]
    products = [LinearShape(rows=rows, inputs=inputs, outputs=outputs) for inputs, outputs in maps]
    return Comparison(
        contenders={name: timed(launch) for name, launch in launches.items()},
        check=check,
        work=sum(product.flops for product in products),
        unit="FLOP",
        limit=sgemm_of(products),
    )


def _side_by_side(case: PreNormBlockCase, block: Callable[..., tuple[Tensor, Tensor]], **tensors: Tensor) -> Tensor:
    return torch.cat(block(**case.arguments(tensors)), dim=1)


def _one_by_one(
    addend: Tensor, residual: Tensor, weights: BlockWeights, cu_seqlens: Tensor, *, head_dim: int, **_: object
) -> tuple[Tensor, Tensor]:
    """What a block is without the operator; causal, no dropout."""
    norm = weights.attention_norm
    normed, stream = layer_norm(addend, norm.weight, norm.bias, eps=norm.eps, residual=residual, return_sum=True)
    heads = F.linear(normed, *weights.qkv).unflatten(-1, (-1, head_dim))
    mixed = attention(*split_projection(heads, heads.shape[1] // 3), cu_seqlens_q=cu_seqlens, causal=True)
    norm = weights.mlp_norm
    added = F.linear(mixed.flatten(-2), *weights.out)
    normed, stream = layer_norm(added, norm.weight, norm.bias, eps=norm.eps, residual=stream, return_sum=True)
    hidden = bias_gelu(F.linear(normed, weights.up.weight), weights.up.bias)
    return F.linear(hidden, *weights.down), stream
