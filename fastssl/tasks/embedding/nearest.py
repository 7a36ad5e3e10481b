"""Cosine search: the rows of an array that are nearest to some queries, in one pass over it and bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

_BLOCK_BYTES, _QUERIES_AT_ONCE, _PAIRS_AT_ONCE = 1 << 24, 1024, 1 << 14
_SLACK = 1e-5
"""More than an fp32 cosine can be wrong by."""


def nearest_rows(queries: np.ndarray, blocks: Iterable[np.ndarray], top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows with the largest cosines for each query, best first, and of equal ones the first.

    Blocked fp32 products choose the rows that may be among the best; their cosines are then computed in fp64, each by
    itself, so that neither blocks nor threads change a score, equal rows have equal ones, and ties are ordered by row.

    Args:
        queries: (Q, E) floating.
        blocks: arrays (k, E), whose rows are numbered on from block to block; each is looked at once.
        top_k: K, rows for each query; fewer where there are fewer.

    Returns:
        Cosines (Q, K) float64, and the numbers of the rows (Q, K) int64. A vector of zeros has the cosine 0 with all.

    Raises:
        ValueError: for a `top_k` below 1, another width than the queries', or a vector with a NaN or an infinity.

    Memory: a block, its products with up to 1024 queries at a time, and K numbers a query.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    exact_queries = _units(np.asarray(queries, dtype=np.float64), "query", 0)
    best = [
        _Best(exact_queries[start : start + _QUERIES_AT_ONCE], top_k)
        for start in range(0, len(exact_queries), _QUERIES_AT_ONCE)
    ]
    first_row = 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != exact_queries.shape[1]:
            raise ValueError(f"embeddings must be (rows, {exact_queries.shape[1]}) as the queries, got {block.shape}")
        for part in row_blocks(block):
            rows = np.asarray(part, dtype=np.float32)
            units = torch.from_numpy(_units(rows, "row", first_row))
            for one in best:
                one.look_at(rows, units, first_row)
            first_row += len(rows)
    empty = np.empty((0, min(top_k, first_row)))
    return (
        np.concatenate([empty, *(one.scores for one in best)]),
        np.concatenate([empty.astype(np.int64), *(one.rows for one in best)]),
    )


def row_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Cut an array, perhaps memory-mapped, into blocks of rows of a few MB."""
    rows = max(1, _BLOCK_BYTES // max(1, 4 * array.shape[1]))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


class _Best:
    """The best rows so far of some queries."""

    def __init__(self, queries: np.ndarray, top_k: int) -> None:
        self.queries, self.top_k = queries, top_k
        self.scores = np.empty((len(queries), 0))
        self.rows = np.empty((len(queries), 0), dtype=np.int64)
        self._fp32_queries = torch.from_numpy(queries.astype(np.float32))

    def look_at(self, rows: np.ndarray, units: torch.Tensor, first_row: int) -> None:
        """Take a block into account.

        Args:
            rows: (k, E) fp32.
            units: the same, each of length one.
            first_row: number of its first row.
        """
        products = self._fp32_queries @ units.T
        # Only what reaches the K-th best of this block and of those before can be among the best.
        least = products.topk(min(self.top_k, len(rows)), sorted=True).values[:, -1:]
        if len(rows) < self.top_k:
            least.fill_(-torch.inf)
        if self.scores.shape[1] == self.top_k:
            least = torch.maximum(least, torch.from_numpy(self.scores[:, -1:]).float())
        owners, found = (products >= least - _SLACK).nonzero(as_tuple=True)
        self._merge(owners.numpy(), found.numpy(), rows, first_row)

    def _merge(self, owners: np.ndarray, found: np.ndarray, rows: np.ndarray, first_row: int) -> None:
        """Rank candidates, (n) queries and (n) rows of a block, together with what was best before."""
        scores = np.empty(len(owners))
        for start in range(0, len(owners), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            vectors = rows[found[part]].astype(np.float64)
            lengths = np.maximum(np.sqrt((vectors * vectors).sum(1)), 1e-300)
            scores[part] = (vectors * self.queries[owners[part]]).sum(1) / lengths
        num_queries, kept = self.scores.shape
        all_owners = np.concatenate([np.repeat(np.arange(num_queries), kept), owners])
        all_scores = np.concatenate([self.scores.ravel(), scores])
        all_rows = np.concatenate([self.rows.ravel(), first_row + found])
        order = np.lexsort((all_rows, -all_scores, all_owners))
        counts = np.bincount(all_owners, minlength=num_queries)
        # Every query has at least as many candidates as it keeps.
        keep = min(self.top_k, int(counts.min())) if num_queries else 0
        chosen = order[((np.cumsum(counts) - counts)[:, None] + np.arange(keep)).ravel()]
        self.scores = all_scores[chosen].reshape(num_queries, keep)
        self.rows = all_rows[chosen].reshape(num_queries, keep)


def _units(vectors: np.ndarray, name: str, first: int) -> np.ndarray:
    """Return vectors divided by their lengths; zeros stay zeros."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        wrong = first + int(np.flatnonzero(~np.isfinite(lengths[:, 0]))[0])
        raise ValueError(f"{name} {wrong} (counted from 0) holds a NaN or an infinity; embed that text anew")
    return vectors / np.maximum(lengths, np.finfo(vectors.dtype).tiny)
