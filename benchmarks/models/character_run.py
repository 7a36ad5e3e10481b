"""A small GPT learns the characters of Shakespeare's plays, beside nanoGPT's recipe for a CPU, to the same loss.

Both draw their own weights by the same rule, see the same windows in the same order, and follow the same schedule; ours
is the library's own trainer, all of its loop included. Their losses must end near one another.
"""

import csv
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from benchmarks import real_data
from benchmarks.comparison import OURS, Comparison
from benchmarks.own_process import OwnProcess
from benchmarks.peers import character_gpt
from benchmarks.step_by_step import StepByStep
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch
from fastssl.data.batch import PackedBatch
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.training import Trainer, TrainingConfig

PEER = "nanoGPT's recipe"
TEXT = "corpus/tinyshakespeare.txt"
WIDTH, LAYERS, HEADS, CONTEXT, BATCH_SIZE = 128, 4, 4, 64, 12
STEPS, STEPS_A_LAUNCH, QUICK_STEPS, QUICK_STEPS_A_LAUNCH = 2000, 100, 40, 10
LEARNING_RATE, LEAST_LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 1e-3, 1e-4, 100, 0.1
BETAS, MAX_GRAD_NORM = (0.9, 0.99), 1.0
HELD_OUT_BATCHES = 40
SAME_LOSS = 0.04
"""How far two losses may end apart: runs of one recipe that differ in their weights alone do so."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the whole run, or its first steps."""
    name = f"{LAYERS} x {WIDTH}, {BATCH_SIZE} x {CONTEXT} characters"
    sizes = (QUICK_STEPS, QUICK_STEPS_A_LAUNCH) if run.quick else (STEPS, STEPS_A_LAUNCH)
    return {f"{name}, {sizes[0]:,} steps": partial(comparison, *sizes, run.output_dir)}


def comparison(steps: int, steps_a_launch: int, output_dir: Path) -> Comparison:
    """Train both for some steps, a launch at a time, each in a process of its own.

    A launch's time leaves out the held-out loss that ends it. The ratios leave out the first launch; the remark and the
    curves have it.

    Args:
        steps: optimizer steps.
        steps_a_launch: a divisor of `steps`.
        output_dir: where the curves go.
    """
    text, curves = real_data.file(TEXT), output_dir / "character_run"
    curves.mkdir(parents=True, exist_ok=True)
    runs = {OURS: our_run, PEER: their_run}
    if torch.cpu.get_capabilities().get("avx512_bf16"):
        runs["fastssl bf16"] = partial(our_run, precision="bf16")
    files = {name: curves / f"{name.replace(' ', '_')}.csv" for name in runs}
    launches = steps // steps_a_launch
    return Comparison(
        contenders={
            name: OwnProcess(partial(build, text, steps, steps_a_launch, files[name])) for name, build in runs.items()
        },
        check=partial(assert_same_model, text),
        work=float(BATCH_SIZE * CONTEXT * steps_a_launch),
        unit="token",
        effort=Effort(seconds=0.0, min_rounds=launches - 1, max_rounds=launches - 1, warmup_rounds=1),
        finish=partial(finish, files, whole=steps == STEPS),
    )


@dataclass(frozen=True)
class Windows:
    """Batches of windows at random places of a text, as nanoGPT draws them; a batch is a function of its index."""

    characters: np.ndarray
    """(C) int64."""
    seed: int
    """Of the places."""

    def num_batches(self, epoch: int) -> int:
        """Return the batches of the one epoch that there is."""
        return STEPS + 1

    def inputs_and_targets(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return characters and those that follow them, (B, T) each."""
        places = np.random.default_rng((self.seed, index)).integers(len(self.characters) - CONTEXT, size=BATCH_SIZE)
        windows = torch.from_numpy(self.characters[places[:, None] + np.arange(CONTEXT + 1)])
        return windows[:, :-1], windows[:, 1:]

    def batch(self, epoch: int, index: int) -> PackedBatch:
        """Return a batch as our models take it."""
        inputs, targets = (part.flatten() for part in self.inputs_and_targets(index))
        return PackedBatch(
            input_ids=inputs,
            cu_seqlens=torch.arange(0, len(inputs) + 1, CONTEXT, dtype=torch.int32),
            max_seqlen=CONTEXT,
            position_ids=torch.arange(CONTEXT).repeat(BATCH_SIZE),
            token_type_ids=torch.zeros_like(inputs),
            next_tokens=targets,
        )


@cache
def windows_of(path: Path) -> tuple[Windows, Windows, int]:
    """Return windows of the first nine tenths of a text, others of the last, and the number of its characters."""
    alphabet, characters = np.unique(list(path.read_text(encoding="utf-8")), return_inverse=True)
    border = len(characters) * 9 // 10
    return Windows(characters[:border], seed=0), Windows(characters[border:], seed=1), len(alphabet)


def our_model(vocab_size: int) -> GPTForCausalLM:
    """Return our model with fresh weights."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        hidden_act="gelu",
        max_position_embeddings=CONTEXT,
        bias=False,
        embedding_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPTForCausalLM(config)


def their_model(vocab_size: int) -> character_gpt.CharacterGPT:
    """Return the recipe's model with fresh weights."""
    torch.manual_seed(0)
    return character_gpt.CharacterGPT(vocab_size, WIDTH, LAYERS, HEADS, CONTEXT)


def assert_same_model(text: Path) -> None:
    """Raise AssertionError unless both models compute the same loss where they have the same weights."""
    _, held_out, vocab_size = windows_of(text)
    ours, theirs = our_model(vocab_size), their_model(vocab_size)
    weights = {
        name.removeprefix("gpt.").replace(".attention.", ".").replace(".mlp.", "."): weight
        for name, weight in ours.state_dict().items()
    }
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()})
    torch.testing.assert_close(ours(held_out.batch(0, 0)).loss, theirs(*held_out.inputs_and_targets(0)))


