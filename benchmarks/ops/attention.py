"""Attention, forward and backward, beside scaled_dot_product_attention: dense, packed, dropped, biased."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import square_sgemm
from benchmarks.ops.agreement import assert_agreement, forward_backward, widened
from benchmarks.peers import torch_eager
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.attention.api import attention

HEADS, WIDTH = 12, 64
DENSE = {"32x32": (32, 32), "8x128": (8, 128), "4x512": (4, 512), "1x2048": (1, 2048)}
"""Name -> (sequences, length)."""
QUICK = ("8x128", "4x512")
MIXED_LENGTHS = (512, 384, 256, 256, 192, 160, 128, 128, 96, 96, 64, 64, 48, 32, 24, 16, 12, 8)
"""Lengths of a packed batch, as documents cut at 512 have them."""
DROPOUT, SEED = 0.1, 13
LARGEST_DEFINED_SCORES = 16 * 2**20
"""Scores up to which the dropout of the definition (every score and its random number, in float64) is checked."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return dense cases, packed ones, additive bias, and 16-bit storage."""
    shapes = {name: DENSE[name] for name in (QUICK if run.quick else DENSE)}
    found: dict[str, Callable[[], Comparison]] = {}
    for name, shape in shapes.items():
        found[name] = partial(dense_case, *shape)
        found[f"{name}, dropout"] = partial(dense_case, *shape, dropout_p=DROPOUT)
    found["packed 8..512"] = packed_case
    found["packed 8..512, dropout"] = partial(packed_case, dropout_p=DROPOUT)
    found["4x512, bias with gradient"] = partial(dense_case, 4, 512, biased=True)
    if not run.quick:
        found["4x512, causal"] = partial(dense_case, 4, 512, causal=True)
        found["8x128, bf16 storage"] = partial(bfloat16_case, 8, 128)
    return found


def dense_case(
    sequences: int, length: int, *, dropout_p: float = 0.0, biased: bool = False, causal: bool = False
) -> Comparison:
    """Compare on (B, T, H, D); with dropout also with our own time without."""
    inputs, cotangent = _inputs((sequences, length))
    if biased:
        inputs["bias"] = torch.randn(HEADS, length, length, generator=torch.Generator().manual_seed(5))
    ours = partial(attention, causal=causal)
    launches = {
        OURS: forward_backward(partial(ours, dropout_p=dropout_p, seed=SEED), inputs, cotangent),
        "SDPA": forward_backward(partial(torch_eager.attention, causal=causal, dropout_p=dropout_p), inputs, cotangent),
    }
    if dropout_p:
        launches["own, no dropout"] = forward_backward(ours, inputs, cotangent)
    reference = partial(ours, dropout_p=dropout_p, seed=SEED, backend="reference")
    scores = sequences * HEADS * length * length
    # SDPA draws another mask, and "own, no dropout" none: only ours is comparable then.
    same_mathematics = {OURS: launches[OURS]} if dropout_p else launches
    too_large = dropout_p > 0 and scores > LARGEST_DEFINED_SCORES
    check = _check(same_mathematics, reference, inputs, cotangent, skip=too_large)
    return _comparison(launches, check, useful_scores=scores / 2 if causal else scores)


def packed_case(*, dropout_p: float = 0.0) -> Comparison:
    """Compare packed mixed lengths with SDPA on padded tensors and a key mask, and with one call per sequence."""
    lengths = torch.tensor(MIXED_LENGTHS)
    cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).int()
    inputs, cotangent = _inputs((int(lengths.sum()),))
    key_mask = torch.arange(int(lengths.max())) < lengths[:, None]

    def padded(packed: Tensor) -> Tensor:
        return packed.new_zeros(*key_mask.shape, HEADS, WIDTH).index_put((key_mask,), packed)

    ours = partial(attention, cu_seqlens_q=cu_seqlens, max_seqlen_q=int(lengths.max()))
    on_padded = forward_backward(
        partial(torch_eager.attention, key_mask=key_mask, dropout_p=dropout_p),
        {name: padded(tensor) for name, tensor in inputs.items()},
        padded(cotangent),
    )
    one_by_one = partial(torch_eager.attention_per_sequence, lengths=MIXED_LENGTHS, dropout_p=dropout_p)
    launches = {
        OURS: forward_backward(partial(ours, dropout_p=dropout_p, seed=SEED), inputs, cotangent),
        "SDPA padded": on_padded,
        "SDPA per sequence": forward_backward(one_by_one, inputs, cotangent),
    }
    comparable = {
        OURS: launches[OURS],
        "SDPA padded": lambda: {name: tensor[key_mask] for name, tensor in on_padded().items()},
        "SDPA per sequence": launches["SDPA per sequence"],
    }
    if dropout_p:
        launches["own, no dropout"] = forward_backward(ours, inputs, cotangent)
        comparable = {OURS: launches[OURS]}
    reference = partial(ours, dropout_p=dropout_p, seed=SEED, backend="reference")
    check = _check(comparable, reference, inputs, cotangent)
    return _comparison(launches, check, useful_scores=HEADS * int(lengths.square().sum()))


def bfloat16_case(sequences: int, length: int) -> Comparison:
    """Compare bf16 storage with our own fp32 on the same numbers."""
    wide, wide_cotangent = _inputs((sequences, length))
    inputs = {name: tensor.bfloat16() for name, tensor in wide.items()}
    cotangent = wide_cotangent.bfloat16()
    launches = {
        OURS: forward_backward(attention, inputs, cotangent),
        "own fp32": forward_backward(attention, wide, wide_cotangent),
        "SDPA": forward_backward(torch_eager.attention, inputs, cotangent),
    }
    comparable = {name: launch for name, launch in launches.items() if name != "own fp32"}
    check = _check(comparable, partial(attention, backend="reference"), inputs, cotangent)
    return _comparison(launches, check, useful_scores=sequences * HEADS * length * length)


def _inputs(rows: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(sum(rows))
    q, k, v, cotangent = (torch.randn(*rows, HEADS, WIDTH, generator=generator) for _ in range(4))
    return {"q": q, "k": k, "v": v}, cotangent


def _check(comparable: Mapping, reference: Callable, inputs: Mapping, cotangent: Tensor, *, skip: bool = False):
    def check() -> None:
        if skip:
            return
        same = forward_backward(reference, inputs, cotangent)()
        exact = forward_backward(reference, widened(inputs), cotangent.double())()
        assert_agreement(comparable, same, exact)

    return check


def _comparison(launches: Mapping, check: Callable[[], None], *, useful_scores: float) -> Comparison:
    # Two products forward (4 FLOPs a score and width), and 2.5 times as much backward, the recomputation included.
    return Comparison(
        contenders={name: timed(launch) for name, launch in launches.items()},
        check=check,
        work=3.5 * 4 * WIDTH * useful_scores,
        unit="FLOP",
        limit=square_sgemm(),
    )
