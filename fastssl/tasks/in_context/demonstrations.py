"""Which examples stand in a prompt: drawn by a seed, never the question itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastssl.tasks.in_context.layout import Example


class Demonstrations:
    """Draws examples for prompts; what is drawn is a pure function of (seed, row).

    The first k of a draw are the draw of k: one example more leaves the others as they are.

    Args:
        pool: what is drawn from.
        groups: of each of the pool; a question of a group is shown examples of that group alone. None: there are none.
        is_own: whether the pool is the rows that are asked, of which none is shown to itself.
        shared: draw once for all rows (of a group).
        seed: of the draws.

    Source: a draw for each question: Brown et al. 2020 (arXiv 2005.14165) section 2.4.
    """

    def __init__(
        self,
        pool: Sequence[Example],
        *,
        groups: Sequence[str] | None = None,
        is_own: bool,
        shared: bool,
        seed: int,
    ) -> None:
        self._pool, self._is_own, self._shared, self._seed = pool, is_own, shared, seed
        self._members: dict[str | None, list[int]] = {}
        for number, group in enumerate([None] * len(pool) if groups is None else groups):
            self._members.setdefault(group, []).append(number)

    def draw(self, row: int, number: int, *, group: str | None = None, shuffled: bool = False) -> list[Example]:
        """Return `number` examples for the question of a row.

        Args:
            row: number of the question.
            number: of examples.
            group: of the question, where there are groups.
            shuffled: give each the answer of another example that could have been drawn, with replacement.

        Raises:
            ValueError: for more examples than there are.
        """
        members = self._members.get(group, [])
        available = len(members) - self._is_own
        if number > available:
            of_group = "" if group is None else f" of the group {group!r}"
            raise ValueError(f"{number} shots need as many examples{of_group} to draw from, and there are {available}")
        if number == 0:
            return []
        # The first ones of a permutation, and one in reserve in case that the question is among them.
        drawn = self._generator(row, 0).permutation(len(members))[: number + 1].tolist()
        own = members.index(row) if self._is_own else len(members)
        order = [place for place in drawn if place != own][:number]
        steps = self._generator(row, 1).integers(1, max(2, available), size=number) if shuffled else [0] * number

        def answer_of(place: int, step: int) -> int:
            """Count on among the examples that could have been drawn, and round."""
            other = (place - (place > own) + step) % available
            return other + (other >= own)

        return [
            Example(self._pool[members[place]].prompt, self._pool[members[answer_of(place, step)]].completion)
            for place, step in zip(order, steps, strict=True)
        ]

    def _generator(self, row: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed % 2**64, purpose, 0 if self._shared else row + 1])
