"""The training loop: step, report, evaluate, save, until the end."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from fastssl.training.checkpoint import rotate_checkpoints, write_checkpoint
from fastssl.training.config import TrainingConfig
from fastssl.training.distributed import World
from fastssl.training.evaluation import Evaluation
from fastssl.training.graphed_update import GraphedUpdate
from fastssl.training.graphs import GraphedPasses
from fastssl.training.interrupt import EXIT_CODES, StopRequest
from fastssl.training.log import Sink
from fastssl.training.metrics import MetricSums
from fastssl.training.optimizer import (
    FusedAdamW,
    clip_factor,
    clip_factor_on_device,
    gradient_norm,
    set_learning_rate,
)
from fastssl.training.progress import Reporter, Stopwatch
from fastssl.training.run_directory import RunDirectoryError
from fastssl.training.schedule import Schedule
from fastssl.training.source import Batch, InterleavedSource
from fastssl.training.state import TrainingState
from fastssl.training.step import (
    NonFiniteError,
    NumberedBatch,
    SentNumbers,
    accumulate_gradients,
    seed_generators,
    step_seed,
)

WAITING_DEVICES = frozenset({"cpu"})
"""Devices on which an operator is done when its call returns, so that to read a number costs nothing."""


@dataclass(kw_only=True)
class TrainingLoop:
    """One pass from the present step to the end of a run, over parts that are ready.

    Step k is a function of (settings, weights before it, k): its batches follow from k, its dropout from (seed, k), its
    learning rate from k (from the clock, with a time budget).
    """

    config: TrainingConfig
    """The settings."""
    model: nn.Module
    """The model, not wrapped."""
    optimizer: FusedAdamW
    """Its optimizer."""
    state: TrainingState
    """The numbers of the run, changed in place."""
    total_steps: int | None
    """Optimizer steps in all; None where time alone ends the run."""
    train_data: InterleavedSource
    """This process's batches."""
    evaluation: Evaluation | None
    """Measures the model on held-out data."""
    world: World
    """The processes that train together."""
    dtype: torch.dtype
    """float32, or bfloat16 for autocast."""
    flops_per_token: float | None
    """Of a forward and a backward pass; None leaves the MFU out."""
    peak_flops_per_second: float
    """The rate of matrix products that the MFU is a share of."""
    directory: Path
    """Of the run."""
    write_files: Callable[[Path], None]
    """Writes what a checkpoint holds beside the state of the run."""
    reporter: Reporter
    """The voice on the console."""
    sinks: Sequence[Sink]
    """What takes rows of metrics."""
    stop: StopRequest
    """The wish to stop."""
    passes: GraphedPasses | None = None
    """Computes batches as graphs; None: operator by operator."""
    update: GraphedUpdate | None = None
    """Ends a step as a graph; there wherever `passes` is."""
    last_checkpoint: Path | None = None
    """The newest checkpoint of this run."""
    _stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _timed_tokens: int = 0
    _timed_steps: int = 0
    _unsettled: SentNumbers | None = None

    def run(self, batches: Iterable[tuple[int, int, Batch]]) -> str:
        """Train and return why it ended: "max_steps", "time_budget", "early_stopping", "SIGINT" or "SIGTERM".

        Args:
            batches: (epoch, index, batch) of this process, from the present step on.
        """
        schedule = Schedule(config=self.config, total_steps=self.total_steps)
        model, stream = self.world.wrap(self.model), iter(batches)
        began = time.monotonic() - self.state.elapsed_seconds
        self._evaluate_if_due()
        self._stopwatch.read()
        while (ended := self._agree_on_end(time.monotonic() - began)) is None:
            learning_rate = schedule.learning_rate(self.state.step, self.state.elapsed_seconds)
            taken = self._take(stream)
            self._step(model, taken, learning_rate)
            self._after_step(taken[-1], learning_rate)
        if ended not in EXIT_CODES and self.state.evaluated_step != self.state.step:
            self._evaluate()
            if self.evaluation is not None and self.state.evaluated_step != self.state.step:  # it was cut short
                (signal_number,) = self.world.maximum([float(self.stop.received or 0)])
                ended = signal.Signals(int(signal_number)).name if signal_number else ended
        self.state.elapsed_seconds = time.monotonic() - began
        if self.last_checkpoint is None or self.last_checkpoint.name != f"checkpoint-{self.state.step}":
            self._save()
        return ended

    def finish_sinks(self) -> None:
        """Let the sinks do what is due at an end in order."""
        self._tell_sinks(lambda sink: sink.finish())

    def _agree_on_end(self, elapsed_seconds: float) -> str | None:
        """Note the time used and return why the run ends now, the same in all processes; None: it goes on."""
        elapsed_seconds, signal_number = self.world.maximum([elapsed_seconds, float(self.stop.received or 0)])
        self.state.elapsed_seconds = elapsed_seconds
        budget = self.config.time_budget_minutes
        if self.total_steps is not None and self.state.step >= self.total_steps:
            return "max_steps"
        if signal_number:
            return signal.Signals(int(signal_number)).name
        if budget is not None and elapsed_seconds >= 60 * budget:
            return "time_budget"
        patience = self.config.early_stopping_patience
        if patience is not None and self.state.evaluations_since_best >= patience:
            return "early_stopping"
        return None

    def _take(self, stream: Iterator[tuple[int, int, Batch]]) -> list[NumberedBatch]:
        taken = (next(stream) for _ in range(self.config.gradient_accumulation_steps))
        return [NumberedBatch(epoch=epoch, index=index, batch=batch) for epoch, index, batch in taken]

    def _step(self, model: nn.Module, batches: Sequence[NumberedBatch], learning_rate: float) -> None:
        """Do one optimizer step and note its numbers.

        A GPU's are read when the next step has been sent there: the host never waits for a step while the GPU has
        nothing else to do. Whether they are finite is then decided on the GPU, and a bad step does nothing.
        """
        state = self.state
        device = next(self.model.parameters()).device
        seed_generators(step_seed(self.config.seed, state.step, self.world.rank), device)
        losses, metrics = accumulate_gradients(model, batches, dtype=self.dtype, world=self.world, passes=self.passes)
        if self.update is not None:
            self._settle()
            norm = self.update(losses, learning_rate)
            self._unsettled = SentNumbers.send(state.step + 1, losses, norm, metrics, batches)
        else:
            norm, limit = gradient_norm(self.optimizer), self.config.max_grad_norm
            self._settle()
            self._unsettled = SentNumbers.send(state.step + 1, losses, norm, metrics, batches)
            if device.type in WAITING_DEVICES:
                self._settle()
                factor = clip_factor(norm, limit)
            else:
                factor = clip_factor_on_device(norm, limit, losses)
            set_learning_rate(self.optimizer, learning_rate)
            self.optimizer.step(gradient_factor=factor)
            self.optimizer.zero_grad(set_to_none=True)
        state.step += 1

    def _settle(self) -> None:
        """Note the numbers of the step that was sent last, if that is not done yet."""
        sent, self._unsettled = self._unsettled, None
        if sent is None:
            return
        try:
            report = sent.report(self.world)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"step {sent.step}: {error}; nothing of this step was applied or saved; last good checkpoint: "
                f"{self.last_checkpoint or 'none'}; try a lower learning_rate or max_grad_norm, or look at that batch"
            ) from error
        state = self.state
        state.tokens_seen += report.tokens
        state.average.add(report.loss)
        state.window.add({"steps": 1, "loss": report.loss, "grad_norm": report.grad_norm} | report.metrics)
        self._timed_tokens += report.tokens
        self._timed_steps += 1
        if message := state.plateau.add(sent.step, state.average.value, self.config.plateau_steps):
            self.reporter.say(message)

    def _after_step(self, last: NumberedBatch, learning_rate: float) -> None:
        """Report, evaluate and save where they are due."""
        step, config = self.state.step, self.config
        self.reporter.advance(step)
        if step % config.logging_steps == 0 or step == self.total_steps:
            self._log(last, learning_rate)
        pause = time.monotonic()
        self._evaluate_if_due()
        if step % config.save_steps == 0 or step == self.state.best_step:
            self._save()
        self._stopwatch.leave_out(time.monotonic() - pause)

    def _log(self, last: NumberedBatch, learning_rate: float) -> None:
        """Write a row over the steps since the last one."""
        self._settle()
        seconds, window = self._stopwatch.read(), self.state.window
        tokens_per_second = self._timed_tokens / seconds
        row = {
            "step": self.state.step,
            "epoch": last.epoch + (last.index + 1) / self.train_data.num_batches(last.epoch),
            "loss": window.sums["loss"] / window.sums["steps"],
            "loss_average": self.state.average.value,
            "learning_rate": learning_rate,
            "grad_norm": window.sums["grad_norm"] / window.sums["steps"],
            **window.means(),
            "tokens": self.state.tokens_seen,
            "tokens_per_second": tokens_per_second,
            "elapsed_seconds": self.state.elapsed_seconds,
        }
        if self.flops_per_token is not None:
            row["mfu"] = self.flops_per_token * tokens_per_second / self.peak_flops_per_second
        self._write(row)
        self.reporter.train_row(row, self._seconds_left(seconds / self._timed_steps))
        self.state.window, self._timed_tokens, self._timed_steps = MetricSums(), 0, 0

    def _seconds_left(self, step_seconds: float) -> float:
        ends = [math.inf]
        if self.total_steps is not None:
            ends.append((self.total_steps - self.state.step) * step_seconds)
        if self.config.time_budget_minutes is not None:
            ends.append(60 * self.config.time_budget_minutes - self.state.elapsed_seconds)
        return max(0.0, min(ends))

    def _evaluate_if_due(self) -> None:
        """Evaluate at multiples of eval_steps, or at the end of an epoch.

        After resuming too, where a signal had cut the evaluation short.
        """
        step, every = self.state.step, self.config.eval_steps
        if not step or self.state.evaluated_step == step:
            return
        if self.config.eval_strategy == "epoch":
            due = self._whole_epochs(step) > self._whole_epochs(step - 1)
        else:
            due = every is not None and step % every == 0
        if due:
            self._evaluate()

    def _whole_epochs(self, steps: int) -> int:
        batches_per_step = self.config.gradient_accumulation_steps * self.world.size
        return self.train_data.whole_epochs(steps * batches_per_step)

    def _evaluate(self) -> None:
        if self.evaluation is None:
            return
        self._settle()
        try:
            self._note(self.evaluation(self.model, dtype=self.dtype, world=self.world, cancelled=self.stop.__bool__))
        except (NonFiniteError, RunDirectoryError):
            raise
        except ValueError:  # of the held-out data or the settings: what was trained until here is not lost for it
            if self.world.size == 1:  # others may not have met it, and would not come to the save
                self._save()
            raise

    def _note(self, found: dict[str, float] | None) -> None:
        """Take the figures of an evaluation; None: it was cancelled."""
        if found is not None:
            self._check_figures(found)
            self.state.evaluation, self.state.evaluated_step = found, self.state.step
            row = {"step": self.state.step, **found}
            self._write(row)
            self.reporter.evaluation_row(row)
            self._note_best(found)

    def _check_figures(self, found: Mapping[str, float]) -> None:
        if not math.isfinite(found.get("eval_loss", 0.0)):
            raise NonFiniteError(
                f"step {self.state.step}: the held-out loss is {found['eval_loss']}; the weights are not saved; last "
                f"checkpoint: {self.last_checkpoint or 'none'}; try a lower learning_rate or max_grad_norm"
            )
        metric = self.config.metric_for_best_model
        if metric is not None and self._name_of(metric) not in found:
            known = ", ".join(figure.removeprefix("eval_") for figure in found)
            raise ValueError(f"metric_for_best_model={metric!r} is not measured here; expected one of {known}")

    def _note_best(self, found: Mapping[str, float]) -> None:
        metric = self.config.metric_for_best_model
        if metric is not None:
            name = self._name_of(metric)
            self.state.note_best(name, found[name], greater_is_better=self.config.best_is_greater)

    @staticmethod
    def _name_of(metric: str) -> str:
        return f"eval_{metric.removeprefix('eval_')}"

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best evaluation; None without a metric to choose by, or before any evaluation."""
        return None if self.state.best_step is None else self.directory / f"checkpoint-{self.state.best_step}"

    def _write(self, row: Mapping[str, float]) -> None:
        self._tell_sinks(lambda sink: sink.write(row))

    def _tell_sinks(self, act: Callable[[Sink], None]) -> None:
        try:
            for sink in self.sinks:
                act(sink)
        except OSError as error:
            raise RunDirectoryError(
                f"step {self.state.step}: could not write to {self.directory}: {error}; last good checkpoint: "
                f"{self.last_checkpoint or 'none'}; free space, then go on with --resume-from-checkpoint last"
            ) from error

    def _save(self) -> None:
        """Write a checkpoint, then delete the oldest beyond save_total_limit; nothing where none are wanted."""
        self._settle()
        if self.config.save_strategy == "no":
            return
        if self.world.is_main:
            self._tell_sinks(lambda sink: sink.flush())
            newest = write_checkpoint(self.directory, self.state.step, self._write_checkpoint_files)
            rotate_checkpoints(self.directory, self.config.save_total_limit, newest, self.best_checkpoint)
        self.world.barrier()
        self.last_checkpoint = self.directory / f"checkpoint-{self.state.step}"

    def _write_checkpoint_files(self, directory: Path) -> None:
        self.write_files(directory)
        self.state.epoch_sizes = self.train_data.epoch_sizes
        self.state.save(directory)
