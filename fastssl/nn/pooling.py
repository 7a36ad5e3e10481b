"""One vector for each sequence of a packed batch, from the vectors of its tokens."""

from collections.abc import Callable

import torch
from torch import Tensor


def _first(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    return hidden_states[cu_seqlens[:-1].long()]


def _sum(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    lengths = cu_seqlens.diff().long()
    owner = torch.repeat_interleave(torch.arange(lengths.numel(), device=lengths.device), lengths)
    sums = hidden_states.new_zeros(lengths.numel(), hidden_states.shape[-1], dtype=torch.float32)
    return sums.index_add(0, owner, hidden_states.float())


def _mean(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    return (_sum(hidden_states, cu_seqlens) / cu_seqlens.diff()[:, None]).to(hidden_states.dtype)


def _mean_by_root(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    return (_sum(hidden_states, cu_seqlens) / cu_seqlens.diff()[:, None].sqrt()).to(hidden_states.dtype)


def _maximum(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    return torch.stack([rows.amax(0) for rows in hidden_states.split(cu_seqlens.diff().tolist())])


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _maximum,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
}
"""Name, as in sentence-transformers -> function: packed (N, E) and cu_seqlens (B + 1) to (B, E), where every sequence
has at least one token. The first token; the largest value of each column; the mean; the sum over the root of the
length. Sums are accumulated in fp32.

Source: Reimers and Gurevych 2019, "Sentence-BERT" (arXiv 1908.10084) §3.
"""
