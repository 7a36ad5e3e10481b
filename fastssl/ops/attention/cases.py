"""Named shapes and edge inputs of `attention`, for tests and benchmarks."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """One call: lengths, options and the range of the scores."""

    lengths_q: tuple[int, ...]
    """Tokens of each sequence."""
    lengths_k: tuple[int, ...] | None = None
    """Keys of each sequence; None: as many as queries."""
    heads: int = 2
    """H."""
    key_heads: int = 2
    """H_k, which divides H."""
    width: int = 16
    """D."""
    dense: bool = False
    """Whether the tensors are (B, T, H, D), all lengths being equal, rather than packed."""
    causal: bool = False
    """As in `attention`."""
    window: tuple[int | None, int | None] | None = None
    """As in `attention`."""
    alibi: bool = False
    """Whether there are ALiBi slopes."""
    bias: str | None = None
    """"shared" (H, T, S), "own" (B, H, T, S), or none. It is a little larger than the longest lengths."""
    dropout_p: float = 0.0
    """As in `attention`."""
    scale: float | None = None
    """As in `attention`."""

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return q, k, v and bias, by the names of the arguments; the same for every call of this method."""
        generator = torch.Generator().manual_seed(5)
        lengths_k = self.lengths_k or self.lengths_q
        shapes = {"q": (self.lengths_q, self.heads), "k": (lengths_k, self.key_heads), "v": (lengths_k, self.key_heads)}
        tensors = {}
        for name, (lengths, heads) in shapes.items():
            rows = (len(lengths), lengths[0]) if self.dense else (sum(lengths),)
            tensors[name] = torch.randn(*rows, heads, self.width, generator=generator).to(dtype)
        if self.bias:
            sequences = (len(lengths_k),) if self.bias == "own" else ()
            sizes = (max(self.lengths_q) + 3, max(lengths_k) + 1)
            tensors["bias"] = torch.randn(*sequences, self.heads, *sizes, generator=generator).to(dtype)
        return tensors

    def options(self) -> dict[str, object]:
        """Return the other arguments of the call, by name; the seed of the dropout is fixed."""
        options = {"causal": self.causal, "window": self.window, "scale": self.scale}
        if self.dropout_p > 0:
            options |= {"dropout_p": self.dropout_p, "seed": 2**40 + 5}
        if self.alibi:
            options["alibi_slopes"] = 2.0 ** -torch.arange(1.0, self.heads + 1)
        if not self.dense:
            options["cu_seqlens_q"] = offsets(self.lengths_q)
            if self.lengths_k is not None:
                options["cu_seqlens_k"] = offsets(self.lengths_k)
        return options


def offsets(lengths: tuple[int, ...]) -> Tensor:
    """Return the (B + 1) int32 row offsets of sequences of these lengths."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


_UNEQUAL = {"lengths_q": (5, 0, 70, 1), "lengths_k": (3, 4, 150, 0)}

EDGE_CASES = {
    "one token": AttentionCase(lengths_q=(1,), width=1, heads=1, key_heads=1),
    "short": AttentionCase(lengths_q=(5, 0, 3, 1), width=8),
    "prime": AttentionCase(lengths_q=(131, 7), width=13),
    "causal": AttentionCase(lengths_q=(3, 130, 64), causal=True),
    "cross": AttentionCase(**_UNEQUAL),
    "cross, causal": AttentionCase(**_UNEQUAL, causal=True),
    "more queries than keys, causal": AttentionCase(lengths_q=(140, 9), lengths_k=(33, 2), causal=True),
    "equal lengths": AttentionCase(lengths_q=(30, 30), lengths_k=(70, 70), causal=True, bias="own"),
    "long, causal": AttentionCase(lengths_q=(600,), heads=1, key_heads=1, causal=True),
    "window": AttentionCase(lengths_q=(150, 40), window=(20, 3)),
    "more queries than keys, window": AttentionCase(lengths_q=(8, 140), lengths_k=(3, 2), window=(None, 4)),
    "window far apart, causal": AttentionCase(lengths_q=(30,), lengths_k=(400,), window=(9, None), causal=True),
    "grouped": AttentionCase(lengths_q=(40, 90), heads=6, key_heads=2, causal=True),
    "alibi": AttentionCase(lengths_q=(66, 5), heads=3, key_heads=3, alibi=True, window=(None, 30)),
    "shared bias": AttentionCase(lengths_q=(70, 3, 20), bias="shared"),
    "own bias": AttentionCase(lengths_q=(70, 3), lengths_k=(20, 140), bias="own", causal=True),
    "dropout": AttentionCase(lengths_q=(37, 140), dropout_p=0.3),
    "everything": AttentionCase(
        lengths_q=(70, 0, 9),
        lengths_k=(135, 2, 20),
        heads=4,
        window=(80, 5),
        alibi=True,
        bias="shared",
        dropout_p=0.2,
        scale=-0.3,
    ),
    "dense": AttentionCase(lengths_q=(33, 33), dense=True, dropout_p=0.1),
    "dense, cross": AttentionCase(lengths_q=(20, 20), lengths_k=(45, 45), dense=True, causal=True, bias="own"),
    "no sequences": AttentionCase(lengths_q=()),
    "no tokens": AttentionCase(lengths_q=(0, 0)),
    "no keys": AttentionCase(lengths_q=(3, 2), lengths_k=(0, 0)),
    "wide": AttentionCase(lengths_q=(20, 65), width=200, heads=1, key_heads=1),
}

_MIXED_LENGTHS = (512, 384, 256, 256, 192, 160, 128, 128, 96, 96, 64, 64, 48, 32, 24, 16, 12, 8)
_BERT_BASE = {"heads": 12, "key_heads": 12, "width": 64}

BENCHMARK_CASES = {
    f"{batch} x {length} x {heads} x {width}{suffix}": AttentionCase(
        lengths_q=(length,) * batch, heads=heads, key_heads=heads, width=width, **options
    )
    for batch, length, heads, width in (
        (32, 32, 12, 64),
        (8, 128, 12, 64),
        (4, 512, 12, 64),
        (1, 2048, 12, 64),
        (8, 128, 24, 32),
        (4, 512, 6, 128),
    )
    for suffix, options in (("", {}), (", causal", {"causal": True}), (", dropout", {"dropout_p": 0.1}))
} | {
    "packed 8..512": AttentionCase(lengths_q=_MIXED_LENGTHS, **_BERT_BASE),
    "packed 8..512, dropout": AttentionCase(lengths_q=_MIXED_LENGTHS, dropout_p=0.1, **_BERT_BASE),
    "4 x 512 x 12 x 64, bias": AttentionCase(lengths_q=(512,) * 4, bias="shared", **_BERT_BASE),
}
"""Sequences x length x heads x width; mixed lengths as documents cut at 512 have them."""
