"""A whole training step of BERT-base and of GPT-2 in bf16 over fp32 weights, beside Hugging Face and torch.compile.

Every contender lives in a process of its own. A launch is several steps in a row, so that the host may run ahead as it
does in training, and its seconds are those of one step.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.comparison import LIMIT, OURS, Row
from benchmarks.gpu.backends import preferring
from benchmarks.gpu.limits import product_of
from benchmarks.gpu.problem import FALLBACK, Run, reason_of
from benchmarks.gpu.trial import why_not
from benchmarks.models import batches, gpt_pretraining_step, pretraining_step
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
from benchmarks.peers import hugging_face, hugging_face_gpt
from benchmarks.timing import Effort, Launch, interleave, spread
from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.models.presets import preset
from fastssl.training.graphed_update import GraphedUpdate
from fastssl.training.graphs import GraphedPasses
from fastssl.training.precision import autocast

MASK_RATE, BATCHES, CHECKED_SEQUENCES = 0.3, 4, 2
CHECKED_GPT_SHAPE = (2, 64)
MIXED = tuple(range(32, 513, 32)) * 4
DTYPE = torch.bfloat16
LEARNING_RATE = 1e-4
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
TINY_GPT = GPTConfig(
    vocab_size=2000,
    bos_token_id=0,
    eos_token_id=0,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
)
BATCHES_FILE, CHECKED_FILE = "batches.pt", "checked.pt"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One model's training by us and by Hugging Face."""

    model: type[nn.Module]
    """Ours."""
    config: BertConfig | GPTConfig
    """Its sizes."""
    batches: Callable[[], list[PackedBatch]]
    """Makes what it is trained on, in turn."""
    checked: Callable[[PackedBatch], PackedBatch]
    """The first batch -> a small one, on which both must take the same step."""
    assert_same_step: Callable[[Path, PackedBatch, torch.device, torch.dtype], None]
    """Raises where they do not."""
    load_peer: Callable[[Path], nn.Module]
    """Hugging Face's model of a directory."""
    peer_inputs: Callable[[PackedBatch], dict[str, Tensor]]
    """A batch as it takes it."""
    useful_flops: Callable[[BertConfig | GPTConfig, PackedBatch], float]
    """What a step on real tokens needs."""


def masked_lm(config: BertConfig, lengths: tuple[int, ...], num_batches: int) -> Task:
    """Return BERT's training on packed sequences; Hugging Face pads them."""
    return Task(
        model=BertForMaskedLM,
        config=config,
        batches=partial(batches.of_lengths, num_batches, lengths, vocab_size=config.vocab_size, mask_rate=MASK_RATE),
        checked=partial(batches.first_sequences, count=CHECKED_SEQUENCES),
        assert_same_step=assert_same_step,
        load_peer=hugging_face.load,
        peer_inputs=hugging_face.inputs,
        useful_flops=pretraining_step.useful_flops,
    )


def causal_lm(config: GPTConfig, shape: tuple[int, int], num_batches: int) -> Task:
    """Return GPT-2's training on sequences of one length."""
    return Task(
        model=GPTForCausalLM,
        config=config,
        batches=lambda: [gpt_pretraining_step.random_batch(config, shape) for _ in range(num_batches)],
        checked=lambda _: gpt_pretraining_step.random_batch(config, CHECKED_GPT_SHAPE),
        assert_same_step=gpt_pretraining_step.assert_same_step,
        load_peer=hugging_face_gpt.load,
        peer_inputs=hugging_face_gpt.inputs,
        useful_flops=gpt_pretraining_step.useful_flops,
    )


def cases(run: Run) -> Mapping[str, Callable[[str], Row]]:
    """Return BERT-base on full and on mixed sequences, which Hugging Face pads, GPT-2, and a small model."""
    if run.rehearse:
        tasks = {
            "tiny, 9..24": masked_lm(TINY, (24, 9), 1),
            "tiny GPT, 2 x 24": causal_lm(TINY_GPT, (2, 24), 1),
        }
    else:
        bert = preset("bert-base")
        tasks = {
            "bert-base, 32 x 512": masked_lm(bert, (512,) * 32, BATCHES),
            "gpt2, 16 x 1024": causal_lm(preset("gpt2"), (16, 1024), BATCHES),
            "bert-base, packed 32..512": masked_lm(bert, MIXED, BATCHES),
            "bert-mini, 16 x 128": masked_lm(preset("bert-mini"), (128,) * 16, BATCHES),
        }
    return {name: partial(measure_step, task, run) for name, task in tasks.items()}


