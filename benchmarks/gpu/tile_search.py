"""Measure the tiles of attention's Triton kernels on this GPU: `python -m benchmarks.gpu.tile_search FOLDER`.

It is the search of `fastssl.ops.tile_search` over the cases that matter, compiled in parallel before. What is found
becomes a rule in `fastssl/ops/attention/triton_tuning.py`, which is what a model without a search runs with.
"""

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from fastssl.ops.attention.api import attention
from fastssl.ops.attention.cases import AttentionCase
from fastssl.ops.attention.triton_tuning import Tile
from fastssl.ops.tile_search import search_tiles, using

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


class OneTile:
    """Stands for a search: one kernel has the tile that is given, the others theirs."""

    def __init__(self, kernel: str, tile: Tile):
        self._kernel, self._tile = kernel, tile

    def tile(self, kernel, default, *_) -> Tile:
        """See `TileSearch.tile`."""
        return self._tile if kernel.__name__ == self._kernel else default


class Listener:
    """Stands for a search: notes what it would try, and tries nothing."""

    def __init__(self):
        self.tiles: dict[str, list[Tile]] = {}

    def tile(self, kernel, default, others, *_) -> Tile:
        """See `TileSearch.tile`."""
        self.tiles[kernel.__name__] = list(others())
        return default


def shortened(case: AttentionCase) -> AttentionCase:
    """Return a case of two sequences at most, for which the same is compiled."""
    return replace(case, lengths_q=case.lengths_q[:2])


def run(case: AttentionCase, device: str = "cuda") -> None:
    """Run a case through its kernels in both directions."""
    shape = (sum(case.lengths_q), case.heads, case.width)
    inputs = {name: torch.randn(shape, device=device, dtype=DTYPE).requires_grad_() for name in "qkv"}
    options = case.options()
    options |= {"cu_seqlens_q": options["cu_seqlens_q"].to(device), "max_seqlen_q": max(case.lengths_q)}
    out = attention(**inputs, **options, backend="triton")
    torch.autograd.grad(out, list(inputs.values()), torch.randn_like(out))


def tiles_of(case: AttentionCase, device: str = "cuda") -> dict[str, list[Tile]]:
    """Return what a search tries for each kernel of a case."""
    listener = Listener()
    with using(listener):
        run(shortened(case), device)
    return {kernel: tiles for kernel, tiles in listener.tiles.items() if tiles}


def compile_tile(case: AttentionCase, kernel: str, tile: Tile) -> None:
    """Compile in a process of its own; the search will find what was compiled."""
    try:
        with using(OneTile(kernel, tile)):
            run(shortened(case))
            torch.cuda.synchronize()
    except Exception as error:  # the search finds out again
        print(f"{kernel} {tuple(tile)}: {type(error).__name__}: {error}"[:200], flush=True)


def main(folder: Path) -> None:
    """Compile all candidates in parallel, then let the search time them."""
    tasks = [
        (case, kernel, tile) for case in CASES.values() for kernel, tiles in tiles_of(case).items() for tile in tiles
    ]
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_tile, *zip(*tasks, strict=True)))
    for name, case in CASES.items():
        with search_tiles(folder / name):
            run(case)
        scores = case.heads * sum(n**2 for n in case.lengths_q) * (0.5 if case.causal else 1.0)
        for file in sorted((folder / name).glob("*.json")):
            found = json.loads(file.read_text())
            kernel = found["call"]["kernel"].split(".")[-1]
            for row in sorted(found["measured"], key=lambda row: row["microseconds"])[:4]:
                tile, microseconds = [row[field] for field in Tile._fields], row["microseconds"]
                rate = FLOPS_PER_SCORE[kernel] * case.width * scores / microseconds / 1e6
                print(f"{name:24s} {kernel:22s} {tile!s:18s} {microseconds:8.1f} us {rate:6.1f} TFLOP/s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
