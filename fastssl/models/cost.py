"""What a BERT costs: parameters by part, floating-point operations per token, memory of training."""

import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from fastssl.models.bert import BertForPreTraining
from fastssl.models.bert_config import BertConfig

_BYTES = 4
"""Of an fp32 number: weights, gradients, optimizer state and activations on a CPU."""


@dataclass(frozen=True, kw_only=True)
class ParameterRow:
    """One line of a parameter table."""

    part: str
    """Which part of the model."""
    parameters: int
    """Parameters of one such part."""
    copies: int = 1
    """How many such parts the model has."""

    @property
    def total(self) -> int:
        """Parameters of all of them."""
        return self.parameters * self.copies


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes that training needs, by what they hold."""

    weights: int
    """The parameters."""
    gradients: int
    """One number per parameter."""
    optimizer: int
    """AdamW's two moments."""
    activations: int
    """What the forward keeps for the backward."""

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer + self.activations


def parameter_table(model: nn.Module | BertConfig) -> list[ParameterRow]:
    """Return the parameters of a model by part; tied weights count once, in the part that comes first.

    Args:
        model: a model, or a config, which means BERT with all its pretraining heads.
    """
    if isinstance(model, BertConfig):
        with torch.device("meta"):
            model = BertForPreTraining(model)
    counts: Counter[str] = Counter()
    blocks: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        block = re.fullmatch(r"(?:bert\.)?encoder\.blocks\.(\d+)\.(attention_norm|mlp_norm|attention|mlp)\..*", name)
        part = _part_of_block(block[2]) if block else _part(name)
        counts[part] += parameter.numel()
        if block:
            blocks.setdefault(part, set()).add(block[1])
    copies = {part: len(blocks.get(part, "1")) for part in counts}
    return [ParameterRow(part=part, parameters=n // copies[part], copies=copies[part]) for part, n in counts.items()]


def num_parameters(model: nn.Module | BertConfig) -> int:
    """Return the number of parameters, tied weights once; a config means BERT with all its pretraining heads."""
    return sum(row.total for row in parameter_table(model))


def flops_per_token(config: BertConfig, seq_length: float, masked_fraction: float) -> float:
    """Return the floating-point operations of one training step per token, forward and backward.

    6 x matrix parameters of the blocks + 12 L E T + 6 x matrix parameters of the masked-LM head x fraction predicted;
    a third of it is the forward.

    Args:
        config: of the model.
        seq_length: T, mean length that attention sees, in tokens.
        masked_fraction: predicted tokens / tokens.

    Source: Kaplan et al. 2020 (arXiv 2001.08361) §2.1; Chowdhery et al. 2022 (arXiv 2204.02311) appendix B.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    block_matrices = layers * (4 * width * width + 2 * width * config.intermediate_size)
    head_matrices = width * width + config.vocab_size * width
    return 6 * block_matrices + 12 * layers * width * seq_length + 6 * head_matrices * masked_fraction


def activation_bytes_per_token(config: BertConfig, *, gradient_checkpointing: bool = False) -> int:
    """Return the bytes that the forward keeps for the backward, per token, in fp32 and with the native operators.

    A block keeps its input, q, k and v, the attention's output and log-sum-exp, the two sums before its norms with
    their statistics, one norm's output, and both sides of the activation: 8 E + 2 F + H + 4 numbers. With
    checkpointing it keeps its input, and one block at a time the rest. The embeddings keep two rows more.
    """
    width = config.hidden_size
    block = 8 * width + 2 * config.intermediate_size + config.num_attention_heads + 4
    kept = config.num_hidden_layers * width + block if gradient_checkpointing else config.num_hidden_layers * block
    return _BYTES * (kept + 2 * width)


def training_memory(
    config: BertConfig, *, num_tokens: int, num_masked: int, gradient_checkpointing: bool = False
) -> TrainingMemory:
    """Return the memory of training BERT with all its pretraining heads, by what it holds.

    Beside what the blocks keep there are, for each predicted token, five rows of width E in the head.

    Args:
        config: of the model.
        num_tokens: tokens that go through the model at once (a micro-batch).
        num_masked: how many of them are predicted.
        gradient_checkpointing: whether blocks recompute their activations.
    """
    parameters = num_parameters(config)
    per_token = activation_bytes_per_token(config, gradient_checkpointing=gradient_checkpointing)
    return TrainingMemory(
        weights=_BYTES * parameters,
        gradients=_BYTES * parameters,
        optimizer=2 * _BYTES * parameters,
        activations=num_tokens * per_token + num_masked * 5 * _BYTES * config.hidden_size,
    )


def training_memory_bytes(
    config: BertConfig, *, num_tokens: int, num_masked: int, gradient_checkpointing: bool = False
) -> int:
    """Return the total of `training_memory`, in bytes."""
    return training_memory(
        config, num_tokens=num_tokens, num_masked=num_masked, gradient_checkpointing=gradient_checkpointing
    ).total


def _part_of_block(module: str) -> str:
    return "block: norms" if module.endswith("norm") else f"block: {module}"


def _part(name: str) -> str:
    pieces = name.removeprefix("bert.").split(".")
    if pieces[0] == "embeddings":
        return f"embeddings: {pieces[1].replace('_', ' ')}"
    return pieces[1].replace("_", " ") if pieces[0] == "encoder" else pieces[0].replace("_", " ")
