"""Measure the tiles of attention's Triton kernels on this GPU: `python -m benchmarks.gpu.tile_search OUTPUT.json`.

Every kernel of every case is launched with each candidate in turn, the other kernels of the call as they are. What is
found becomes a rule in `fastssl/ops/attention/triton_tuning.py`; nothing is searched when a model runs.
"""

import itertools
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from fastssl.ops.attention import triton_backend, triton_tuning
from fastssl.ops.attention.api import attention
from fastssl.ops.attention.cases import AttentionCase
from fastssl.ops.attention.triton_tuning import Tile

DTYPE = torch.bfloat16
WORKERS = 14
BERT = {"heads": 12, "key_heads": 12, "width": 64}
CASES = {
    "bert": AttentionCase(lengths_q=(512,) * 32, **BERT),
    "bert, dropout": AttentionCase(lengths_q=(512,) * 32, dropout_p=0.1, **BERT),
    "4 x 4096 x 64, causal": AttentionCase(lengths_q=(4096,) * 4, heads=12, key_heads=12, width=64, causal=True),
    "4 x 4096 x 128, causal": AttentionCase(lengths_q=(4096,) * 4, heads=12, key_heads=12, width=128, causal=True),
    "4 x 4096 x 128": AttentionCase(lengths_q=(4096,) * 4, heads=12, key_heads=12, width=128),
}
FLOPS_PER_SCORE = {"attention_forward": 4, "attention_grad_q": 6, "attention_grad_kv": 8}
"""Times D."""


def candidates(kernel: str, width: int) -> Iterator[Tile]:
    """Return the tiles to try: of the side that stays in registers 64 rows for four warps, 128 for eight."""
    stays, walks = ("keys", "queries") if kernel == "attention_grad_kv" else ("queries", "keys")
    if kernel == "attention_forward":
        sizes, stages = (64, 128), (2, 3) if width > 64 else (2, 3, 4)
    elif width > 64:
        sizes, stages = (32, 64), (1, 2)
    else:
        sizes, stages = (32, 64, 128), (1, 2, 3)
    shapes = [(64, 4), (128, 8)] + [(128, 4)] * (kernel == "attention_forward" and width <= 64)
    for (stay, num_warps), walk, num_stages in itertools.product(shapes, sizes, stages):
        yield Tile(**{stays: stay, walks: walk}, num_warps=num_warps, num_stages=num_stages)


class Probe:
    """Puts a tile in the place of one kernel's and times its launch, or only makes it."""

    def __init__(self, kernel: str, tile: Tile, timed: bool):
        self.kernel, self.tile, self.timed, self.seconds = kernel, tile, timed, None

    def run(self, case: AttentionCase) -> float | None:
        """Run a case through its kernels; return the median seconds of the one in question."""
        original = triton_backend._Call._launch

        def launch(call, kernel, tile, programs, **own):
            if kernel.__name__ != self.kernel:
                return original(call, kernel, tile, programs, **own)
            if kernel.__name__ == "attention_grad_kv":
                own["num_tiles"] = triton_tuning.tiles(call.shape.longest_k, self.tile.keys)
            else:
                own["num_tiles"] = triton_tuning.tiles(call.shape.longest_q, self.tile.queries)
            programs = call.num_heads * call.num_sequences * own["num_tiles"]
            original(call, kernel, self.tile, programs, **own)
            if self.timed:
                from triton.testing import do_bench

                work = lambda: original(call, kernel, self.tile, programs, **own)  # noqa: E731
                self.seconds = do_bench(work, warmup=3, rep=15, return_mode="median") * 1e-3
            return None

        triton_backend._Call._launch = launch
        try:
            inputs = _inputs(case)
            out = attention(**inputs, **_options(case), backend="triton")
            if self.kernel != "attention_forward":
                torch.autograd.grad(out, list(inputs.values()), torch.randn_like(out))
            torch.cuda.synchronize()
        finally:
            triton_backend._Call._launch = original
        return self.seconds


def _inputs(case: AttentionCase) -> dict[str, torch.Tensor]:
    shape = (sum(case.lengths_q), case.heads, case.width)
    return {name: torch.randn(shape, device="cuda", dtype=DTYPE).requires_grad_() for name in "qkv"}


def _options(case: AttentionCase) -> dict[str, object]:
    options = case.options()
    return options | {"cu_seqlens_q": options["cu_seqlens_q"].cuda(), "max_seqlen_q": max(case.lengths_q)}


def _attempt(name: str, kernel: str, tile: Tile) -> str:
    """Compile in a process of its own, with two sequences in place of all; return why it cannot run."""
    case = CASES[name]
    short = AttentionCase(**{**case.__dict__, "lengths_q": case.lengths_q[:2]})
    try:
        Probe(kernel, tile, timed=False).run(short)
    except Exception as error:  # whatever it is, this tile is out
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def main(output: str, only_compile: bool) -> None:
    """Compile all candidates in parallel, then time them one by one.

    Args:
        output: file of the results.
        only_compile: leave it at that; a later run finds what was compiled.
    """
    tasks = [
        (name, kernel, tile)
        for name, case in CASES.items()
        for kernel in FLOPS_PER_SCORE
        for tile in candidates(kernel, case.width)
    ]
    tried = Path(output).with_suffix(".compiled")
    if not tried.exists():
        with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
            tried.write_text(json.dumps(list(pool.map(_attempt, *zip(*tasks, strict=True)))))
    if only_compile:
        return
    reasons = json.loads(tried.read_text())
    found = []
    for (name, kernel, tile), reason in zip(tasks, reasons, strict=True):
        if reason:
            found.append({"case": name, "kernel": kernel, **tile.__dict__, "reason": reason})
            continue
        case = CASES[name]
        seconds = Probe(kernel, tile, timed=True).run(case)
        scores = case.heads * sum(n**2 for n in case.lengths_q) * (0.5 if case.causal else 1.0)
        rate = FLOPS_PER_SCORE[kernel] * case.width * scores / seconds
        found.append({"case": name, "kernel": kernel, **tile.__dict__, "us": seconds * 1e6, "tflops": rate / 1e12})
        Path(output).write_text(json.dumps(found))
    for name, kernel in dict.fromkeys((task[0], task[1]) for task in tasks):
        rows = [row for row in found if (row["case"], row["kernel"]) == (name, kernel) and "us" in row]
        for row in sorted(rows, key=lambda row: row["us"])[:4]:
            tile = [row[field] for field in ("queries", "keys", "num_warps", "num_stages")]
            print(f"{name:24s} {kernel:22s} {tile!s:18s} {row['us']:8.1f} us {row['tflops']:6.1f} TFLOP/s")


if __name__ == "__main__":
    main(sys.argv[1], "compile" in sys.argv[2:])
