"""``fastssl info``: what a model is made of and what it costs, before anything is run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from fastssl.cli.flags import parse_flags
from fastssl.models import bert_files, gpt_files
from fastssl.models.bert import BertForMaskedLM, BertForPreTraining, BertModel
from fastssl.models.bert_classifier import BertForSequenceClassification
from fastssl.models.bert_config import BertConfig
from fastssl.models.bert_question_answering import BertForQuestionAnswering
from fastssl.models.bert_tagger import BertForTokenClassification
from fastssl.models.cost import ParameterRow, flops_per_token, parameter_table, training_memory
from fastssl.models.gpt import GPTModel
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_families import FAMILIES
from fastssl.models.presets import PRESETS, preset
from fastssl.models.pretrained import read_config

_CLASSES = {
    model_class.__name__: model_class
    for model_class in (
        BertForPreTraining,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertForQuestionAnswering,
        BertForTokenClassification,
        BertModel,
    )
}


@dataclass(frozen=True, kw_only=True)
class InfoFlags:
    """Show a model's parameters by part, the FLOPs per token and the memory of pretraining it.

    The model is a directory, or a preset, which is shown with all its pretraining heads. Nothing is loaded or run.

    Examples:
      fastssl info bert-mini
      fastssl info runs/x --max-seq-length 512 --json
    """

    model: tyro.conf.Positional[str]
    """A model directory, or the name of a preset such as bert-base or gpt2."""
    max_seq_length: int | None = None
    """Tokens per sequence: attention costs more per token in longer ones; None: 128, where the model has so many
    positions."""
    masked_fraction: float = 0.15
    """Share of the tokens that a BERT predicts: the masked-LM head computes these alone. A GPT predicts all."""
    tokens_per_batch: int = 4096
    """Tokens that go through the model at once, for the memory."""
    json: bool = False
    """Print JSON instead of a table."""


def main(arguments: list[str]) -> int:
    """Print what a model is made of and what it costs."""
    flags = parse_flags(InfoFlags, arguments, program="fastssl info")
    model = _model(flags.model)
    positions = model.config.max_position_embeddings
    if flags.max_seq_length is None:
        flags = replace(flags, max_seq_length=min(128, positions))
    _check(flags, positions)
    rows = parameter_table(model)
    costs = _costs(model, flags)
    if flags.json:
        print(json.dumps(_as_json(model, rows, costs), indent=2))
    else:
        _print(Console(highlight=False), flags, model, rows, costs)
    return 0


def _model(name: str) -> nn.Module:
    """Return the model without its weights: on the meta device nothing is allocated."""
    if Path(name).is_dir():
        config, model_class = _of_directory(name)
    elif "/" in name:
        raise FileNotFoundError(f"{name} is not a directory; give a model directory, or one of {', '.join(PRESETS)}")
    else:
        config = preset(name)
        model_class = BertForPreTraining if isinstance(config, BertConfig) else GPTForCausalLM
    with torch.device("meta"):
        return model_class(config)


def _of_directory(name: str) -> tuple[object, type[nn.Module]]:
    """Return the config and the class of a directory's model."""
    values = read_config(name)
    architecture = next(iter(values.get("architectures") or ()), None)
    kind = values.get("model_type")
    if kind in FAMILIES or kind == gpt_files.OUR_MODEL_TYPE:
        is_body = architecture is not None and "LM" not in architecture
        return gpt_files.config_from_dict(values, source=name), GPTModel if is_body else GPTForCausalLM
    if "bert" not in str(kind or "bert"):
        raise ValueError(f"{name} holds a model of type {kind!r}, expected bert or one of {', '.join(FAMILIES)}")
    # Other architectures are a body with a head that pretraining does not know.
    return bert_files.config_from_dict(values, source=name), _CLASSES.get(architecture, BertModel)


def _check(flags: InfoFlags, positions: int) -> None:
    if not 1 <= flags.max_seq_length <= positions:
        raise ValueError(
            f"max_seq_length must be between 1 and the model's {positions} positions, got {flags.max_seq_length}"
        )
    if not 0 <= flags.masked_fraction <= 1:
        raise ValueError(f"masked_fraction must be between 0 and 1, got {flags.masked_fraction}")
    if flags.tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be at least 1, got {flags.tokens_per_batch}")


def _costs(model: nn.Module, flags: InfoFlags) -> dict:
    predicted = _predicted_fraction(model, flags)
    num_predicted = round(predicted * flags.tokens_per_batch)
    sizes = {"num_tokens": flags.tokens_per_batch, "num_predicted": num_predicted}
    memory = training_memory(model.config, **sizes)
    checkpointed = training_memory(model.config, **sizes, gradient_checkpointing=True)
    return {
        "max_seq_length": flags.max_seq_length,
        "masked_fraction": predicted,
        "tokens_per_batch": flags.tokens_per_batch,
        "flops_per_token": flops_per_token(model.config, flags.max_seq_length, predicted),
        "training_memory_bytes": {**asdict(memory), "total": memory.total},
        "training_memory_bytes_with_gradient_checkpointing": checkpointed.total,
    }


def _predicted_fraction(model: nn.Module, flags: InfoFlags) -> float:
    return flags.masked_fraction if isinstance(model.config, BertConfig) else 1.0


def _as_json(model: nn.Module, rows: list[ParameterRow], costs: dict) -> dict:
    files = bert_files if isinstance(model.config, BertConfig) else gpt_files
    return {
        "class": type(model).__name__,
        "config": files.config_to_dict(model.config),
        "parameters": sum(row.total for row in rows),
        "parameters_by_part": [{**asdict(row), "total": row.total} for row in rows],
        **costs,
    }


def _print(console: Console, flags: InfoFlags, model: nn.Module, rows: list[ParameterRow], costs: dict) -> None:
    config = model.config
    console.print(
        f"{flags.model}: {type(model).__name__}, {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, vocabulary {config.vocab_size:,}, "
        f"{config.max_position_embeddings:,} positions, {getattr(config, 'norm_position', 'pre')}-norm",
        soft_wrap=True,
    )
    total = sum(row.total for row in rows)
    table = Table("part", "each", "copies", "parameters", "share", show_footer=True, box=None, pad_edge=False)
    for column, footer in zip(table.columns, ("total", "", "", f"{total:,}", ""), strict=True):
        column.footer = footer
        column.justify = "left" if column.header == "part" else "right"
    for row in rows:
        table.add_row(row.part, f"{row.parameters:,}", f"{row.copies}", f"{row.total:,}", f"{row.total / total:.1%}")
    console.print(table)
    memory = costs["training_memory_bytes"]
    console.print(
        f"\ntraining: {costs['flops_per_token'] / 1e6:,.1f} MFLOPs per token, forward and backward, at "
        f"{flags.max_seq_length} tokens per sequence with {costs['masked_fraction']:.0%} predicted",
        soft_wrap=True,
    )
    console.print(
        f"memory of training: {_size(memory['total'])} for {flags.tokens_per_batch:,} tokens at once: "
        f"weights {_size(memory['weights'])}, gradients {_size(memory['gradients'])}, AdamW "
        f"{_size(memory['optimizer'])}, activations {_size(memory['activations'])}; with gradient checkpointing "
        f"{_size(costs['training_memory_bytes_with_gradient_checkpointing'])} in all",
        soft_wrap=True,
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"
