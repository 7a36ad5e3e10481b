"""A whole masked-LM training step of BERT-base in bf16 over fp32 weights, beside Hugging Face through torch.compile.

Every contender lives in a process of its own. A launch is several steps in a row, so that the host may run ahead as it
does in training, and its seconds are those of one step.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks.comparison import LIMIT, OURS, Row
from benchmarks.gpu.backends import preferring
from benchmarks.gpu.limits import product_of
from benchmarks.gpu.problem import FALLBACK, GPU_BACKENDS, Run, reason_of
from benchmarks.models import batches
from benchmarks.models.pretraining_step import BATCHES_FILE, useful_flops
from benchmarks.models.training_step import (
    TrainingStep,
    adamw,
    assert_same_step,
    in_turn,
    loss_of_fastssl,
    our_adamw,
    saved,
)
from benchmarks.own_process import OwnProcess
from benchmarks.peers import hugging_face
from benchmarks.timing import Effort, Launch, interleave, spread
from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.models.presets import preset
from fastssl.training.precision import autocast

MASK_RATE, BATCHES, CHECKED_SEQUENCES = 0.3, 4, 2
MIXED = tuple(range(32, 513, 32)) * 4
DTYPE = torch.bfloat16
STEPS_A_LAUNCH = 4
EFFORT = Effort(seconds=20.0, min_rounds=3, max_rounds=12, warmup_rounds=2)
TINY = BertConfig(
    vocab_size=2000,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)


def cases(run: Run) -> Mapping[str, Callable[[str], Row]]:
    """Return full sequences of 512 tokens, and mixed lengths, which Hugging Face pads."""
    if run.rehearse:
        source = partial(batches.of_lengths, 1, (24, 9), vocab_size=TINY.vocab_size, mask_rate=MASK_RATE)
        return {"tiny, 9..24": partial(measure_step, TINY, source, run)}
    config = preset("bert-base")
    source = partial(batches.of_lengths, BATCHES, vocab_size=config.vocab_size, mask_rate=MASK_RATE)
    return {
        "bert-base, 32 x 512": partial(measure_step, config, partial(source, (512,) * 32), run),
        "bert-base, packed 32..512": partial(measure_step, config, partial(source, MIXED), run),
    }


def measure_step(config: BertConfig, source: Callable[[], list[PackedBatch]], run: Run, case: str) -> Row:
    """Return the row of a case.

    Raises:
        RuntimeError: when none of ours can take the step.
    """
    packed = source()
    torch.manual_seed(0)
    steps = 1 if run.rehearse else STEPS_A_LAUNCH
    builders = {f"own {name}": partial(step_of_fastssl, name) for name in (*GPU_BACKENDS, FALLBACK)}
    builders["HF eager"] = partial(step_of_hugging_face, False)
    if not run.rehearse:
        builders["HF compiled"] = partial(step_of_hugging_face, True)
    launches: dict[str, Launch] = {}
    refused: dict[str, str] = {}
    with saved(BertForMaskedLM(config)) as directory:
        torch.save(packed, directory / BATCHES_FILE)
        for name, builder in builders.items():
            refused[name] = run.excluded.get((case, name), "")
            if refused[name]:
                continue
            run.note(case, name)
            build = partial(builder, directory, run.device.type, steps)
            try:
                launches[name] = build() if run.rehearse else OwnProcess(build)
                launches[name]()
            except Exception as error:
                # One contender's failure must not cost the others their turn.
                launches.pop(name, None)
                refused[name] = reason_of(error)
    own = [name for name in launches if name.startswith("own ")]
    reasons = [f"{name} left out: {reason}" for name, reason in refused.items() if reason]
    if not own:
        raise RuntimeError("; ".join(reasons))
    limit = product_of(run.device, DTYPE, 64 if run.rehearse else 8192)
    seconds = interleave({**launches, LIMIT: limit.launch(run.clock)}, run.effort if run.rehearse else EFFORT)
    best = min(own, key=lambda name: spread(seconds[name]).median)
    tokens = sum(batch.num_tokens for batch in packed) / len(packed)
    rate = tokens / spread(seconds[best]).median
    return Row(
        suite="training_step",
        case=case,
        seconds={OURS: seconds.pop(best), **seconds},
        work=sum(useful_flops(config, batch) for batch in packed) / len(packed),
        unit="FLOP",
        limit_work=limit.work,
        limit_name=limit.name,
        remark="; ".join([f"fastssl is {best.removeprefix('own ')}, {rate:,.0f} tokens/s", *reasons]),
    )


def step_of_fastssl(backend: str, directory: Path, device: str, steps: int) -> Launch:
    """Return our step with one of our backends, after its loss and gradients were held to Hugging Face's."""
    target = torch.device(device)
    packed = torch.load(directory / BATCHES_FILE, weights_only=False)
    with preferring(backend):
        assert_same_step(directory, batches.first_sequences(packed[0], CHECKED_SEQUENCES), target, DTYPE)
    model = BertForMaskedLM.from_pretrained(directory).to(target).train()

    def loss(model, batch):
        with preferring(backend), autocast(target, DTYPE):
            return loss_of_fastssl(model, batch)

    on_device = [batch.to(target) for batch in packed]
    return _in_a_row(TrainingStep(model, loss, in_turn(on_device), our_adamw(model), max_grad_norm=None), steps, target)


def step_of_hugging_face(through_compiler: bool, directory: Path, device: str, steps: int) -> Launch:
    """Return Hugging Face's step on the same batches, padded; its attention is SDPA."""
    target = torch.device(device)
    model = hugging_face.load(directory).to(target)
    packed = torch.load(directory / BATCHES_FILE, weights_only=False)
    padded = [hugging_face.inputs(batch.to(target)) for batch in packed]
    compute = torch.compile(hugging_face.loss) if through_compiler else hugging_face.loss

    def loss(model, batch):
        with autocast(target, DTYPE):
            return compute(model, batch)

    return _in_a_row(TrainingStep(model, loss, in_turn(padded), adamw(model, fused=True)), steps, target)


def _in_a_row(step: TrainingStep, steps: int, device: torch.device) -> Launch:
    """Return a launch of several steps that ends when the device is done, and tells the seconds of one."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def launch() -> float:
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        return (time.perf_counter() - start) / steps

    return launch
