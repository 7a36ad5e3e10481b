"""Attention on a GPU: the point of BERT, long sequences, and packed mixed lengths."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.limits import product_of
from benchmarks.gpu.problem import GPU_BACKENDS, Direction, Problem, Run
from benchmarks.gpu.trial import left_out, why_not
from benchmarks.peers import gpu_libraries, sdpa, torch_eager
from fastssl.ops.attention import hopper
from fastssl.ops.attention.api import attention
from fastssl.ops.attention.cases import AttentionCase, offsets

DTYPE = torch.bfloat16
TOKENS, WIDTH_OF_MODEL = 16384, 2048
"""Of the long cases, as the FlashAttention papers measure: the batch shrinks as the length grows."""
LONG = (8192, 2048, 16384, 4096)
"""Lengths, those that tell most first."""
CHECKED_LENGTH = 1024
"""At which long cases are held to float64: one sequence, with a tail shorter than any block."""
MIXED = tuple(range(32, 513, 32)) * 4
BERT = {"heads": 12, "key_heads": 12, "width": 64}
OTHER_BACKWARD = {"hopper in one pass": 0, "hopper in two passes": 10**9}
"""Backends beside "hopper", which chooses between them by length: names -> up to which length it takes two passes."""
LONGEST_IN_TWO_PASSES = hopper.TWO_PASSES_UP_TO
FLOPS_PER_SCORE = {"forward": 4.0, "backward": 10.0, "forward + backward": 14.0}
"""Times D: two products forward, five backward."""


def cases(run: Run) -> Mapping[str, Callable[[], Problem]]:
    """Return the cases of the section, those that matter most first."""
    if run.rehearse:
        tiny = {"heads": 2, "key_heads": 2, "width": 16}
        bert, mixed, long = AttentionCase(lengths_q=(24, 24), **tiny), (5, 40, 16), {}
        packed = AttentionCase(lengths_q=mixed, **tiny)
    else:
        bert, packed = AttentionCase(lengths_q=(512,) * 32, **BERT), AttentionCase(lengths_q=MIXED, **BERT)
        long = _long_cases()
    dropped = replace(bert, dropout_p=0.1)
    found = {
        "BERT point, forward": partial(problem, bert, "forward", run),
        "BERT point, dropout, forward + backward": partial(problem, dropped, "forward + backward", run),
        "packed 32..512, forward": partial(problem, packed, "forward", run),
        "packed 32..512, forward + backward": partial(problem, packed, "forward + backward", run),
    }
    for name, case in long.items():
        for direction in ("forward", "backward"):
            found[f"{name}, {direction}"] = partial(problem, case, direction, run)
    return found


def problem(case: AttentionCase, direction: Direction, run: Run, checked: bool = False) -> Problem:
    """Return a case beside SDPA by its kernels, flash-attn where installed, and what packs or pads mixed lengths.

    Args:
        case: lengths and options; packed.
        direction: what is timed.
        run: where.
        checked: whether this is the small case that stands in for a large one before the float64 definition.
    """
    device, options, longest = run.device, case.options(), max(case.lengths_q)
    options["cu_seqlens_q"] = options["cu_seqlens_q"].to(device)
    scores = case.heads * sum(length**2 for length in case.lengths_q) * (0.5 if case.causal else 1.0)
    shape = (sum(case.lengths_q), case.heads, case.width)

    def draw(number: int) -> dict[str, Tensor]:
        generator = torch.Generator(device).manual_seed(number)
        return {name: torch.randn(shape, generator=generator, device=device).to(DTYPE) for name in "qkv"}

    small = None
    if not checked and len(set(case.lengths_q)) == 1 and longest > CHECKED_LENGTH:
        small = problem(
            replace(case, lengths_q=(CHECKED_LENGTH + 13,), heads=2, key_heads=2),
            direction,
            run,
            checked=True,
        )
    elif not checked and len(case.lengths_q) > 4:
        small = problem(replace(case, lengths_q=case.lengths_q[-4:]), direction, run, checked=True)
    return Problem(
        draw=draw,
        ours=partial(_attention, max_seqlen_q=longest, **options),
        peers=_peers(case, options["cu_seqlens_q"], run),
        direction=direction,
        backends=_backends(run, None if direction == "forward" else longest),
        work=FLOPS_PER_SCORE[direction] * case.width * scores,
        unit="FLOP",
        limit=product_of(device, DTYPE, 64 if run.rehearse else 4096),
        comparable=case.dropout_p == 0,
        checked=small,
        remark="" if checked else _remark(case, draw(0), run),
    )


def _attention(*, backend: str, **arguments) -> Tensor:
    """Return attention by a backend, and let its backward, which follows, take the kernels that the name says."""
    hopper.TWO_PASSES_UP_TO = OTHER_BACKWARD.get(backend, LONGEST_IN_TWO_PASSES)
    return attention(backend="hopper" if backend in OTHER_BACKWARD else backend, **arguments)


def _backends(run: Run, longest: int | None) -> tuple[str, ...]:
    """Return ours; kernels that might not end only where they have shown that they do.

    Args:
        run: where.
        longest: the longest sequence, where there is a backward.
    """
    if run.rehearse or why_not("hopper"):
        return GPU_BACKENDS
    if longest is None:
        return ("hopper", *GPU_BACKENDS)
    other = "hopper in one pass" if longest <= LONGEST_IN_TWO_PASSES else "hopper in two passes"
    return ("hopper", other, *GPU_BACKENDS)


def _long_cases() -> dict[str, AttentionCase]:
    found = {}
    for length in LONG:
        for width in (64, 128):
            heads = WIDTH_OF_MODEL // width
            for causal in (False, True):
                name = f"{TOKENS // length} x {length} x {heads} x {width}{', causal' if causal else ''}"
                lengths = (length,) * (TOKENS // length)
                found[name] = AttentionCase(lengths_q=lengths, heads=heads, key_heads=heads, width=width, causal=causal)
    return found


def _peers(case: AttentionCase, cu_seqlens: Tensor, run: Run) -> dict[str, Callable[..., Tensor]]:
    lengths, longest = case.lengths_q, max(case.lengths_q)
    options = {"dropout_p": case.dropout_p, "causal": case.causal}
    peers: dict[str, Callable[..., Tensor]] = {}
    for name, function in sdpa.kernels().items():
        if len(set(lengths)) == 1:
            peers[name] = sdpa.on_equal_lengths(function, len(lengths), **options)
        else:
            peers[f"{name} padded"] = _on_padded(function, lengths, run.device, **options)
    if len(set(lengths)) > 1:
        peers["SDPA per sequence"] = partial(torch_eager.attention_per_sequence, lengths=lengths, dropout_p=0.0)
        peers["varlen_attn"] = partial(sdpa.varlen, cu_seqlens=cu_seqlens, max_seqlen=longest)
    if gpu_libraries.installed("flash_attn"):
        peers["flash-attn"] = gpu_libraries.flash_attention(cu_seqlens=cu_seqlens, max_seqlen=longest, **options)
    return peers


def _on_padded(attention: Callable[..., Tensor], lengths: tuple[int, ...], device: torch.device, **options):
    """Return attention on tensors that are padded and packed again around it, as a model with a key mask pays for."""
    longest, total = max(lengths), sum(lengths)
    sizes = torch.tensor(lengths, device=device)
    key_mask = torch.arange(longest, device=device) < sizes[:, None]
    places = key_mask.flatten().nonzero().flatten()

    def padded(x: Tensor) -> Tensor:
        return x.new_zeros(key_mask.numel(), *x.shape[1:]).index_copy(0, places, x).unflatten(0, key_mask.shape)

    def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attention(padded(q), padded(k), padded(v), key_mask=key_mask, **options)
        return out.flatten(0, 1).index_select(0, places)

    assert len(places) == total == int(offsets(lengths)[-1])
    return packed


def _remark(case: AttentionCase, inputs: Mapping[str, Tensor], run: Run) -> str:
    facts = [_stock_choice(case, inputs), "" if run.rehearse else left_out("hopper")]
    return "; ".join(fact for fact in facts if fact)


def _stock_choice(case: AttentionCase, inputs: Mapping[str, Tensor]) -> str:
    """Return which kernels PyTorch takes by itself on equal lengths; on mixed ones none is the stock call."""
    if len(set(case.lengths_q)) > 1:
        return ""
    dense = (inputs[name].unflatten(0, (len(case.lengths_q), -1)) for name in "qkv")
    return f"SDPA by itself takes {sdpa.chosen(*dense, dropout_p=case.dropout_p, causal=case.causal)}"
