"""What a run will cost, from plain numbers, before it starts."""

from dataclasses import dataclass

from fastssl.training.progress import format_duration


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """The numbers of a model that a cost needs."""

    parameters: int
    """Trainable parameters."""
    flops_per_token: float
    """Floating-point operations of one token's forward and backward pass."""
    memory_bytes: int
    """Memory of weights, gradients, optimizer state and one batch's activations."""


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """The cost of a run."""

    parameters: int
    """Trainable parameters."""
    steps: int | None
    """Optimizer steps; None where time alone ends the run."""
    tokens: float
    """Tokens to be read."""
    flops: float
    """Floating-point operations in all."""
    memory_bytes: int
    """Peak memory of training."""
    flops_per_second: float
    """Rate at which the hours were reckoned."""
    hours: float
    """Wall-clock time."""

    def lines(self) -> list[str]:
        """Return the cost as text, one quantity a line."""
        steps = "until the time is used" if self.steps is None else f"{self.steps:,}"
        return [
            f"parameters  {self.parameters:,}",
            f"steps       {steps}",
            f"tokens      {self.tokens:,.0f}",
            f"FLOPs       {self.flops:.3g}",
            f"memory      {self.memory_bytes / 2**30:.2f} GiB",
            f"time        {format_duration(3600 * self.hours)} at {self.flops_per_second / 1e9:,.1f} GFLOP/s",
        ]


def estimate_run_cost(
    model: ModelCost,
    *,
    tokens_per_step: float,
    flops_per_second: float,
    steps: int | None = None,
    hours: float | None = None,
) -> RunCost:
    """Return a run's cost: FLOPs = FLOPs per token x tokens, hours = FLOPs / rate.

    Args:
        model: the model's numbers.
        tokens_per_step: tokens of one optimizer step, over all its batches.
        flops_per_second: the rate that training reaches (not the peak).
        steps: optimizer steps; None where `hours` ends the run.
        hours: time budget; where both are given, what ends first counts.

    Raises:
        ValueError: if neither steps nor hours are given, or a rate or a size is not positive.
    """
    if steps is None and hours is None:
        raise ValueError("steps and hours are both None; a cost needs at least one of them")
    if tokens_per_step <= 0 or flops_per_second <= 0:
        raise ValueError(
            f"tokens_per_step={tokens_per_step}, flops_per_second={flops_per_second}; expected numbers above zero"
        )
    step_hours = model.flops_per_token * tokens_per_step / flops_per_second / 3600
    ends = [steps * step_hours] if steps is not None else []
    ends += [hours] if hours is not None else []
    run_hours = min(ends)
    run_steps = run_hours / step_hours
    return RunCost(
        parameters=model.parameters,
        steps=steps,
        tokens=run_steps * tokens_per_step,
        flops=run_steps * tokens_per_step * model.flops_per_token,
        memory_bytes=model.memory_bytes,
        flops_per_second=flops_per_second,
        hours=run_hours,
    )
