"""Held-out evaluation: sums over all batches of a source, then means."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from fastssl.training.distributed import World
from fastssl.training.metrics import MetricSums
from fastssl.training.precision import autocast
from fastssl.training.source import BatchSource, InterleavedSource


class Evaluation(Protocol):
    """What measures a model on held-out data; `evaluate` with its source is one."""

    def __call__(
        self, model: nn.Module, *, dtype: torch.dtype, world: World, cancelled: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Return figures whose names begin with "eval_", the same in all processes; None once it is cancelled."""


@contextmanager
def evaluation_mode(model: nn.Module, dtype: torch.dtype) -> Iterator[torch.device]:
    """Put a model into evaluation mode for a while, and into its former mode after; gives the model's device.

    Args:
        model: the model.
        dtype: float32, or bfloat16 for autocast.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with autocast(device, dtype):
            yield device
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module,
    source: BatchSource,
    *,
    dtype: torch.dtype = torch.float32,
    world: World | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Return "eval_loss" and "eval_<kind>_loss", "_accuracy", "_perplexity" over epoch 0 of held-out data.

    Epoch 0 is always the one taken, so that every evaluation predicts the same masked tokens. The model is in
    evaluation mode meanwhile and in its former mode after.

    Args:
        model: the model, not wrapped for several processes.
        source: the held-out batches; the processes of `world` share them.
        dtype: float32, or bfloat16 for autocast.
        world: the processes that evaluate together; None for this one alone.
        cancelled: asked before each batch; once it says true, the evaluation ends and returns None.
    """
    world = world or World()
    # Fewer batches than processes: each takes them all, which multiplies every sum alike and leaves the means.
    shared = source.num_batches(0) >= world.size
    own = InterleavedSource(source, world.rank, world.size) if shared else source
    sums = MetricSums()
    with torch.no_grad(), evaluation_mode(model, dtype) as device:
        for index in range(own.num_batches(0)):
            if cancelled():
                break
            sums.add(model(own.batch(0, index).to(device)).metrics)
    if world.maximum([float(cancelled())])[0]:
        return None
    total = MetricSums(world.sum(sums.sums))
    return {"eval_loss": total.loss()} | {f"eval_{name}": value for name, value in total.means().items()}
