"""Sequences that begin alike, as a tree: what several of them share stands once, and need be read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

LEAST_SHARED = 8
"""A shared stretch of fewer tokens is read again for each sequence: another call costs as much."""
_DEEPEST = 16


@dataclass(kw_only=True)
class PrefixNode:
    """A stretch of tokens behind what the nodes above it hold."""

    start: int
    """Number of tokens above it."""
    tokens: list[int]
    """Its own."""
    sequences: list[int]
    """Numbers of those that it lies on the way of; some may end above it."""
    children: list[PrefixNode] = field(default_factory=list)
    """How they go on."""

    @property
    def end(self) -> int:
        """Number of tokens up to its last one."""
        return self.start + len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of the longest way through it."""
        return max((child.longest for child in self.children), default=self.end)


def prefix_tree(sequences: Sequence[Sequence[int]], *, least_shared: int | None = LEAST_SHARED) -> list[PrefixNode]:
    """Return the roots of the tree of some sequences.

    A sequence that another one begins with has no node of its own: it is read on the way.

    Args:
        sequences: of at least one token each.
        least_shared: length from which a common stretch stands once; None: no two sequences share one, unless one of
            them begins with the whole other.
    """
    order = sorted(range(len(sequences)), key=lambda number: sequences[number])
    leaves: list[list[int]] = []
    carried: list[int] = []
    for number, following in pairwise([*order, None]):
        carried.append(number)
        own = sequences[number]
        if following is None or list(sequences[following][: len(own)]) != list(own):
            leaves.append(carried)
            carried = []
    tree = _Tree(sequences, leaves, least_shared)
    return tree.branches(0, len(leaves), 0, 0) if leaves else []


class _Tree:
    """Sorted sequences, none of which begins with another: the last number of each leaf is its longest."""

    def __init__(self, sequences: Sequence[Sequence[int]], leaves: list[list[int]], least_shared: int | None) -> None:
        self._leaves, self._least_shared = leaves, least_shared
        self._texts = [np.asarray(sequences[leaf[-1]], dtype=np.int64) for leaf in leaves]

    def branches(self, begin: int, end: int, depth: int, level: int) -> list[PrefixNode]:
        """Return the nodes of the leaves ``begin`` to ``end``, which agree in their first `depth` tokens."""
        if self._least_shared is None or level == _DEEPEST:
            return [self._leaf(leaf, depth) for leaf in range(begin, end)]
        firsts = [int(text[depth]) for text in self._texts[begin:end]]
        borders = [begin, *(begin + i + 1 for i, (a, b) in enumerate(pairwise(firsts)) if a != b), end]
        return [node for pair in pairwise(borders) for node in self._branch(*pair, depth, level)]

    def _branch(self, begin: int, end: int, depth: int, level: int) -> list[PrefixNode]:
        if end - begin == 1:
            return [self._leaf(begin, depth)]
        # Of sorted sequences, what the first and the last agree in all of them do.
        shared = _common_length(self._texts[begin], self._texts[end - 1])
        children = self.branches(begin, end, shared, level + 1)
        stretch = self._texts[begin][depth:shared].tolist()
        if len(stretch) < self._least_shared:
            for child in children:
                child.start, child.tokens = depth, stretch + child.tokens
            return children
        through = [number for child in children for number in child.sequences]
        return [PrefixNode(start=depth, tokens=stretch, sequences=through, children=children)]

    def _leaf(self, leaf: int, depth: int) -> PrefixNode:
        return PrefixNode(start=depth, tokens=self._texts[leaf][depth:].tolist(), sequences=list(self._leaves[leaf]))


def _common_length(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length
