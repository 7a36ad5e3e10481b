"""One optimizer step: its batches, its loss, its gradients.

The loss of a step is, for each kind of prediction, the sum of losses over all its batches (accumulated, all processes)
divided by the number of predictions in them. A mean of the batches' means would weigh a prediction in a batch of few
more than one in a batch of many.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastssl.training.distributed import World
from fastssl.training.precision import autocast
from fastssl.training.source import Batch

Passed = tuple[Tensor, dict[str, Tensor]]
"""A batch's share of the loss, 0-d, and the sums of its metrics."""


class NonFiniteError(ValueError):
    """A loss or a gradient became NaN or infinite; nothing of the step was applied or saved."""


@dataclass(frozen=True, kw_only=True)
class NumberedBatch:
    """A batch and its place in the data."""

    epoch: int
    """Epoch, from 0."""
    index: int
    """Number in the epoch, from 0."""
    batch: Batch
    """The batch itself."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step computed, over all processes."""

    loss: float
    """The loss whose gradient was taken."""
    grad_norm: float
    """Global 2-norm of the gradient before clipping."""
    tokens: int
    """Tokens in all batches."""
    metrics: dict[str, float]
    """The model's metric sums."""


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return 63 random-looking bits that depend on (seed, step, rank) alone."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generator of a device, and that of the host.

    `torch.manual_seed` seeds those of every kind of device, and writes down for each that is not in use from where it
    was called: half a millisecond, a fiftieth of a small model's step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def total_target_counts(batches: Sequence[NumberedBatch], world: World) -> dict[str, int]:
    """Return the number of predictions of each kind in all batches of all processes, at least 1 each."""
    counts: dict[str, float] = {}
    for numbered in batches:
        for kind, count in numbered.batch.target_counts().items():
            counts[kind] = counts.get(kind, 0) + count
    return {kind: max(1, round(count)) for kind, count in world.sum(counts).items()}


def accumulate_gradients(
    model: nn.Module,
    batches: Sequence[NumberedBatch],
    *,
    dtype: torch.dtype,
    world: World,
    passes: Callable[[Batch, Mapping[str, int]], Passed] | None = None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Add the gradient of the step's loss to the parameters.

    Args:
        model: the model, wrapped by `world` where there are several processes.
        batches: this process's batches of the step.
        dtype: float32, or bfloat16 for autocast.
        world: the processes that share the step.
        passes: computes a batch in this process instead of `forward_backward`, such as `GraphedPasses`.

    Returns:
        Each batch's share of the loss (0-d, detached), and the sums of the model's metrics.
    """
    device = next(model.parameters()).device
    denominators = total_target_counts(batches, world)
    losses, metrics = [], {}
    for number, numbered in enumerate(batches, start=1):
        batch = numbered.batch.to(device)
        with world.exchanging_gradients(model, now=number == len(batches)):
            if passes is not None:
                loss, sums = passes(batch, denominators)
            else:
                # DistributedDataParallel averages gradients over processes where the step's loss is their sum.
                loss, sums = forward_backward(model, batch, denominators, dtype, factor=world.size)
        losses.append(loss)
        for name, value in sums.items():
            metrics[name] = metrics[name] + value if name in metrics else value
    return losses, metrics


def forward_backward(
    model: nn.Module,
    batch: Batch,
    denominators: Mapping[str, int | Tensor],
    dtype: torch.dtype,
    factor: int = 1,
    seed: Tensor | None = None,
) -> Passed:
    """Add the gradient of a batch's share of the loss, `factor` times, to the parameters.

    Args:
        model: called with the batch, `loss_denominators`, and `seed` where one is given.
        batch: on the model's device.
        denominators: how many predictions of each kind the step has.
        dtype: float32, or bfloat16 for autocast.
        factor: of the gradient alone.
        seed: 0-d int64, of the model's dropout; None: the model draws one.

    Returns:
        That share (0-d, detached), and the sums of the model's metrics.
    """
    given = {} if seed is None else {"seed": seed}
    with autocast(next(model.parameters()).device, dtype):
        output = model(batch, loss_denominators=denominators, **given)
    (output.loss * factor).backward()
    return output.loss.detach(), dict(output.metrics)


@dataclass(frozen=True, kw_only=True)
class SentNumbers:
    """A step's numbers on their way to the host, which may go on with the next step meanwhile."""

    step: int
    """Number of the step, from 1."""
    batches: Sequence[NumberedBatch]
    """Its batches in this process."""
    metrics: Sequence[str]
    """Names of the model's metric sums."""
    values: Tensor
    """On the host: the gradient's norm, each batch's loss, the metric sums; float64."""
    arrived: torch.cuda.Event | None
    """Passed when they are there; None: they are."""

    @classmethod
    def send(
        cls,
        step: int,
        losses: Sequence[Tensor],
        grad_norm: Tensor,
        metrics: dict[str, Tensor],
        batches: Sequence[NumberedBatch],
    ) -> "SentNumbers":
        """Begin to bring 0-d tensors to the host; those of a GPU in one transfer, for which nobody waits here."""
        device = losses[0].device
        numbers = [grad_norm, *losses, *metrics.values()]
        values = torch.stack([value.detach().to(device, torch.float64, non_blocking=True) for value in numbers])
        arrived = None
        if device.type == "cuda":
            on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = on_host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(step=step, batches=batches, metrics=list(metrics), values=values, arrived=arrived)

    def report(self, world: World) -> StepReport:
        """Sum the numbers over the processes, and stop the run if one of them is not finite.

        Raises:
            NonFiniteError: names the first batch with a bad loss, or all of the step's batches for a bad gradient.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        own_norm, *values = self.values.tolist()
        own_losses, own_metrics = values[: len(self.batches)], values[len(self.batches) :]
        bad = [n for n, loss in zip(self.batches, own_losses, strict=True) if not math.isfinite(loss)]
        own = {"loss": sum(own_losses), "tokens": sum(n.batch.num_tokens for n in self.batches)}
        sums = {f"metrics/{name}": value for name, value in zip(self.metrics, own_metrics, strict=True)}
        total = world.sum(own | sums)
        report = StepReport(
            loss=total["loss"],
            grad_norm=own_norm,
            tokens=round(total["tokens"]),
            metrics={name: total[f"metrics/{name}"] for name in self.metrics},
        )
        if not math.isfinite(report.loss):
            where = _places(bad[:1]) if bad else "another process's batch"
            raise NonFiniteError(f"the loss is {report.loss} at {where}")
        if not math.isfinite(report.grad_norm):
            raise NonFiniteError(f"the gradient norm is {report.grad_norm} over {_places(self.batches)}")
        return report


def _places(batches: Sequence[NumberedBatch]) -> str:
    return ", ".join(f"batch (epoch {n.epoch}, index {n.index})" for n in batches)
