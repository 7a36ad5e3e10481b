"""A matrix that embeds words and scores them too, with one gradient for both uses.

PyTorch gives each use a dense (V, E) gradient and adds the two: for BERT-base 94 MB filled with zeros for some hundred
rows, and 282 MB moved by the sum. Here the rows that were read are added to the gradient that the scores have left.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastssl.nn.plain import is_plain


class TiedEmbedding:
    """The two uses of a word embedding in one forward pass, differentiable once.

    Args:
        weight: (V, E), the parameter.
        padding_id: a row that gets no gradient from being read, or None.
        reader: what reads rows, where that is more than to look them up.

    Source: Press and Wolf 2016 (arXiv 1608.05859) for the tying.
    """

    def __init__(self, weight: Tensor, padding_id: int | None, reader: nn.Module | None = None) -> None:
        self._padding_id, self._reader = padding_id, reader
        self._apart = reader is not None or torch.compiler.is_compiling() or not torch.is_grad_enabled()
        self._reads: list[tuple[Tensor, Tensor]] = []
        self.weight = weight if self._apart else _Tie.apply(weight, self._reads)
        """(V, E), for a matrix product that gives the scores and for nothing else."""

    @classmethod
    def of(cls, embedding: nn.Embedding) -> "TiedEmbedding":
        """Return the two uses of an embedding."""
        reader = None if is_plain(embedding, nn.Embedding) else embedding
        return cls(embedding.weight, embedding.padding_idx, reader)

    def read(self, ids: Tensor) -> Tensor:
        """Return the rows `ids`, (N, E) from (N) int64."""
        if self._reader is not None:
            return self._reader(ids)
        if self._apart:
            return F.embedding(ids, self.weight, self._padding_id)
        return _Read.apply(self.weight, ids, self._padding_id, self._reads)


class _Tie(torch.autograd.Function):
    """The parameter itself; its backward runs when both uses have had theirs."""

    @staticmethod
    def forward(ctx, weight, reads):
        ctx.reads = reads
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        # A product's gradient is a fresh tensor that nobody else reads, so the rows may be added in place.
        while ctx.reads:
            gradient.index_add_(0, *ctx.reads.pop())
        return gradient, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, ids, padding_id, reads):
        ctx.save_for_backward(ids)
        ctx.padding_id, ctx.reads = padding_id, reads
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (ids,) = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            if ctx.padding_id is not None:
                gradient = gradient.masked_fill((ids == ctx.padding_id)[:, None], 0.0)
            ctx.reads.append((ids, gradient))
        return None, None, None, None
