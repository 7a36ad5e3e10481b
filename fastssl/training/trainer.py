"""The door of the room: `Trainer` makes ready what the loop needs, from a checkpoint where one is asked for."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from fastssl.allocator import keep_freed_memory
from fastssl.data.loader import Loader
from fastssl.device import choose_device
from fastssl.ops.machine import measured_matmul_flops
from fastssl.ops.tile_search import expect_search_to_work, search_tiles
from fastssl.training.checkpoint import checkpoint_to_resume, list_checkpoints, set_aside_later
from fastssl.training.config import TrainingConfig
from fastssl.training.cost import ModelCost, RunCost, estimate_run_cost
from fastssl.training.distributed import World
from fastssl.training.evaluation import Evaluation, evaluate
from fastssl.training.graphed_update import GraphedUpdate
from fastssl.training.graphs import GraphedPasses, expect_graphs_to_work
from fastssl.training.interrupt import EXIT_CODES, StopRequest
from fastssl.training.log import Sink, default_sinks
from fastssl.training.loop import TrainingLoop
from fastssl.training.optimizer import make_optimizer
from fastssl.training.precision import resolve_precision
from fastssl.training.prefetch import on_device
from fastssl.training.progress import Reporter
from fastssl.training.run_directory import (
    check_identity,
    claim_directory,
    run_identity,
    tell_of_threads,
    write_run_file,
)
from fastssl.training.source import BatchSource, InterleavedSource, TrainableModel, steps_in_epochs
from fastssl.training.state import TrainingState, load_optimizer, load_weights, save_optimizer
from fastssl.training.step import NonFiniteError, NumberedBatch, accumulate_gradients

_TIMED_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended."""

    step: int
    """Optimizer steps done in all."""
    stopped_by: str
    """"max_steps" (also when the epochs are done), "time_budget", "early_stopping", "SIGINT" or "SIGTERM"."""
    checkpoint: Path | None
    """The last checkpoint; None where the settings want none."""
    best_checkpoint: Path | None = None
    """The one with the best evaluation, where the settings name a metric for it."""
    evaluation: Mapping[str, float]
    """The last held-out metrics; empty where there are none yet."""

    @property
    def exit_code(self) -> int:
        """The process's exit code by custom: 0, 130 after SIGINT, 143 after SIGTERM."""
        return EXIT_CODES.get(self.stopped_by, 0)


