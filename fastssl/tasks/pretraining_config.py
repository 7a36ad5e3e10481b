"""What a pretraining run is asked to do, in five groups; the command line shows their fields as flat flags."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from fastssl.data.objectives import ObjectiveConfig
from fastssl.models.presets import bert_preset
from fastssl.training import TrainingConfig

DEFAULT_VOCAB_SIZE = 8192


def check_unused(config: object, names: Sequence[str], because: str) -> None:
    """Raise ValueError where one of these fields was given and would have no effect.

    Args:
        config: a dataclass.
        names: fields whose defaults say that nothing was given.
        because: why they have none, a clause.
    """
    defaults = {field.name: field.default for field in fields(config)}
    if given := [name for name in names if getattr(config, name) != defaults[name]]:
        raise ValueError(f"{because}: leave out {', '.join(given)}")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """The text, and how it is read."""

    train_files: tuple[Path, ...]
    """Files to train on: text (a blank line between documents), .jsonl, each also .gz or .zst, or .parquet; or one
    directory that `fastssl data encode` wrote."""
    eval_files: tuple[Path, ...] = ()
    """Files to measure on during the run; without them, documents of the training files are held out."""
    eval_fraction: float = 0.02
    """Share of the training text to hold out where there are no eval_files; 0: measure nothing."""
    text_field: str = "text"
    """Key or column of the text in JSON lines and Parquet."""
    encoding_errors: Literal["strict", "replace", "ignore"] = "strict"
    """What to do with bytes that are not UTF-8: stop, put a replacement character, or leave them out."""

    def __post_init__(self) -> None:
        if not self.train_files:
            raise ValueError("train_files is empty; expected at least one file to train on")
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"eval_fraction must be at least 0 and below 1, got {self.eval_fraction}")


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """The tokenizer."""

    tokenizer: Path | None = None
    """Directory or file of a tokenizer; without one, that of --model is taken, or one is trained on the text."""
    vocab_size: int | None = None
    """Largest vocabulary of a tokenizer that is trained; None: 8192."""
    cased: bool = False
    """Keep upper case and accents in a tokenizer that is trained."""
    new_tokens: int = 0
    """With --model: extend its vocabulary by at most as many tokens learnt from the training text."""

    @property
    def largest(self) -> int:
        """The largest vocabulary of a tokenizer that is trained."""
        return DEFAULT_VOCAB_SIZE if self.vocab_size is None else self.vocab_size

    @property
    def asked(self) -> dict[str, object]:
        """What is asked for of a tokenizer that is trained."""
        return {"vocab_size": self.largest, "cased": self.cased, "new_tokens": self.new_tokens}

    def check_unused(self, given: Path) -> None:
        """Raise ValueError where something was asked for that a tokenizer which exists, in `given`, has already."""
        check_unused(self, ("vocab_size", "cased"), f"{given} has a tokenizer, which stays")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to start from."""

    arch: Literal["bert"] = "bert"
    """Architecture."""
    preset: str | None = None
    """Size of a new model: bert-tiny, bert-mini, bert-small, bert-medium, bert-base, bert-large; None: bert-mini."""
    model: Path | None = None
    """Go on from the weights of this directory instead of a new model."""
    dropout: float | None = None
    """Dropout of hidden states and attention; None keeps the preset's (0.1) or the directory's."""
    norm_position: Literal["post", "pre"] | None = None
    """Layer norms of a new model: after each sum (post), as published, or before each part; None: post."""
    initializer_range: float | None = None
    """Standard deviation of a new model's weights; None keeps the preset's 0.02."""
    max_position_embeddings: int | None = None
    """Longest sequence that a new model will ever read; None keeps the preset's 512."""

    def __post_init__(self) -> None:
        if self.model is not None:
            names = ("preset", "norm_position", "initializer_range", "max_position_embeddings")
            check_unused(self, names, f"model={self.model} is a model, which stays as large and as it was made")
        else:
            # Told before a tokenizer is trained; its size and tokens, which come later, are the preset's here.
            replace(bert_preset(self.size), **self.changes)

    @property
    def size(self) -> str:
        """The preset of a new model."""
        return self.preset or "bert-mini"

    @property
    def changes(self) -> dict[str, object]:
        """What a new model has in place of its preset's."""
        changes: dict[str, object] = {"norm_position": self.norm_position or "post"}
        if self.dropout is not None:
            changes |= {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        for name in ("initializer_range", "max_position_embeddings"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        return changes

    def positions(self, max_seq_length: int) -> int:
        """Return the longest sequence that a new model will ever read."""
        return replace(bert_preset(self.size), **self.changes).max_position_embeddings


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How much a step sees."""

    per_device_train_batch_size: int | None = None
    """Sequences per batch; 32 where no --tokens-per-batch is given either."""
    tokens_per_batch: int | None = None
    """Instead: fill each batch with sequences up to this many tokens."""

    def __post_init__(self) -> None:
        if self.per_device_train_batch_size is not None and self.tokens_per_batch is not None:
            raise ValueError(
                "per_device_train_batch_size and tokens_per_batch are both given; expected one of them: leave one out"
            )
        for name in ("per_device_train_batch_size", "tokens_per_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def sizes(self) -> dict[str, int | None]:
        """The two sizes as the data takes them, of which one is None."""
        if self.tokens_per_batch is not None:
            return {"batch_size": None, "tokens_per_batch": self.tokens_per_batch}
        return {"batch_size": self.per_device_train_batch_size or 32, "tokens_per_batch": None}


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """A pretraining run."""

    corpus: CorpusConfig
    """The text."""
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    """The tokenizer."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to start from."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is predicted."""
    batches: BatchConfig = field(default_factory=BatchConfig)
    """How much a step sees."""
    training: TrainingConfig
    """Length, optimizer, schedule, checkpoints, reports."""

    def __post_init__(self) -> None:
        if self.vocabulary.new_tokens and self.model.model is None:
            raise ValueError("new_tokens extends the vocabulary of a model that exists; give its directory as model")
        if self.vocabulary.new_tokens and self.vocabulary.tokenizer is not None:
            raise ValueError("new_tokens and tokenizer are both given; expected one of them: leave one out")
