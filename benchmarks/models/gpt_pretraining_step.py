"""A causal-LM training step of GPT-2, dropout and optimizer included, beside Hugging Face."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import LinearShape, sgemm_of
from benchmarks.models.training_step import (
    TrainingStep,
    adamw,
    in_turn,
    loss_and_gradients,
    loss_of_fastssl,
    our_adamw,
    saved,
)
from benchmarks.own_process import OwnProcess
from benchmarks.peers import hugging_face, hugging_face_gpt, torch_compile
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch, timed
from fastssl.allocator import keep_freed_memory
from fastssl.data.batch import PackedBatch
from fastssl.models import gpt_files
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.models.presets import preset
from fastssl.models.pretrained import file_tensors
from fastssl.training.precision import autocast
from tests.oracle import assert_within_budget

EFFORT = Effort(seconds=60.0, min_rounds=3, max_rounds=8, warmup_rounds=1)
QUICK_EFFORT = Effort(seconds=4.0, min_rounds=3, max_rounds=20, warmup_rounds=1)
CHECKED_SHAPE = (2, 64)


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the step of GPT-2, 124 million parameters; in a quick run, of the smallest preset."""
    nano = {"gpt2-nano, 8x128": partial(comparison, "gpt2-nano", (8, 128), QUICK_EFFORT)}
    return nano if run.quick else {"gpt2, 4x512": partial(comparison, "gpt2", (4, 512), EFFORT, compiled=True)} | nano


def comparison(preset_name: str, shape: tuple[int, int], effort: Effort, *, compiled: bool = False) -> Comparison:
    """Compare the step of a preset with Hugging Face and PyTorch's fused AdamW.

    Every contender lives in a process of its own, with its own copy of the same weights, and takes the same batch.

    Args:
        preset_name: of the model.
        shape: (B, T) of the batch.
        effort: how long to measure.
        compiled: whether Hugging Face through torch.compile is a peer too.
    """
    torch.manual_seed(0)
    config = preset(preset_name)
    model, batch = GPTForCausalLM(config), random_batch(config, shape)
    with saved(model) as directory:
        torch.save(batch, directory / "batch.pt")
        builders = {OURS: step_of_fastssl, "HF eager, fused AdamW": step_of_hugging_face}
        if compiled:
            builders["HF compiled, fused AdamW"] = partial(step_of_hugging_face, through_compiler=True)
        contenders = {name: OwnProcess(partial(build, directory)) for name, build in builders.items()}

    def check() -> None:
        with saved(model) as directory:
            assert_same_step(directory, random_batch(config, CHECKED_SHAPE))

    return Comparison(
        contenders=contenders,
        check=check,
        work=useful_flops(config, batch),
        unit="FLOP",
        limit=sgemm_of(linear_shapes(config, batch)),
        effort=effort,
    )


def random_batch(config: GPTConfig, shape: tuple[int, int]) -> PackedBatch:
    """Return sequences of random tokens of one length, each to be predicted from those before it."""
    ids = torch.randint(config.vocab_size, shape)
    return PackedBatch.from_padded(ids, causal_labels=ids)


def step_of_fastssl(directory: Path) -> Launch:
    """Return our step from the weights and the batch of a directory, in a process that keeps its memory as ours do."""
    keep_freed_memory()
    model = GPTForCausalLM.from_pretrained(directory).train()
    batch = torch.load(directory / "batch.pt", weights_only=False)
    return timed(TrainingStep(model, loss_of_fastssl, in_turn([batch]), our_adamw(model)))


def step_of_hugging_face(directory: Path, *, through_compiler: bool = False) -> Launch:
    """Return Hugging Face's step on the same batch."""
    model = hugging_face_gpt.load(directory)
    inputs = hugging_face_gpt.inputs(torch.load(directory / "batch.pt", weights_only=False))
    loss = torch_compile.compiled(hugging_face.loss) if through_compiler else hugging_face.loss
    return timed(TrainingStep(model, loss, in_turn([inputs]), adamw(model, fused=True)))


def assert_same_step(
    directory: Path, batch: PackedBatch, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Hold our loss and gradients to the error budget of the tests, against Hugging Face in `dtype` and float64.

    Both models are read anew from `directory` and run without dropout; a `dtype` below float32 is that of autocast.

    Raises:
        AssertionError: naming the weight whose gradient differs.
    """
    batch = batch.to(device)
    inputs, precision = hugging_face_gpt.inputs(batch), autocast(torch.device(device), dtype)
    with precision:
        same = loss_and_gradients(hugging_face_gpt.load(directory).to(device), inputs)
    exact = loss_and_gradients(hugging_face_gpt.load(directory, torch.float64).to(device), inputs)
    model = GPTForCausalLM.from_pretrained(directory).to(device).eval()
    with precision:
        loss = loss_of_fastssl(model, batch)
    loss.backward()
    layout = gpt_files.file_layout(model)
    for parameter in model.parameters():
        parameter.data = parameter.grad  # a gradient is spelt, and lies in a file, as its weight does
    for name, value in {"loss": loss.detach(), **file_tensors(model, layout)}.items():
        assert_within_budget(name, value, same[name], exact[name], dtype)


def useful_flops(config: GPTConfig, batch: PackedBatch) -> float:
    """Return the FLOPs that a step needs: the products, and attention to what came before alone."""
    lengths = batch.cu_seqlens.diff().double()
    seen = float((lengths * (lengths + 1) / 2).sum())
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_width * seen
    return sum(shape.flops for shape in linear_shapes(config, batch)) + attention


def linear_shapes(config: GPTConfig, batch: PackedBatch) -> list[LinearShape]:
    """Return the linear maps of a step."""
    head = LinearShape(rows=batch.target_counts()["causal_lm"], inputs=config.hidden_size, outputs=config.vocab_size)
    return [*block_shapes(config, batch.num_tokens), head]


def block_shapes(config: GPTConfig, rows: int) -> list[LinearShape]:
    """Return the linear maps of all blocks, for so many tokens."""
    width, inner, layers = config.hidden_size, config.mlp_width, config.num_hidden_layers
    shapes = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
    return [LinearShape(rows=rows, inputs=n, outputs=m, count=layers) for n, m in shapes]
