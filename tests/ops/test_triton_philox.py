"""Philox inside Triton kernels: the vectors of the documentation, and the masks of every operator, bit for bit."""

import re
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
import triton.language as tl  # noqa: E402

from fastssl.ops.philox import (  # noqa: E402
    attention_keep_mask,
    dropout_threshold,
    layer_norm_keep_mask,
    philox_4x32,
    resolve_seed,
)
from fastssl.ops.triton_philox import keep_mask, philox_key, philox_words  # noqa: E402

pytestmark = pytest.mark.triton

README = Path(__file__).resolve().parents[2] / "fastssl" / "ops" / "README.md"
SEEDS = [0, -1, 2**63 - 1, -(2**61) - 7]


@triton.jit
def words_kernel(out, counters, seed, BLOCK: tl.constexpr):
    """Words of the counters (4, BLOCK), as int64."""
    key_0, key_1 = philox_key(seed)
    at = tl.arange(0, BLOCK)
    c0 = tl.load(counters + at).to(tl.uint32)
    c1 = tl.load(counters + BLOCK + at).to(tl.uint32)
    c2 = tl.load(counters + 2 * BLOCK + at).to(tl.uint32)
    c3 = tl.load(counters + 3 * BLOCK + at).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(c0, c1, c2, c3, key_0, key_1)
    tl.store(out + at, w0.to(tl.int64))
    tl.store(out + BLOCK + at, w1.to(tl.int64))
    tl.store(out + 2 * BLOCK + at, w2.to(tl.int64))
    tl.store(out + 3 * BLOCK + at, w3.to(tl.int64))


@triton.jit
def mask_kernel(out, seed, threshold, c2, c3, first_group, first_row, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """Mask of a tile (ROWS, 8 * GROUPS): word 0 runs over groups, word 1 over rows, words 2 and 3 are scalars."""
    key_0, key_1 = philox_key(seed)
    group = (first_group + tl.arange(0, GROUPS)[None, :]).to(tl.uint32)
    row = (first_row + tl.arange(0, ROWS)[:, None]).to(tl.uint32)
    c2, c3 = tl.full((1, 1), c2, tl.uint32), tl.full((1, 1), c3, tl.uint32)
    keep = keep_mask(group, row, c2, c3, key_0, key_1, threshold)
    column = tl.arange(0, 8 * GROUPS)[None, :]
    tl.store(out + tl.arange(0, ROWS)[:, None] * 8 * GROUPS + column, keep)


def words(counters: torch.Tensor, seed: int, device: str) -> torch.Tensor:
    out = torch.empty_like(counters, device=device)
    words_kernel[(1,)](out, counters.to(device), resolve_seed(seed, device), BLOCK=counters.shape[1])
    return out.cpu()


def mask(rows: int, groups: int, p: float, seed: int, device: str, first=(0, 0), c2: int = 0, c3: int = 0):
    out = torch.empty(rows, 8 * groups, dtype=torch.bool, device=device)
    threshold = dropout_threshold(p)
    mask_kernel[(1,)](out, resolve_seed(seed, device), threshold, c2, c3, *first, GROUPS=groups, ROWS=rows)
    return out.cpu()


@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_those_of_the_definition(triton_device, seed):
    counters = torch.randint(0, 2**32, (4, 64), generator=torch.Generator().manual_seed(1))
    counters[:, 0], counters[:, 1] = 0, 2**32 - 1
    expected = torch.stack(philox_4x32(tuple(counters), seed))
    assert torch.equal(words(counters, seed, triton_device), expected)


def test_vectors_of_the_readme(triton_device):
    rows = re.findall(
        r"^\| (-?\d+) \| ([\d ]+) \| ([0-9a-f ]+) \| ([01 ]+) \|$", README.read_text(), flags=re.MULTILINE
    )
    assert len(rows) == 4
    for seed, counter, expected, kept in rows:
        c0, c1, c2, c3 = (int(word) for word in counter.split())
        found = words(torch.tensor([[c0], [c1], [c2], [c3]]), int(seed), triton_device)
        assert [f"{int(word):08x}" for word in found] == expected.split()
        keep = mask(1, 1, 0.3, int(seed), triton_device, first=(c0, c1), c2=c2, c3=c3)
        assert keep[0].tolist() == [bool(int(bit)) for bit in kept.split()]


@pytest.mark.parametrize("p", [0.0, 2**-16, 0.3, 0.5, 1 - 2**-16])
def test_tiles_of_layer_norm(triton_device, p):
    for seed in SEEDS:
        expected = layer_norm_keep_mask(4, 128, p, seed)
        assert torch.equal(mask(4, 16, p, seed, triton_device), expected)


def test_tiles_of_attention(triton_device):
    head, sequence, seed = 3, 2, 2**40 + 5
    expected = attention_keep_mask(24, 192, head + 1, sequence, 0.1, seed)[head]
    for first_query in (0, 16):
        for first_key in (0, 64):
            tile = mask(8, 16, 0.1, seed, triton_device, (first_key // 8, first_query), c2=head, c3=sequence)
            assert torch.equal(tile, expected[first_query : first_query + 8, first_key : first_key + 128])
