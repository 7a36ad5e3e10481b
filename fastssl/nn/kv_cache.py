"""The keys and values of what a causal model has read, so that a next token costs one row and not the whole text."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
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
    old: tuple[Tensor, Tensor] | None
    """(K) int64 each: sequences and slots of the cached keys that are still seen, in the order of the text; None: there
    are none."""
    old_places: Tensor | None
    """(K) int64: where they stand among all keys."""
    new_places: Tensor | None
    """(N) int64: where the new rows stand there."""
    kept_rows: Tensor | None
    """(W) int64: the new rows that are kept; None: all of them."""
    kept: tuple[Tensor, Tensor]
    """(W) int64 each: sequences and slots that they go to."""


class LayerCache:
    """Keys and values of one layer.

    Args:
        keys, values: (B, H_k, S, D), S the capacity: the tokens of a head side by side, as a step reads them.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def extend(self, k: Tensor, v: Tensor, step: CacheStep) -> tuple[Tensor, Tensor]:
        """Keep the rows (N, H_k, D) of a step, and return all keys and values that it sees, packed."""
        seen = self._seen(self.keys, k, step), self._seen(self.values, v, step)
        for cache, new in ((self.keys, k), (self.values, v)):
            self._keep(cache, new, step)
        return seen

    def select(self, rows: Tensor) -> None:
        """Go on with the sequences `rows`, (B') int64, some of them left out or repeated."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)

    def branch(self, rows: Tensor, used: int, capacity: int) -> "LayerCache":
        """Return the first `used` slots of sequences `rows`, (B') int64, in a cache of `capacity` slots."""
        caches = []
        for own in (self.keys, self.values):
            new = own.new_zeros(rows.numel(), own.shape[1], capacity, own.shape[3])
            new[:, :, :used] = own[:, :, :used].index_select(0, rows)
            caches.append(new)
        return LayerCache(*caches)

    @staticmethod
    def _keep(cache: Tensor, new: Tensor, step: CacheStep) -> None:
        if step.old is None and step.kept_rows is None:
            # The beginnings of texts lie in a cache as in a pack, head by head: whole runs are copied, not tokens.
            for sequence, rows in zip(cache, new.split(step.new_lengths), strict=True):
                sequence[:, : len(rows)] = rows.transpose(0, 1)
            return
        sequences, slots = step.kept
        cache[sequences, :, slots] = new if step.kept_rows is None else new.index_select(0, step.kept_rows)

    @staticmethod
    def _seen(cache: Tensor, new: Tensor, step: CacheStep) -> Tensor:
        if step.old is None:
            return new
        sequences, slots = step.old
        seen = new.new_empty(sequences.numel() + new.shape[0], *new.shape[1:])
        seen.index_copy_(0, step.old_places, cache[sequences, :, slots])
        return seen.index_copy_(0, step.new_places, new)


class KVCache:
    """A cache for B sequences of different lengths, allocated once.

    Sequence b has read `lengths[b]` tokens. The one at position p stands in slot ``p % capacity``, so a model with a
    sliding window needs no more slots than the window has.

    Args:
        num_layers: L.
        num_sequences: B.
        capacity: S, slots of each sequence.
        num_heads: H_k, heads of keys and values.
        head_dim: D.
        sliding: whether slots may be used again, as none but the last `capacity` tokens are ever seen.
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
        shape = (num_sequences, num_heads, capacity, head_dim)
        self.capacity, self.sliding, self.device = capacity, sliding, torch.device(device)
        self.lengths = [0] * num_sequences
        self.layers = [LayerCache(*torch.zeros(2, *shape, dtype=dtype, device=device)) for _ in range(num_layers)]
        self.decoder: tuple[object, Sequence[Callable] | None] | None = None
        """A model that decodes from this cache, and its blocks made ready for that, or None where it reads as usual."""

    @property
    def num_sequences(self) -> int:
        """B, the number of sequences."""
        return len(self.lengths)

    def plan(self, new_lengths: Sequence[int]) -> CacheStep:
        """Return how `new_lengths[b]` new tokens of each sequence b go on from here; errors as in `check`."""
        self.check(new_lengths)
        old, new = np.array(self.lengths), np.array(new_lengths)
        seen_before = np.minimum(old, self.capacity)
        totals = seen_before + new
        starts = np.concatenate(([0], totals.cumsum()))
        # Everything is said of single tokens: the old ones that are seen, the new ones, the new ones that are kept.
        old_sequences, old_order = _ranges(seen_before)
        new_sequences, new_order = _ranges(new)
        kept = np.flatnonzero(new_order >= new[new_sequences] - self.capacity)
        positions = old[new_sequences] + new_order
        has_old = bool(old.any())
        old_positions = (old - seen_before)[old_sequences] + old_order
        return CacheStep(
            new_lengths=tuple(new_lengths),
            position_ids=self._tensor(positions),
            cu_seqlens_k=self._tensor(starts).int(),
            max_seqlen_k=int(totals.max()),
            old=(self._tensor(old_sequences), self._tensor(old_positions % self.capacity)) if has_old else None,
            old_places=self._tensor(starts[old_sequences] + old_order) if has_old else None,
            new_places=self._tensor((starts[:-1] + seen_before)[new_sequences] + new_order) if has_old else None,
            kept_rows=None if len(kept) == len(new_order) else self._tensor(kept),
            kept=(self._tensor(new_sequences[kept]), self._tensor(positions[kept] % self.capacity)),
        )

    def check(self, new_lengths: Sequence[int]) -> None:
        """Refuse a step that does not fit.

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

    def advance(self, new_lengths: Sequence[int]) -> None:
        """Count new tokens that every layer has taken."""
        self.lengths = [old + new for old, new in zip(self.lengths, new_lengths, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with the sequences `rows`, some of them left out or repeated: finished texts, beams, samples."""
        if list(rows) == list(range(self.num_sequences)):
            return
        indices = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.lengths = [self.lengths[row] for row in rows]
        for layer in self.layers:
            layer.select(indices)

    def branch(self, rows: Sequence[int], capacity: int) -> "KVCache":
        """Return a cache that goes on from the sequences `rows`, some of them left out or repeated; this one stays.

        Args:
            rows: numbers of sequences.
            capacity: slots of each; one that slides keeps its own number.

        Raises:
            ValueError: for less room than what the sequences have.
        """
        lengths = [self.lengths[row] for row in rows]
        longest = max(lengths, default=0)
        if capacity < longest and not self.sliding:
            raise ValueError(f"a sequence of the cache has {longest} tokens, got capacity={capacity}; make it larger")
        branch = copy.copy(self)
        branch.lengths, branch.capacity = lengths, self.capacity if self.sliding else capacity
        indices = torch.tensor(rows, dtype=torch.int64, device=self.device)
        branch.layers = [layer.branch(indices, min(longest, self.capacity), branch.capacity) for layer in self.layers]
        return branch

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def _ranges(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each item of runs of given lengths laid end to end, the number of its run and its place in it."""
    runs = np.repeat(np.arange(len(lengths)), lengths)
    return runs, np.arange(len(runs)) - (lengths.cumsum() - lengths)[runs]
