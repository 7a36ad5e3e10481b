"""Forward and backward passes as CUDA graphs, one for each shape of a batch.

A GPU is done with an operator of a small model before the host has sent the next one. A graph is sent as one, but it
knows no other sizes than those that it was captured with. So batches are filled up to few shapes: with sequences of
tokens that nobody sees, and with targets that are none.

What is tested without a GPU is all but the capture; `benchmarks.gpu` holds captured steps to others on one.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fastssl.data.batch import IGNORED_LABEL, PackedBatch
from fastssl.ops.philox import resolve_seed
from fastssl.training.source import Batch
from fastssl.training.step import Passed, forward_backward

MAX_SHAPES = 32
"""Shapes that are captured; batches of others are computed operator by operator. Each graph takes some memory."""
STEPS_AN_OCTAVE = 8
SMALLEST_STEP = 32
"""Sizes are rounded up to multiples of an eighth of the power of two below them, and of this."""
_SIZES = ("input_ids", "position_ids", "token_type_ids")
_TARGETS = ("masked_positions", "masked_labels", "next_tokens")
_OTHERS = ("sentence_labels", "sequence_labels", "answer_mask", "answer_starts", "token_positions", "num_pairs")


Results = TypeVar("Results")


class Graph(Protocol[Results]):
    """A captured function."""

    def replay(self) -> Results:
        """Do it again, on what its inputs hold now; the results are overwritten by the next time."""


class CudaGraph(Generic[Results]):
    """A function of tensors that stay where they are, captured on a CUDA GPU.

    All graphs share memory, so what one returns is to be copied before another one is replayed.
    """

    _pool: tuple[int, int] | None = None
    _living: ClassVar[WeakSet] = WeakSet()

    def __init__(self, function: Callable[[], Results]) -> None:
        if not CudaGraph._living:  # the pool of those that were there ended with the last of them
            CudaGraph._pool = torch.cuda.graph_pool_handle()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=CudaGraph._pool):
            self._results = function()
        CudaGraph._living.add(self)

    def replay(self) -> Results:
        """See `Graph`."""
        self._graph.replay()
        return self._results


@dataclass(frozen=True)
class BatchShape:
    """The sizes of a batch that was filled up."""

    num_tokens: int
    """N."""
    num_sequences: int
    """B; some of them have no token."""
    max_seqlen: int
    """A bound of all lengths."""
    num_masked: int | None
    """M; None without masked-LM targets."""

    @classmethod
    def of(cls, batch: PackedBatch) -> "BatchShape":
        """Return the smallest shape that holds a batch."""
        longest, num_tokens = rounded_up(batch.max_seqlen), rounded_up(batch.num_tokens)
        fillers = -(-(num_tokens - batch.num_tokens) // longest)
        masked = None if batch.masked_labels is None else rounded_up(batch.masked_labels.numel())
        return cls(num_tokens, _power_of_two(batch.num_sequences + fillers), longest, masked)

    def empty_batch(self, like: PackedBatch) -> PackedBatch:
        """Return a batch of this shape, whose tensors hold nothing yet."""

        def tensor(like: Tensor | None, size: int) -> Tensor | None:
            return None if like is None else like.new_zeros(size)

        sizes = {name: tensor(getattr(like, name), self.num_tokens) for name in (*_SIZES, "next_tokens")}
        masked = {name: tensor(getattr(like, name), self.num_masked or 0) for name in _TARGETS[:2]}
        offsets = torch.full_like(like.cu_seqlens[:1], self.num_tokens).repeat(self.num_sequences + 1)
        offsets[0] = 0
        return PackedBatch(cu_seqlens=offsets, max_seqlen=self.max_seqlen, has_filler=True, **sizes, **masked)


class GraphedPasses:
    """Forward and backward pass of a batch: captured when its shape is met for the second time, replayed from then on.

    Gradients are added to those that there are: between two steps they must become zero, not None. The results of a
    pass are the caller's. A model whose `forward` takes a `seed` is given one that lies on the device and is drawn, as
    the model would draw it, for each pass anew: a graph would keep, or could not copy, what is drawn inside it.

    Args:
        model: to be trained.
        dtype: float32, or bfloat16 for autocast.
        capture: makes a graph; another one than CUDA's in tests.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, capture: Callable[[Callable[[], Passed]], Graph[Passed]] = CudaGraph
    ) -> None:
        self._model, self._dtype, self._capture = model, dtype, capture
        self._takes_seed = "seed" in inspect.signature(model.forward).parameters
        self._shapes: dict[BatchShape, _Shape] = {}

    def __call__(self, batch: Batch, denominators: Mapping[str, int]) -> Passed:
        """Add the gradient of a batch's share of the loss; return that, 0-d, and the metric sums.

        Raises:
            ValueError: for a batch whose targets cannot be left open.
        """
        expect_to_be_fillable(batch)
        shape = BatchShape.of(batch)
        known = self._shapes.get(shape)
        if known is None:
            if len(self._shapes) == MAX_SHAPES:
                return forward_backward(self._model, batch, denominators, self._dtype)
            known = self._shapes[shape] = _Shape(shape, batch, denominators)
            known.load(batch, denominators)
            return self._pass_over(known)
        known.load(batch, denominators)
        if known.graph is None:
            known.graph = self._capture(lambda: self._pass_over(known))
        loss, metrics = known.graph.replay()
        return loss.clone(), {name: value.clone() for name, value in metrics.items()}

    def _pass_over(self, shape: "_Shape") -> Passed:
        seed = shape.seed if self._takes_seed else None
        return forward_backward(self._model, shape.batch, shape.denominators, self._dtype, seed=seed)


