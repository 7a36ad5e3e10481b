"""The keys and values of what a causal model has read, so that a next token costs one row and not the whole text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CacheStep:
    """How the N new rows of a pack go on from a cache; made once a step, used by every layer."""

    new_lengths: tuple[int, ...]
    """New tokens of each sequence."""
    position_ids: Tensor
    """(N) int64: positions of the new rows, counted from the beginning of their sequences."""
    cu_seqlens_k: Tensor
    """(B + 1) int32: where the keys of each sequence begin, old ones first and new ones behind them."""
    max_seqlen_k: int
    """Most keys of a sequence."""
    old_rows: Tensor | None
    """(K) int64: rows of the flattened cache that are still seen, in the order of the text; None: there are none."""
    old_places: Tensor | None
    """(K) int64: where they stand among all keys."""
    new_places: Tensor | None
    """(N) int64: where the new rows stand there."""
    kept_rows: Tensor | None
    """(W) int64: the new rows that are kept; None: all of them."""
    kept_places: Tensor
    """(W) int64: rows of the flattened cache that they go to."""


class LayerCache:
    """Keys and values of one layer.

    Args:
        keys, values: (B, S, H_k, D), S the capacity.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def extend(self, k: Tensor, v: Tensor, step: CacheStep) -> tuple[Tensor, Tensor]:
        """Keep the rows (N, H_k, D) of a step, and return all keys and values that it sees, packed."""
        seen = self._seen(self.keys, k, step), self._seen(self.values, v, step)
        for cache, new in ((self.keys, k), (self.values, v)):
            kept = new if step.kept_rows is None else new.index_select(0, step.kept_rows)
            cache.flatten(0, 1).index_copy_(0, step.kept_places, kept)
        return seen

    def select(self, rows: Tensor) -> None:
        """Go on with the sequences `rows`, (B') int64, some of them left out or repeated."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)

    @staticmethod
    def _seen(cache: Tensor, new: Tensor, step: CacheStep) -> Tensor:
        if step.old_rows is None:
            return new
        seen = new.new_empty(step.old_rows.numel() + new.shape[0], *new.shape[1:])
        seen.index_copy_(0, step.old_places, cache.flatten(0, 1).index_select(0, step.old_rows))
        return seen.index_copy_(0, step.new_places, new)


class KVCache:
    """A cache for B sequences of different lengths, allocated once.

    Sequence b has read `lengths[b]` tokens. The one at position p stands in row ``p % capacity``, so a model with a
    sliding window needs no more rows than the window has.

    Args:
        num_layers: L.
        num_sequences: B.
        capacity: S, rows of each sequence.
        num_heads: H_k, heads of keys and values.
        head_dim: D.
        sliding: whether rows may be used again, as none but the last `capacity` tokens are ever seen.
        dtype, device: of keys and values.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_sequences: int,
        capacity: int,
        num_heads: int,
        head_dim: int,
        sliding: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_sequences, capacity, num_heads, head_dim)
        self.capacity, self.sliding, self.device = capacity, sliding, torch.device(device)
        self.lengths = [0] * num_sequences
        self.layers = [LayerCache(*torch.zeros(2, *shape, dtype=dtype, device=device)) for _ in range(num_layers)]

    @property
    def num_sequences(self) -> int:
        """B, the number of sequences."""
        return len(self.lengths)

    def plan(self, new_lengths: Sequence[int]) -> CacheStep:
        """Return how `new_lengths[b]` new tokens of each sequence b go on from here.

        Raises:
            ValueError: for another number of sequences, a sequence without a new token, or a cache that is full.
        """
        if len(new_lengths) != self.num_sequences or min(new_lengths, default=0) < 1:
            raise ValueError(
                f"the cache holds {self.num_sequences} sequences and a step adds at least one token to each, "
                f"got {list(new_lengths)}"
            )
        longest = max(old + new for old, new in zip(self.lengths, new_lengths, strict=True))
        if longest > self.capacity and not self.sliding:
            raise ValueError(
                f"the cache is full: it has room for {self.capacity} tokens of each sequence, and one would have "
                f"{longest}; make it with more capacity, or generate fewer tokens"
            )
        kept = [min(old, self.capacity) for old in self.lengths]
        totals = torch.tensor([k + new for k, new in zip(kept, new_lengths, strict=True)])
        starts = torch.cat((totals.new_zeros(1), totals.cumsum(0)))
        old_rows, old_places, new_places, kept_rows, kept_places, positions = [], [], [], [], [], []
        first_new = 0
        for row, (old, new) in enumerate(zip(self.lengths, new_lengths, strict=True)):
            begin, base = int(starts[row]), row * self.capacity
            old_rows.append(base + torch.arange(old - kept[row], old) % self.capacity)
            old_places.append(begin + torch.arange(kept[row]))
            new_places.append(begin + kept[row] + torch.arange(new))
            surviving = torch.arange(max(0, new - self.capacity), new)
            kept_rows.append(first_new + surviving)
            kept_places.append(base + (old + surviving) % self.capacity)
            positions.append(old + torch.arange(new))
            first_new += new
        everything_kept = max(new_lengths) <= self.capacity
        any_old = any(kept)
        return CacheStep(
            new_lengths=tuple(new_lengths),
            position_ids=self._on_device(positions),
            cu_seqlens_k=starts.int().to(self.device),
            max_seqlen_k=int(totals.max()),
            old_rows=self._on_device(old_rows) if any_old else None,
            old_places=self._on_device(old_places) if any_old else None,
            new_places=self._on_device(new_places) if any_old else None,
            kept_rows=None if everything_kept else self._on_device(kept_rows),
            kept_places=self._on_device(kept_places),
        )

    def advance(self, step: CacheStep) -> None:
        """Count the tokens of a step whose rows every layer has taken."""
        self.lengths = [old + new for old, new in zip(self.lengths, step.new_lengths, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with the sequences `rows`, some of them left out or repeated: finished texts, beams, samples."""
        if list(rows) == list(range(self.num_sequences)):
            return
        indices = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.lengths = [self.lengths[row] for row in rows]
        for layer in self.layers:
            layer.select(indices)

    def _on_device(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat(pieces).to(self.device)