class Trainer:
    """Trains a model on batches that are a pure function of (epoch, index).

    A run that is stopped at any moment and resumed with as many threads ends in the same weights, to the bit, as one
    that was not stopped.

    Args:
        model: gives a loss for a batch (see `TrainableModel`), on the device where it is to be trained.
        config: the settings.
        train_data: the batches to train on.
        eval_data: held-out batches.
        evaluation: measures the model instead of the plain means over `eval_data`.
        cost: the model's numbers; with them the model FLOPs utilisation (MFU) is reported.
        data_identity: what tells this data from other data, as JSON values (fingerprints, objective, batch size).
        lr_scales: parameter's name -> factor of its learning rate; 1 where not named.
        write_companions: writes further files, such as a tokenizer, into each checkpoint directory.
        console: where to speak; None for standard error.

    Raises:
        ValueError: when the data has no batch, or the model cannot do what the settings ask.
    """

    def __init__(
        self,
        model: TrainableModel,
        config: TrainingConfig,
        train_data: BatchSource,
        *,
        eval_data: BatchSource | None = None,
        evaluation: Evaluation | None = None,
        cost: ModelCost | None = None,
        data_identity: Mapping[str, object] | None = None,
        lr_scales: Mapping[str, float] | None = None,
        write_companions: Callable[[Path], None] | None = None,
        console: Console | None = None,
    ) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        if config.gradient_checkpointing:
            _enable_gradient_checkpointing(model)
        self._model, self._config, self._cost = model, config, cost
        self._device = _move(model, config.device)
        self._dtype = resolve_precision(config.precision, self._device)
        self._world = World.join()
        if config.cuda_graphs:
            expect_graphs_to_work(self._device, self._world.size)
        if config.search_tiles:
            expect_search_to_work(self._device)
        self._train_data, self._lr_scales = train_data, lr_scales
        self._evaluation = evaluation or (eval_data and partial(evaluate, source=eval_data))
        if self._evaluation is None and config.metric_for_best_model is not None:
            raise ValueError(
                f"metric_for_best_model={config.metric_for_best_model!r}, but nothing is held out to measure it on"
            )
        self._directory = Path(config.output_dir)
        self._identity = run_identity(config, model.config, data_identity or {}, self._world.size)
        self._write_companions = write_companions
        self._console = console or Console(stderr=True, quiet=not self._world.is_main)
        self.total_steps = _total_steps(config, train_data, self._world)
        """Optimizer steps in all; None where time alone ends the run."""

    def estimate_cost(self) -> RunCost:
        """Time one step's forward and backward passes, and return the cost of the whole run at that speed.

        The weights are left as they were.

        Raises:
            ValueError: without the `cost` argument of the constructor.
        """
        if self._cost is None:
            raise ValueError("cost is None; give the Trainer a ModelCost to estimate from")
        with Loader(InterleavedSource(self._train_data, self._world.rank, self._world.size)) as stream:
            taken = islice(stream, self._config.gradient_accumulation_steps)
            batches = [NumberedBatch(epoch=epoch, index=index, batch=batch) for epoch, index, batch in taken]
        tokens = self._world.size * sum(numbered.batch.num_tokens for numbered in batches)
        budget = self._config.time_budget_minutes
        return estimate_run_cost(
            self._cost,
            tokens_per_step=tokens,
            flops_per_second=self._cost.flops_per_token * tokens / self._seconds_of_step(batches),
            steps=self.total_steps,
            hours=None if budget is None else budget / 60,
        )

    def train(self) -> TrainingResult:
        """Train to the end of the run, or until SIGINT or SIGTERM, and save.

        The process keeps freed memory from then on (see `keep_freed_memory`).

        Raises:
            RunDirectoryError: when output_dir is in use or holds another run.
            CheckpointError: when there is no good checkpoint to resume from, or one could not be written.
            NonFiniteError: when a loss or gradient is NaN or infinite; nothing of that step is applied or saved. Also
                when a held-out loss is; then its weights are not saved.
        """
        keep_freed_memory()
        with ExitStack() as stack:
            if self._world.is_main:
                stack.callback(claim_directory(self._directory, self._say).release)
            checkpoint = self._world.broadcast(self._find_checkpoint() if self._world.is_main else None)
            loop = self._make_loop(stack, checkpoint)
            if self._world.is_main and self._goes_back_to(checkpoint):
                set_aside_later(checkpoint, self._say)
            first_batch = loop.state.step * self._config.gradient_accumulation_steps
            if self._config.search_tiles:
                stack.enter_context(search_tiles())
            batches = Loader(loop.train_data, start_batch=first_batch)
            stack.callback(batches.close)
            try:
                ended = loop.run(on_device(batches, self._device))
            except NonFiniteError:
                loop.finish_sinks()
                raise
            loop.finish_sinks()
            saved = f"saved {loop.last_checkpoint}" if loop.last_checkpoint else "no checkpoint was wanted"
            why = "done" if ended == "max_steps" else f"ended by {ended}"
            loop.reporter.say(f"{why} at step {loop.state.step}; {saved}")
        return TrainingResult(
            step=loop.state.step,
            stopped_by=ended,
            checkpoint=loop.last_checkpoint,
            best_checkpoint=loop.best_checkpoint,
            evaluation=loop.state.evaluation,
        )

    def _say(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _find_checkpoint(self) -> Path | None:
        """Return the checkpoint to go on from, if any, and note in the directory which run it holds."""
        request, found = self._config.resume_from_checkpoint, None
        if list_checkpoints(self._directory):
            check_identity(self._identity, self._directory, resuming=request is not None, say=self._say)
        if request is not None:
            found = checkpoint_to_resume(request, self._directory, self._say)
            if found is None:
                self._say(f"no checkpoint in {self._directory} yet: starting at step 0")
            elif found.parent.resolve() != self._directory.resolve():
                check_identity(self._identity, found, resuming=True, say=self._say)
        write_run_file(self._directory, self._config, self._identity)
        return found

    def _goes_back_to(self, checkpoint: Path | None) -> bool:
        """Return whether somebody has chosen one of this run's own checkpoints to go on from."""
        if checkpoint is None or self._config.resume_from_checkpoint == "last":
            return False
        return checkpoint.parent.resolve() == self._directory.resolve()

    def _make_loop(self, stack: ExitStack, checkpoint: Path | None) -> TrainingLoop:
        """Return the loop with everything in the state of the checkpoint; `stack` closes what it opens."""
        model, state = self._model.train(), TrainingState()
        optimizer = make_optimizer(model, self._config, self._lr_scales)
        if checkpoint is not None:
            load_weights(model, checkpoint)
            load_optimizer(optimizer, model, checkpoint)
            state = TrainingState.load(checkpoint)
            tell_of_threads(checkpoint, self._say)
            self._say(f"resuming from {checkpoint} at step {state.step}")
        sinks = default_sinks(self._directory, state.step) if self._world.is_main else ()
        for sink in sinks:
            stack.callback(_close, sink)
        reporter = Reporter(self.total_steps, state.step, self._console)
        stack.callback(reporter.close)
        graphed = self._config.cuda_graphs
        return TrainingLoop(
            config=self._config,
            model=model,
            optimizer=optimizer,
            state=state,
            total_steps=self.total_steps,
            train_data=InterleavedSource(self._train_data, self._world.rank, self._world.size, state.epoch_sizes),
            evaluation=self._evaluation,
            world=self._world,
            dtype=self._dtype,
            flops_per_token=self._cost and self._cost.flops_per_token,
            peak_flops_per_second=self._peak_flops_per_second(),
            directory=self._directory,
            write_files=lambda directory: self._write_files(directory, optimizer),
            reporter=reporter,
            sinks=sinks,
            stop=stack.enter_context(StopRequest()),
            passes=GraphedPasses(model, self._dtype) if graphed else None,
            update=GraphedUpdate(optimizer, self._config.max_grad_norm) if graphed else None,
            last_checkpoint=checkpoint,
        )

    def _peak_flops_per_second(self) -> float:
        return self._world.size * measured_matmul_flops(self._dtype, self._device) if self._cost else float("nan")

    def _write_files(self, directory: Path, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint's files, but for the state of the loop."""
        self._model.save_pretrained(directory)
        if self._write_companions is not None:
            self._write_companions(directory)
        save_optimizer(optimizer, self._model, directory)
        write_run_file(directory, self._config, self._identity)

    def _seconds_of_step(self, batches: list[NumberedBatch]) -> float:
        """Return the best time of a few repeats of a step's forward and backward passes."""
        self._model.train()
        seconds = []
        for _ in range(_TIMED_REPEATS):
            start = time.perf_counter()
            accumulate_gradients(self._model, batches, dtype=self._dtype, world=World())
            seconds.append(time.perf_counter() - start)
            self._model.zero_grad(set_to_none=True)
        return min(seconds)


def _move(model: nn.Module, name: str) -> torch.device:
    """Bring the model to the device of a run and return that; "auto" leaves it where it is, unless on the CPU."""
    present = next(model.parameters()).device
    device = present if name == "auto" and present.type != "cpu" else choose_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for all that asks for "the" GPU, such as the exchange of gradients
    model.to(device)
    return device


def _close(sink: Sink) -> None:
    # Rows were brought to disk one by one; a full disk found here would only hide the error that came first.
    with suppress(OSError):
        sink.close()


def _total_steps(config: TrainingConfig, train_data: BatchSource, world: World) -> int | None:
    if train_data.num_batches(0) == 0:
        raise ValueError("the training data has no batch in epoch 0; give it more text, or make batches smaller")
    if config.max_steps is not None or config.ends_by_time_alone:
        return config.max_steps
    return steps_in_epochs(train_data, config.num_train_epochs, config.gradient_accumulation_steps * world.size)


def _enable_gradient_checkpointing(model: nn.Module) -> None:
    if not hasattr(model, "gradient_checkpointing_enable"):
        raise ValueError(f"gradient_checkpointing=True, but {type(model).__name__} cannot recompute its activations")
    model.gradient_checkpointing_enable()
