"""Attention, forward and backward, beside scaled_dot_product_attention: equal and mixed lengths, dropped, biased."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import square_sgemm
from benchmarks.ops.agreement import Outputs, assert_agreement, forward_backward, widened
from benchmarks.peers import torch_eager
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl import extension
from fastssl.ops.attention.api import attention
from fastssl.ops.attention.cases import BENCHMARK_CASES, AttentionCase

QUICK = ("8 x 128 x 12 x 64", "8 x 128 x 12 x 64, dropout", "packed 8..512")
CAUSAL = ("4 x 512 x 12 x 64, causal", "1 x 2048 x 12 x 64, causal")
BFLOAT16 = "8 x 128 x 12 x 64"
AVX2 = ("8 x 128 x 12 x 64", "4 x 512 x 12 x 64")
"""Cases that also run our kernels for AVX2, where the machine's best set is AVX-512."""
LARGEST_DEFINED_SCORES = 16 * 2**20
"""Scores up to which the dropout of the definition (every score and its random number, in float64) is checked."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the shapes of BERT, and 16-bit storage."""
    whole = [name for name, case in BENCHMARK_CASES.items() if not case.causal or name in CAUSAL]
    found = {
        name: partial(comparison, BENCHMARK_CASES[name], avx2=name in AVX2 and not run.quick)
        for name in (QUICK if run.quick else whole)
    }
    if not run.quick:
        found[f"{BFLOAT16}, bf16 storage"] = partial(comparison, BENCHMARK_CASES[BFLOAT16], torch.bfloat16)
    return found


def comparison(case: AttentionCase, dtype: torch.dtype = torch.float32, avx2: bool = False) -> Comparison:
    """Compare with SDPA; with dropout also with our own time without, in 16 bits also with our own in 32.

    With `avx2` also with our own kernels for AVX2, on a machine that has AVX-512.

    With dropout the masks differ, so only ours is checked, against its definition.
    """
    inputs = _inputs(case, dtype)
    cotangent = torch.randn(inputs["q"].shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    options = case.options()
    ours = partial(attention, **options, max_seqlen_q=max(case.lengths_q))
    launches = {OURS: forward_backward(ours, inputs, cotangent)} | _peers(case, inputs, cotangent)
    comparable = (
        {OURS: launches[OURS]} if case.dropout_p else {name: _packed(case, launches[name]) for name in launches}
    )
    if case.dropout_p:
        launches["own, no dropout"] = forward_backward(partial(ours, dropout_p=0.0), inputs, cotangent)
    if dtype != torch.float32:
        launches["own fp32"] = forward_backward(ours, _inputs(case, torch.float32), cotangent.float())
    if avx2 and extension.cpu_capability() == "avx512":
        launches["own, AVX2"] = _by_instruction_set("avx2", launches[OURS])
    reference = partial(ours, backend="reference")
    scores = case.heads * sum(length**2 for length in case.lengths_q)

    def check() -> None:
        if case.dropout_p and scores > LARGEST_DEFINED_SCORES:
            return
        exact = forward_backward(reference, widened(inputs), cotangent.double())()
        assert_agreement(comparable, forward_backward(reference, inputs, cotangent)(), exact)

    # Two products forward (4 FLOPs a score and width), and 2.5 times as much backward, the recomputation included.
    return Comparison(
        contenders={name: timed(launch) for name, launch in launches.items()},
        check=check,
        work=3.5 * 4 * case.width * scores * (0.5 if case.causal else 1.0),
        unit="FLOP",
        limit=square_sgemm(),
    )


def _by_instruction_set(name: str, launch: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """Return the launch by our kernels for another instruction set than the machine's best."""

    def by_name() -> Outputs:
        best = extension.cpu_capability()
        torch.ops.fastssl.set_cpu_capability(name)
        try:
            return launch()
        finally:
            torch.ops.fastssl.set_cpu_capability(best)

    return by_name


def _inputs(case: AttentionCase, dtype: torch.dtype) -> dict[str, Tensor]:
    inputs = case.inputs(dtype)
    if case.bias:
        length = max(case.lengths_q)
        inputs["bias"] = inputs["bias"][..., :length, :length].contiguous()
    return inputs


def _peers(case: AttentionCase, inputs: Mapping[str, Tensor], cotangent: Tensor) -> dict[str, Callable[[], Outputs]]:
    """Return SDPA on equal lengths; on mixed ones, on padded tensors with a key mask, and one call per sequence."""
    sdpa = partial(torch_eager.attention, dropout_p=case.dropout_p)
    if len(set(case.lengths_q)) == 1:
        sizes = (len(case.lengths_q), case.lengths_q[0])

        def on_equal_lengths(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
            dense = (x.unflatten(0, sizes) for x in (q, k, v))
            return sdpa(*dense, bias, causal=case.causal).flatten(0, 1)

        return {"SDPA": forward_backward(on_equal_lengths, inputs, cotangent)}
    one_by_one = partial(torch_eager.attention_per_sequence, lengths=case.lengths_q, dropout_p=case.dropout_p)
    return {
        "SDPA padded": _on_padded(sdpa, case, inputs, cotangent),
        "SDPA per sequence": forward_backward(one_by_one, inputs, cotangent),
    }


def _on_padded(
    sdpa: Callable[..., Tensor], case: AttentionCase, inputs: Mapping[str, Tensor], cotangent: Tensor
) -> Callable[[], Outputs]:
    """Return SDPA on tensors that are padded beforehand and stay padded."""
    key_mask = _key_mask(case)

    def padded(packed: Tensor) -> Tensor:
        return packed.new_zeros(*key_mask.shape, *packed.shape[1:]).index_put((key_mask,), packed)

    padded_inputs = {name: padded(tensor) for name, tensor in inputs.items()}
    return forward_backward(partial(sdpa, key_mask=key_mask), padded_inputs, padded(cotangent))


def _packed(case: AttentionCase, launch: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """Return the launch with results packed where they are padded."""
    key_mask = _key_mask(case)

    def pack(x: Tensor) -> Tensor:
        return x[key_mask] if x.shape[:2] == key_mask.shape else x

    return lambda: {name: pack(result) for name, result in launch().items()}


def _key_mask(case: AttentionCase) -> Tensor:
    lengths = torch.tensor(case.lengths_q)
    return torch.arange(int(lengths.max())) < lengths[:, None]
