"""What a fine-tuning task hands over to be trained, and the model and tokenizer that every task starts from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fastssl.data.tokenizer import Tokenizer
from fastssl.models import bert_files
from fastssl.models.bert_config import BertConfig
from fastssl.models.presets import PUBLISHED_CHECKPOINTS, bert_preset
from fastssl.tasks.finetuning_config import StartConfig
from fastssl.training.evaluation import Evaluation
from fastssl.training.source import BatchSource

_VOCABULARY_OF_A_PRESET = 8192


@dataclass(frozen=True, kw_only=True)
class TaskParts:
    """A task, ready to be trained."""

    model: nn.Module
    """With its first weights."""
    tokenizer: Tokenizer
    """Of the model."""
    max_seq_length: int
    """Where texts were cut."""
    has_pairs: bool
    """Whether examples are pairs of texts."""
    train_data: BatchSource
    """Batches to train on."""
    evaluation: Evaluation | None
    """Measures the model; None without held-out examples."""
    main_metric: str
    """Of the evaluation: what says which checkpoint is best."""
    settle: Callable[[], None] | None = None
    """Called when the weights are final: settles by the held-out examples what of the model is no weight."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The body that a task begins with."""

    directory: Path | None
    """Where its weights are; None for random ones."""
    config: BertConfig
    """Its sizes, and the labels of the head that it may have."""
    tokenizer: Tokenizer
    """Its tokenizer."""


def find_start(wanted: StartConfig, texts: Sequence[str], say: Callable[[str], None]) -> Start:
    """Return what a run starts from.

    Args:
        wanted: what was asked for.
        texts: to train a tokenizer on, where a preset has none.
        say: takes remarks.

    Raises:
        FileNotFoundError: for a directory that is not there.
        ValueError: for a preset that does not exist or that has the name of published weights, a tokenizer beside a
            directory, or one that does not fit the model.
    """
    directory = Path(wanted.model)
    if directory.is_dir() or "/" in wanted.model:
        if wanted.tokenizer is not None:
            raise ValueError(
                f"--tokenizer is for presets, but {wanted.model} is a directory, whose tokenizer its weights were "
                "trained with; leave --tokenizer out (a directory without one needs the files in it)"
            )
        config, tokenizer = bert_files.load_config(directory), Tokenizer.load(directory)
    else:
        directory, config = None, _preset(wanted)
        if wanted.tokenizer is not None:
            tokenizer = Tokenizer.load(wanted.tokenizer)
        else:
            say(f"training a tokenizer of up to {_VOCABULARY_OF_A_PRESET:,} tokens on the training texts")
            tokenizer = Tokenizer.train_wordpiece(texts, vocab_size=_VOCABULARY_OF_A_PRESET)
        config = replace(config, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.special.pad)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model of {wanted.model} has "
            f"vocab_size={config.vocab_size}; give the model's own tokenizer"
        )
    if directory is None or wanted.from_scratch:
        say(f"{wanted.model}: starting from random weights")
        directory = None
    return Start(directory=directory, config=config, tokenizer=tokenizer)


def _preset(wanted: StartConfig) -> BertConfig:
    """Return the sizes of a preset, unless published weights seem to be meant."""
    try:
        config = bert_preset(wanted.model)
    except ValueError as error:
        raise ValueError(f"there is no directory {wanted.model!r}, and {error}") from error
    if wanted.model in PUBLISHED_CHECKPOINTS and not wanted.from_scratch:
        raise ValueError(
            f"there is no directory {wanted.model!r}, and the preset of that name has the sizes of the published model "
            f"but random weights; fetch the weights (`hf download {wanted.model} --local-dir {wanted.model}`) and give "
            "their directory, or give --from-scratch if random ones are meant"
        )
    return config


def make_model(start: Start, model_class: type[nn.Module], labels: Sequence[str], **changes: object) -> nn.Module:
    """Return a model of a class with a head for `labels`: the directory's body and, where it fits, its head.

    Args:
        start: the body.
        model_class: with `from_pretrained(directory, labels=...)`.
        labels: names of what the head tells apart.
        changes: further options of the config.
    """
    if start.directory is None:
        return model_class(replace(start.config, labels=tuple(labels), **changes))
    with warnings.catch_warnings():
        # A head that starts fresh is what fine-tuning is about; the task says so in its own words.
        warnings.simplefilter("ignore", UserWarning)
        return model_class.from_pretrained(start.directory, labels=labels, **changes)


def check_metric(wanted: str | None, known: Sequence[str]) -> None:
    """Refuse before training what the first evaluation would refuse after it.

    Raises:
        ValueError: where `wanted`, with or without "eval_", is none of the figures that are known.
    """
    if wanted is not None and wanted.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model={wanted!r} is not measured here; expected one of {', '.join(known)}")
