"""Losses of several kinds, each a sum divided by the number of its targets, added up."""

from collections.abc import Mapping

import torch
from torch import Tensor


class LossSum:
    """Adds up losses, and keeps the sums that metrics are made of.

    Dividing sums by the targets of a whole optimizer step, and not of each micro-batch, makes accumulated gradients
    those of one large batch.

    Args:
        denominators: kind of loss -> number of targets to divide by; a number below one counts as one, so the mean
            over no targets is 0. A 0-d tensor, for a captured graph, is at least one.
    """

    def __init__(self, denominators: Mapping[str, int | Tensor]) -> None:
        self.loss: Tensor | None = None
        """0-d, or None before the first loss."""
        self.metrics: dict[str, Tensor] = {}
        """Detached 0-d sums: "<kind>_loss_sum", "<kind>_correct", "<kind>_count"."""
        self._denominators = denominators

    def add(self, kind: str, loss_sum: Tensor, num_correct: Tensor | None, count: int | Tensor) -> None:
        """Add one kind of loss.

        Args:
            kind: its name, a key of the denominators.
            loss_sum: 0-d, the sum over `count` targets.
            num_correct: 0-d, how many of them the model would have got right; None where nothing is right or wrong.
            count: number of targets; a 0-d tensor where only the device knows it.
        """
        if kind not in self._denominators:
            raise ValueError(
                f"loss_denominators has no {kind!r}, got {sorted(self._denominators)}; "
                "sum batch.target_counts() over the micro-batches of the step"
            )
        denominator = self._denominators[kind]
        loss = loss_sum / (denominator if isinstance(denominator, Tensor) else max(denominator, 1))
        self.loss = loss if self.loss is None else self.loss + loss
        self.metrics[f"{kind}_loss_sum"] = loss_sum.detach()
        if num_correct is not None:
            self.metrics[f"{kind}_correct"] = num_correct.detach()
        self.metrics[f"{kind}_count"] = torch.as_tensor(count)