class _Shape:
    """The tensors that a graph reads."""

    def __init__(self, shape: BatchShape, batch: PackedBatch, denominators: Mapping[str, int]) -> None:
        self.batch = shape.empty_batch(batch)
        device = batch.input_ids.device
        self.denominators = {kind: torch.ones((), dtype=torch.float32, device=device) for kind in denominators}
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.graph: Graph[Passed] | None = None

    def load(self, batch: PackedBatch, denominators: Mapping[str, int]) -> None:
        """Take a batch over, fill it up, and draw its seed; the host waits for nothing."""
        filled, num_tokens = self.batch, batch.num_tokens
        for name in (*_SIZES, *_TARGETS):
            there, given = getattr(filled, name), getattr(batch, name)
            if there is not None:
                there[: len(given)].copy_(given, non_blocking=True)
                there[len(given) :].fill_(IGNORED_LABEL if name in ("masked_labels", "next_tokens") else 0)
        offsets = filled.cu_seqlens
        offsets[: batch.num_sequences + 1].copy_(batch.cu_seqlens, non_blocking=True)
        # The tokens that fill up are sequences of the greatest length; those behind them have no token.
        fillers = offsets[batch.num_sequences + 1 :]
        torch.arange(1, len(fillers) + 1, dtype=offsets.dtype, device=offsets.device, out=fillers)
        fillers.mul_(filled.max_seqlen).add_(num_tokens).clamp_(max=filled.num_tokens)
        for kind, denominator in self.denominators.items():
            denominator.fill_(denominators[kind])
        self.seed.fill_(int(resolve_seed(None)))


def expect_graphs_to_work(device: torch.device, num_processes: int) -> None:
    """Raise where passes cannot be graphs.

    Raises:
        ValueError: for a device that is no CUDA GPU, or several processes.
    """
    if device.type != "cuda":
        raise ValueError(f"cuda_graphs=True needs a CUDA GPU, but the model trains on {device}; leave it out there")
    if num_processes > 1:
        raise ValueError(f"cuda_graphs=True works in one process, and there are {num_processes}; leave it out")


def expect_to_be_fillable(batch: Batch) -> None:
    """Raise for a batch with other targets than those that can be left open: masked tokens, or next ones."""
    if not isinstance(batch, PackedBatch):
        raise ValueError(f"cuda_graphs=True takes packed batches, got a {type(batch).__name__}; leave it out")
    if others := [name for name in _OTHERS if getattr(batch, name) is not None]:
        raise ValueError(
            f"cuda_graphs=True is for masked and causal LM alone, but the batches have {', '.join(others)}; "
            "leave it out"
        )


def rounded_up(size: int) -> int:
    """Return a size that is at least this one, and at most an eighth, or 31, above it."""
    step = max(_power_of_two(size + 1) // 2 // STEPS_AN_OCTAVE, SMALLEST_STEP)
    return -(-size // step) * step


def _power_of_two(size: int) -> int:
    """Return the smallest one that is at least `size`."""
    return 1 << (size - 1).bit_length()
