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
        is_own: whether the pool is the rows that are asked, of which none is shown to itself.
        shared: draw once for all rows.
        seed: of the draws.

    Source: a draw for each question: Brown et al. 2020 (arXiv 2005.14165) section 2.4.
    """

    def __init__(self, pool: Sequence[Example], *, is_own: bool, shared: bool, seed: int) -> None:
        self._pool, self._is_own, self._shared, self._seed = pool, is_own, shared, seed

    def draw(self, row: int, number: int, *, shuffled: bool = False) -> list[Example]:
        """Return `number` examples for the question of a row.

        Args:
            row: number of the question.
            number: of examples.
            shuffled: give each the answer of another example of the pool, drawn with replacement.

        Raises:
            ValueError: for more examples than there are.
        """
        available = len(self._pool) - self._is_own
        if number > available:
            raise ValueError(f"{number} shots need as many examples to draw from, and there are {available}")
        if number == 0:
            return []
        generator = np.random.default_rng([self._seed % 2**64, 0 if self._shared else row + 1])
        # The first ones of a permutation, and one in reserve in case that the question is among them.
        drawn = generator.permutation(len(self._pool))[: number + 1].tolist()
        order = [i for i in drawn if not (self._is_own and i == row)][:number]
        if not shuffled:
            return [self._pool[i] for i in order]
        others = np.random.default_rng([self._seed % 2**64, 1, 0 if self._shared else row + 1])
        steps = others.integers(1, max(2, len(self._pool)), size=number)
        answers = [self._pool[(i + step) % len(self._pool)].completion for i, step in zip(order, steps, strict=True)]
        return [Example(self._pool[i].prompt, answer) for i, answer in zip(order, answers, strict=True)]