def measure_step(task: Task, run: Run, case: str) -> Row:
    """Return the row of a case.

    Raises:
        RuntimeError: when none of ours can take the step.
    """
    torch.manual_seed(0)
    packed = task.batches()
    steps = 1 if run.rehearse else STEPS_A_LAUNCH
    ours = [FALLBACK] if run.rehearse or why_not("hopper") else [FALLBACK, "hopper"]
    builders = {f"own {name}": partial(step_of_fastssl, task.model, task.assert_same_step, name) for name in ours}
    if not run.rehearse:
        builders["own graphs"] = partial(step_of_graphs, task.model)
    builders["HF eager"] = partial(step_of_hugging_face, task.load_peer, task.peer_inputs, False)
    if not run.rehearse:
        builders["HF compiled"] = partial(step_of_hugging_face, task.load_peer, task.peer_inputs, True)
    launches: dict[str, Launch] = {}
    refused: dict[str, str] = {}
    with saved(task.model(task.config)) as directory:
        torch.save(packed, directory / BATCHES_FILE)
        torch.save(task.checked(packed[0]), directory / CHECKED_FILE)
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
        work=sum(task.useful_flops(task.config, batch) for batch in packed) / len(packed),
        unit="FLOP",
        limit_work=limit.work,
        limit_name=limit.name,
        remark="; ".join([f"fastssl is {best.removeprefix('own ')}, {rate:,.0f} tokens/s", *reasons]),
    )


def step_of_fastssl(
    model_class: type[nn.Module],
    check: Callable[[Path, PackedBatch, torch.device, torch.dtype], None],
    backend: str,
    directory: Path,
    device: str,
    steps: int,
) -> Launch:
    """Return our step by one of our backends, after its loss and gradients were held to Hugging Face's."""
    target = torch.device(device)
    with preferring(backend):
        check(directory, torch.load(directory / CHECKED_FILE, weights_only=False), target, DTYPE)
    model = model_class.from_pretrained(directory).to(target).train()

    def loss(model, batch):
        with preferring(backend), autocast(target, DTYPE):
            return loss_of_fastssl(model, batch)

    on_device = [batch.to(target) for batch in torch.load(directory / BATCHES_FILE, weights_only=False)]
    return _in_a_row(TrainingStep(model, loss, in_turn(on_device), our_adamw(model), max_grad_norm=None), steps, target)


def step_of_graphs(model_class: type[nn.Module], directory: Path, device: str, steps: int) -> Launch:
    """Return our step as two CUDA graphs: the passes, and the update with AdamW."""
    target = torch.device(device)
    model = model_class.from_pretrained(directory).to(target).train()
    passes, update = GraphedPasses(model, DTYPE), GraphedUpdate(our_adamw(model), max_grad_norm=0.0)
    on_device = [batch.to(target) for batch in torch.load(directory / BATCHES_FILE, weights_only=False)]
    batch_of, numbers = in_turn(on_device), count()

    def step() -> None:
        batch = batch_of(next(numbers))
        loss, _ = passes(batch, batch.target_counts())
        update([loss], LEARNING_RATE)

    return _in_a_row(step, steps, target)


def step_of_hugging_face(
    load: Callable[[Path], nn.Module],
    inputs: Callable[[PackedBatch], dict[str, Tensor]],
    through_compiler: bool,
    directory: Path,
    device: str,
    steps: int,
) -> Launch:
    """Return Hugging Face's step on the same batches; its attention is SDPA."""
    target = torch.device(device)
    model = load(directory).to(target)
    padded = [inputs(batch.to(target)) for batch in torch.load(directory / BATCHES_FILE, weights_only=False)]
    compute = torch.compile(hugging_face.loss) if through_compiler else hugging_face.loss

    def loss(model, batch):
        with autocast(target, DTYPE):
            return compute(model, batch)

    return _in_a_row(TrainingStep(model, loss, in_turn(padded), adamw(model, fused=True)), steps, target)


def _in_a_row(step: Callable[[], None], steps: int, device: torch.device) -> Launch:
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