def our_run(text: Path, steps: int, steps_a_launch: int, curve: Path, precision: str = "fp32") -> Launch:
    """Return our trainer, some steps a launch."""
    train_data, held_out, vocab_size = windows_of(text)
    model = our_model(vocab_size)
    batches = [held_out.batch(0, index) for index in range(HELD_OUT_BATCHES)]
    record = Record(curve, steps_a_launch, lambda: held_out_loss(model, lambda number: model(batches[number]).loss))

    def train(pause: Callable[[], None]) -> None:
        def evaluation(_: nn.Module, **__: object) -> None:
            record.note()
            pause()

        with tempfile.TemporaryDirectory(prefix="fastssl-benchmark-") as folder:
            config = TrainingConfig(
                output_dir=folder,
                max_steps=steps + 1,
                learning_rate=LEARNING_RATE,
                min_learning_rate=LEAST_LEARNING_RATE,
                lr_scheduler_type="cosine",
                warmup_steps=WARMUP_STEPS,
                weight_decay=WEIGHT_DECAY,
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                adam_epsilon=1e-8,
                max_grad_norm=MAX_GRAD_NORM,
                precision=precision,
                eval_steps=steps_a_launch,
                logging_steps=steps,
                save_strategy="no",
            )
            Trainer(model, config, train_data, evaluation=evaluation, console=Console(quiet=True)).train()

    return record.timed(train)


def their_run(text: Path, steps: int, steps_a_launch: int, curve: Path) -> Launch:
    """Return the recipe's own loop, some steps a launch."""
    train_data, held_out, vocab_size = windows_of(text)
    model = their_model(vocab_size)
    batches = [held_out.inputs_and_targets(index) for index in range(HELD_OUT_BATCHES)]
    record = Record(curve, steps_a_launch, lambda: held_out_loss(model, lambda number: model(*batches[number])))

    def train(pause: Callable[[], None]) -> None:
        def after(step: int) -> None:
            if step % steps_a_launch == 0:
                record.note()
                pause()

        character_gpt.train(
            model,
            train_data.inputs_and_targets,
            after,
            steps=steps,
            learning_rate=LEARNING_RATE,
            least_learning_rate=LEAST_LEARNING_RATE,
            warmup_steps=WARMUP_STEPS,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
        )

    return record.timed(train)


class Record:
    """The held-out losses of a run in a file, and the time of its launches without them.

    Args:
        file: of lines "step,loss".
        steps_a_launch: steps between two notes.
        measure: gives the loss.
    """

    def __init__(self, file: Path, steps_a_launch: int, measure: Callable[[], float]) -> None:
        self._file, self._steps_a_launch, self._measure = file, steps_a_launch, measure
        self._step, self._left_out = 0, 0.0
        file.write_text("step,held_out_loss,seconds\n")

    def note(self) -> None:
        """Measure the loss, and note the time that this takes."""
        start = time.perf_counter()
        self._loss = self._measure()
        self._left_out = time.perf_counter() - start

    def timed(self, train: Callable[[Callable[[], None]], None]) -> Launch:
        """Return a launch that lets a run go on to its next note."""
        state: dict[str, StepByStep] = {}

        def launch() -> float:
            start = time.perf_counter()
            if "run" in state:
                state["run"]()
            else:
                state["run"] = StepByStep(train)
            seconds = time.perf_counter() - start - self._left_out
            self._step += self._steps_a_launch
            with self._file.open("a") as file:
                file.write(f"{self._step},{self._loss:.5f},{seconds:.4f}\n")
            return seconds

        return launch


def held_out_loss(model: nn.Module, loss_of_batch: Callable[[int], torch.Tensor]) -> float:
    """Return the mean loss of the held-out batches, which are of one size."""
    model.eval()
    with torch.no_grad():
        loss = sum(loss_of_batch(number).item() for number in range(HELD_OUT_BATCHES)) / HELD_OUT_BATCHES
    model.train()
    return loss


def finish(files: Mapping[str, Path], *, whole: bool) -> str:
    """Hold the last losses of whole runs to one another, and return the runs in a sentence."""
    curves = {name: list(csv.DictReader(file.open())) for name, file in files.items()}
    losses = {name: float(rows[-1]["held_out_loss"]) for name, rows in curves.items()}
    seconds = {name: sum(float(row["seconds"]) for row in rows) for name, rows in curves.items()}
    apart = max(abs(loss - losses[PEER]) for loss in losses.values())
    assert not whole or apart <= SAME_LOSS, f"held-out losses end {apart:.3f} apart: {losses}"
    return f"{curves[OURS][-1]['step']} steps: " + "; ".join(
        f"{name} ends at a held-out loss of {losses[name]:.3f} after {seconds[name]:.1f} s" for name in files
    )
