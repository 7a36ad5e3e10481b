"""A whole training step of BERT-base and of GPT-2 in bf16 over fp32 weights, beside Hugging Face and torch.compile.

Every contender lives in a process of its own, and all are made ready at the same time. A launch is several steps in a
row, so that the host may run ahead as it does in training, and its seconds are those of one step.
"""

import time
from collections.abc import Callable, Iterable, Mapping
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
from benchmarks.gpu.trial import left_out, why_not
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
from fastssl.training.graphs import CudaGraph, Graph, GraphedPasses
from fastssl.training.precision import autocast
from fastssl.training.step import Passed, forward_backward

MASK_RATE, BATCHES, CHECKED_SEQUENCES = 0.3, 4, 2
CHECKED_GPT_SHAPE = (2, 64)
MIXED = tuple(range(32, 513, 32)) * 4
DTYPE = torch.bfloat16
LEARNING_RATE = 1e-4
CHECKED_STEPS, GRADIENT_ERROR, CHANGE_ERROR = 4, 0.1, 0.3
STEPS_A_LAUNCH = 4
EFFORT = Effort(seconds=12.0, min_rounds=3, max_rounds=12, warmup_rounds=1)
LEAST_SECONDS = 60.0
"""Without so many left no case begins: for the contenders' imports, Triton's compiler, and the timing."""
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
    builders: dict[str, Callable[[Path, str, int], Launch]]
    builders = {f"own {name}": partial(step_of_fastssl, task.model, task.assert_same_step, name) for name in ours}
    if not run.rehearse:
        builders["own graphs"] = partial(step_of_graphs, task.model, CudaGraph)
    builders["HF eager"] = partial(step_of_hugging_face, task.load_peer, task.peer_inputs, False)
    if not run.rehearse:
        builders["HF compiled"] = partial(step_of_hugging_face, task.load_peer, task.peer_inputs, True)
    launches: dict[str, Launch] = {}
    refused: dict[str, str] = {}
    with saved(task.model(task.config)) as directory:
        torch.save(packed, directory / BATCHES_FILE)
        torch.save(task.checked(packed[0]), directory / CHECKED_FILE)
        taking_part = {name: builder for name, builder in builders.items() if (case, name) not in run.excluded}
        refused |= {name: run.excluded[case, name] for name in builders if name not in taking_part}
        for name, builder in taking_part.items():
            build = partial(warmed, builder, directory, run.device.type, steps)
            launches[name] = build() if run.rehearse else OwnProcess(build, wait=False)
        for name, launch in list(launches.items()):
            if isinstance(launch, OwnProcess):
                try:
                    launch.wait(run.ends - EFFORT.seconds - time.monotonic())
                except RuntimeError as error:
                    # One contender's failure must not cost the others their turn.
                    del launches[name]
                    refused[name] = reason_of(error)
    own = [name for name in launches if name.startswith("own ")]
    reasons = [f"{name} left out: {reason}" for name, reason in refused.items()]
    reasons += [] if run.rehearse else [fact for fact in [left_out("hopper")] if fact]
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


def warmed(builder: Callable[[Path, str, int], Launch], directory: Path, device: str, steps: int) -> Launch:
    """Return a launch that has run once, and has compiled what it compiles."""
    launch = builder(directory, device, steps)
    launch()
    return launch


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


def step_of_graphs(
    model_class: type[nn.Module], capture: Callable[[Callable], Graph], directory: Path, device: str, steps: int
) -> Launch:
    """Return our step as two graphs, the passes, and the update with AdamW, after both were held to the operators'."""
    target = torch.device(device)
    model = model_class.from_pretrained(directory).to(target).train()
    on_device = [batch.to(target) for batch in torch.load(directory / BATCHES_FILE, weights_only=False)]
    assert_graphs_do_the_same(model_class, capture, directory, on_device[0])
    passes = GraphedPasses(model, DTYPE, capture)
    update = GraphedUpdate(our_adamw(model), max_grad_norm=0.0, capture=capture)
    batch_of, numbers = in_turn(on_device), count()

    def step() -> None:
        batch = batch_of(next(numbers))
        loss, _ = passes(batch, batch.target_counts())
        update([loss], LEARNING_RATE)

    return _in_a_row(step, steps, target)


def assert_graphs_do_the_same(
    model_class: type[nn.Module], capture: Callable[[Callable], Graph], directory: Path, batch: PackedBatch
) -> None:
    """Raise AssertionError where steps as graphs are not those that the operators take one by one.

    The gradient of each step, from the same seed and so with the same dropout, and what several steps make of the
    weights; in bf16 and under AdamW, which takes a small gradient's sign for a step, neither is the same to the bit.
    """
    found = []
    for graphed in (False, True):
        model = model_class.from_pretrained(directory).to(batch.input_ids.device).train()
        before = _flat(parameter.detach() for parameter in model.parameters())
        passes: Callable[..., Passed] = partial(forward_backward, model, dtype=DTYPE)
        if graphed:
            passes = GraphedPasses(model, DTYPE, capture)
        update = GraphedUpdate(our_adamw(model), max_grad_norm=0.0, capture=capture if graphed else Uncaptured)
        gradients = []
        for number in range(CHECKED_STEPS):
            torch.manual_seed(number)
            loss, _ = passes(batch, batch.target_counts())
            gradients.append(_flat(p.grad for p in model.parameters() if p.grad is not None))
            update([loss], LEARNING_RATE)
        found.append((gradients, _flat(parameter.detach() for parameter in model.parameters()) - before))
    (expected, change), (gradients, own_change) = found
    for number, (own, other) in enumerate(zip(gradients, expected, strict=True)):
        _assert_near(own, other, GRADIENT_ERROR, f"the gradient of step {number}")
    _assert_near(own_change, change, CHANGE_ERROR, "what the steps make of the weights")


class Uncaptured:
    """What takes a graph's place where operators are sent one by one."""

    def __init__(self, function: Callable) -> None:
        self.replay = function


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.float().flatten() for tensor in tensors])


def _assert_near(own: Tensor, other: Tensor, allowed: float, what: str) -> None:
    assert own.shape == other.shape, f"{what}: {own.numel()} numbers, not {other.numel()}"
    error = float((own - other).norm() / other.norm())
    assert error <= allowed, f"{what} differs by {error:.3f} of its norm; allowed are {allowed}"


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
