"""The speed of a masked-LM training step on this machine, on random tokens: no text is needed."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastssl.allocator import keep_freed_memory
from fastssl.data.batch import IGNORED_LABEL, PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.models.cost import flops_per_token
from fastssl.ops.machine import measured_matmul_flops
from fastssl.training.config import TrainingConfig
from fastssl.training.optimizer import clip_factor, gradient_norm, make_optimizer

_MASK_RATE = 0.15
_WARMUP_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What the measured step trains, and on how much."""

    per_device_train_batch_size: int = 8
    """Sequences."""
    max_seq_length: int = 128
    """Tokens of each."""
    steps: int = 5
    """Steps to measure, after two that warm up; the median counts."""
    seed: int = 0
    """Of weights, tokens and dropout."""

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "max_seq_length", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StepSpeed:
    """How fast the step is."""

    seconds: float
    """Of one step, the median."""
    tokens_per_second: float
    """Trained on."""
    flops_per_second: float
    """Useful ones: what the tokens need, predicted ones alone in the head."""
    matmul_flops_per_second: float
    """What this machine gives a square fp32 product, measured just before."""

    @property
    def share_of_matmul(self) -> float:
        """Useful FLOP/s over those of the square product (MFU)."""
        return self.flops_per_second / self.matmul_flops_per_second


class TrainingStep:
    """Forward, backward, clipping, AdamW, on one batch again and again; in fp32, with the config's dropout.

    Args:
        config: of the model, whose weights are drawn fresh.
        settings: the batch, the seed.

    Raises:
        ValueError: if the sequences are longer than the model's positions.
    """

    def __init__(self, config: BertConfig, settings: StepConfig) -> None:
        if settings.max_seq_length > config.max_position_embeddings:
            raise ValueError(
                f"max_seq_length is {settings.max_seq_length}, the model has {config.max_position_embeddings} positions"
            )
        keep_freed_memory()
        torch.manual_seed(settings.seed)
        self.batch = random_batch(config, settings)
        self._training = TrainingConfig(
            output_dir=".", max_steps=1
        )  # of its settings the step takes AdamW's and clipping
        self._model = BertForMaskedLM(config).train()
        self._optimizer = make_optimizer(self._model, self._training)

    def __call__(self) -> None:
        """Train once."""
        self._model(self.batch).loss.backward()
        norm = gradient_norm(self._optimizer)
        self._optimizer.step(gradient_factor=clip_factor(norm, self._training.max_grad_norm))
        self._optimizer.zero_grad(set_to_none=True)


def random_batch(config: BertConfig, settings: StepConfig) -> PackedBatch:
    """Return sequences of random tokens with 15 % of them to be predicted."""
    shape = (settings.per_device_train_batch_size, settings.max_seq_length)
    ids = torch.randint(config.vocab_size, shape)
    labels = torch.full_like(ids, IGNORED_LABEL).flatten()
    chosen = torch.randperm(ids.numel())[: math.ceil(_MASK_RATE * ids.numel())]
    labels[chosen] = ids.flatten()[chosen]
    return PackedBatch.from_padded(ids, labels=labels.view(shape))


def measure_step(config: BertConfig, settings: StepConfig) -> StepSpeed:
    """Time a training step, after the machine's own rate; `TrainingStep` says of what and when it raises."""
    step = TrainingStep(config, settings)
    matmul = measured_matmul_flops()
    for _ in range(_WARMUP_STEPS):
        step()
    seconds = statistics.median(seconds_of(step) for _ in range(settings.steps))
    tokens = step.batch.num_tokens
    predicted = step.batch.masked_labels.numel() / tokens
    return StepSpeed(
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        flops_per_second=tokens * flops_per_token(config, settings.max_seq_length, predicted) / seconds,
        matmul_flops_per_second=matmul,
    )


def seconds_of(work: Callable[[], object]) -> float:
    """Run `work` once and return the seconds that it took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
