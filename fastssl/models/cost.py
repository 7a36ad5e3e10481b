"""What a model costs: parameters by part, floating-point operations per token, memory of training."""

import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from fastssl.models.bert import BertForPreTraining
from fastssl.models.bert_config import BertConfig
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig

ModelConfig = BertConfig | GPTConfig
_BODIES = r"bert\.encoder\.|encoder\.|gpt\."
"""What stands in front of the blocks in a parameter's name."""

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


def parameter_table(model: nn.Module | ModelConfig) -> list[ParameterRow]:
    """Return the parameters of a model by part; tied weights count once, in the part that comes first.

    Args:
        model: a model, or a config, which means the model with all its pretraining heads.
    """
    if isinstance(model, BertConfig | GPTConfig):
        with torch.device("meta"):
            model = BertForPreTraining(model) if isinstance(model, BertConfig) else GPTForCausalLM(model)
    counts: Counter[str] = Counter()
    blocks: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        block = re.fullmatch(rf"(?:{_BODIES})?blocks\.(\d+)\.(attention_norm|mlp_norm|attention|mlp)\..*", name)
        part = _part_of_block(block[2]) if block else _part(name)
        counts[part] += parameter.numel()
        if block:
            blocks.setdefault(part, set()).add(block[1])
    copies = {part: len(blocks.get(part, "1")) for part in counts}
    return [ParameterRow(part=part, parameters=n // copies[part], copies=copies[part]) for part, n in counts.items()]


def num_parameters(model: nn.Module | ModelConfig) -> int:
    """Return the number of parameters, tied weights once; a config means the model with all its pretraining heads."""
    return sum(row.total for row in parameter_table(model))


def flops_per_token(config: ModelConfig, seq_length: float, predicted_fraction: float) -> float:
    """Return the floating-point operations of one training step per token, forward and backward.

    6 x matrix parameters of the blocks + 12 L H D T + 6 x matrix parameters of the head x fraction predicted; a third
    of it is the forward. H D, the heads times their width, is the model's width E unless a config says otherwise.

    Attention is counted as if every token saw all T, also in causal models, whose attention takes half of that: so do
    the sources, and so is comparable what they report. A sliding window is counted, as T no longer than the window.

    Args:
        config: of the model.
        seq_length: T, mean length that attention sees, in tokens.
        predicted_fraction: predicted tokens / tokens; 1 for a causal model.

    Source: Kaplan et al. 2020 (arXiv 2001.08361) §2.1; Chowdhery et al. 2022 (arXiv 2204.02311) appendix B.
    """
    sizes = _sizes(config)
    reach = seq_length if sizes.window is None else min(seq_length, sizes.window)
    attention = 12 * sizes.layers * sizes.attention_width * reach
    return 6 * sizes.layers * sizes.block_matrices + attention + 6 * sizes.head_matrices * predicted_fraction


def activation_bytes_per_token(config: ModelConfig, *, gradient_checkpointing: bool = False) -> int:
    """Return the bytes that the forward keeps for the backward, per token, in fp32 and with the native operators.

    A block of BERT keeps its input, q, k and v, the attention's output and log-sum-exp, the two sums before its norms
    with their statistics, one norm's output, and both sides of the activation: 8 E + 2 F + H + 4 numbers. With
    checkpointing it keeps its input, and one block at a time the rest. The embeddings keep two rows more.

    A block of GPT keeps each norm's sum and output, q, k, v and the attention's output and log-sum-exp, and both sides
    of the activation: 4 E + 2 D (H + H_k) + 2 F + H + 4; rotary positions D (H + H_k) more, a gate 2 F. With
    checkpointing it keeps its input twice, normed and not. RMS norms, counted as layer norms, keep more than that.
    """
    sizes = _sizes(config)
    kept = sizes.layers * sizes.block_numbers
    if gradient_checkpointing:
        kept = sizes.layers * sizes.block_inputs + sizes.block_numbers
    return _BYTES * (kept + 2 * sizes.width)


def training_memory(
    config: ModelConfig, *, num_tokens: int, num_predicted: int, gradient_checkpointing: bool = False
) -> TrainingMemory:
    """Return the memory of training a model with all its pretraining heads, by what it holds.

    Beside what the blocks keep there are, for each predicted token, some rows of width E in the head.

    Args:
        config: of the model.
        num_tokens: tokens that go through the model at once (a micro-batch).
        num_predicted: how many of them are predicted.
        gradient_checkpointing: whether blocks recompute their activations.
    """
    parameters = num_parameters(config)
    per_token = activation_bytes_per_token(config, gradient_checkpointing=gradient_checkpointing)
    return TrainingMemory(
        weights=_BYTES * parameters,
        gradients=_BYTES * parameters,
        optimizer=2 * _BYTES * parameters,
        activations=num_tokens * per_token + num_predicted * _BYTES * _sizes(config).head_numbers,
    )


def training_memory_bytes(
    config: ModelConfig, *, num_tokens: int, num_predicted: int, gradient_checkpointing: bool = False
) -> int:
    """Return the total of `training_memory`, in bytes."""
    return training_memory(
        config, num_tokens=num_tokens, num_predicted=num_predicted, gradient_checkpointing=gradient_checkpointing
    ).total


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the formulas read of a config."""

    layers: int
    width: int
    attention_width: int
    window: int | None
    block_matrices: int
    head_matrices: int
    block_numbers: int
    block_inputs: int
    head_numbers: int


def _sizes(config: ModelConfig) -> _Sizes:
    return _bert_sizes(config) if isinstance(config, BertConfig) else _gpt_sizes(config)


def _bert_sizes(config: BertConfig) -> _Sizes:
    width, feed_forward = config.hidden_size, config.intermediate_size
    return _Sizes(
        layers=config.num_hidden_layers,
        width=width,
        attention_width=width,
        window=None,
        block_matrices=4 * width * width + 2 * width * feed_forward,
        head_matrices=width * width + config.vocab_size * width,
        block_numbers=8 * width + 2 * feed_forward + config.num_attention_heads + 4,
        block_inputs=width,
        head_numbers=5 * width,
    )


def _gpt_sizes(config: GPTConfig) -> _Sizes:
    width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.key_value_heads
    gated, rotary = config.mlp == "gated", config.position_embedding == "rotary"
    projections = 2 * config.head_width * (heads + kv_heads)
    turned = config.head_width * (heads + kv_heads) if rotary else 0
    return _Sizes(
        layers=config.num_hidden_layers,
        width=width,
        attention_width=heads * config.head_width,
        window=config.sliding_window,
        block_matrices=width * projections + (3 if gated else 2) * width * config.mlp_width,
        head_matrices=config.vocab_size * width,
        block_numbers=4 * width + projections + turned + (4 if gated else 2) * config.mlp_width + heads + 4,
        block_inputs=2 * width,
        head_numbers=width,
    )


def _part_of_block(module: str) -> str:
    return "block: norms" if module.endswith("norm") else f"block: {module}"


def _part(name: str) -> str:
    pieces = name.removeprefix("bert.").removeprefix("gpt.").split(".")
    if pieces[0] in ("word", "position"):
        return f"embeddings: {pieces[0]}"
    if pieces[0] == "embeddings":
        return f"embeddings: {pieces[1].replace('_', ' ')}"
    return pieces[1].replace("_", " ") if pieces[0] == "encoder" else pieces[0].replace("_", " ")
