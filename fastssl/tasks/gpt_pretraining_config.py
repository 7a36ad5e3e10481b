"""What a pretraining run of GPT is asked to do: groups as in `pretraining_config`, with choices of their own."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from fastssl.data.causal import CausalObjectiveConfig
from fastssl.data.corpus import TextForm
from fastssl.models.presets import gpt_preset
from fastssl.tasks.pretraining_config import DEFAULT_VOCAB_SIZE, BatchConfig, CorpusConfig, check_unused
from fastssl.training import TrainingConfig

CausalTokenizerType = Literal["bpe", "characters", "bytes"]


@dataclass(frozen=True, kw_only=True)
class CausalCorpusConfig(CorpusConfig):
    """The text, which is kept as it is, to the last line end."""

    train_files: tuple[Path, ...]
    """Files to train on: text (one document each, unless --document-separator), .jsonl, each also .gz or .zst, or
    .parquet; or one directory that `fastssl data encode --text-form exact` wrote."""
    eval_fraction: float = 0.02
    """Share of the training text to hold out where there are no eval_files: whole documents, or, of few, the end of the
    text; 0: measure nothing."""
    document_separator: str | None = None
    """The line that parts two documents of a text file, such as <|endoftext|>; "" is an empty line; None: a file is one
    document."""

    @property
    def form(self) -> TextForm:
        """How the text is read."""
        return TextForm(exact=True, document_separator=self.document_separator)


@dataclass(frozen=True, kw_only=True)
class CausalVocabularyConfig:
    """The tokenizer."""

    tokenizer: Path | None = None
    """Directory or file of a tokenizer, such as GPT-2's; without one, that of --model is taken, or one is trained."""
    tokenizer_type: CausalTokenizerType = "bpe"
    """Of a tokenizer that is trained: byte-level BPE, or, for small corpora, characters, or bytes."""
    vocab_size: int | None = None
    """Largest vocabulary of a tokenizer that is trained; None: 8192."""

    def __post_init__(self) -> None:
        if self.tokenizer is None and self.tokenizer_type == "bytes":
            check_unused(self, ("vocab_size",), "tokenizer_type=bytes takes the 256 bytes as tokens")

    @property
    def largest(self) -> int:
        """The largest vocabulary of a tokenizer that is trained."""
        return DEFAULT_VOCAB_SIZE if self.vocab_size is None else self.vocab_size

    @property
    def asked(self) -> dict[str, object]:
        """What is asked for of a tokenizer that is trained."""
        return {"vocab_size": self.largest, "tokenizer_type": self.tokenizer_type}

    def check_unused(self, given: Path) -> None:
        """Raise ValueError where something was asked for that a tokenizer which exists, in `given`, has already."""
        check_unused(self, ("vocab_size", "tokenizer_type"), f"{given} has a tokenizer, which stays")


@dataclass(frozen=True, kw_only=True)
class GptModelConfig:
    """The model to start from. Sizes and options that are not given are the preset's."""

    arch: Literal["gpt"] = "gpt"
    """Architecture."""
    preset: str | None = None
    """Size of a new model: gpt2-nano, gpt2, gpt2-medium, gpt2-large, gpt2-xl; None: gpt2-nano."""
    model: Path | None = None
    """Go on from the weights of this directory instead of a new model."""
    dropout: float | None = None
    """Dropout of embeddings, hidden states and attention; None keeps the preset's or the directory's."""
    hidden_size: int | None = None
    """Width of a new model."""
    num_hidden_layers: int | None = None
    """Its blocks."""
    num_attention_heads: int | None = None
    """Its attention heads."""
    num_key_value_heads: int | None = None
    """Its heads of keys and values, which groups of attention heads share."""
    intermediate_size: int | None = None
    """Width inside its feed-forward network."""
    position_embedding: Literal["learned", "rotary"] | None = None
    """learned: a vector per position, as GPT-2; rotary: queries and keys are turned by their position."""
    norm: Literal["layer_norm", "rms_norm"] | None = None
    """Its norms."""
    mlp: Literal["plain", "gated"] | None = None
    """Its feed-forward network: plain, as GPT-2, or gated by a second product (SwiGLU with --hidden-act silu)."""
    hidden_act: str | None = None
    """Its activation: gelu, gelu_new, gelu_pytorch_tanh, relu or silu."""
    bias: bool | None = None
    """Whether its linear maps have a bias."""
    sliding_window: int | None = None
    """How many tokens back its attention reaches."""
    initializer_range: float | None = None
    """Standard deviation of its weights."""
    max_position_embeddings: int | None = None
    """Longest sequence that it will ever read; None: --max-seq-length."""

    def __post_init__(self) -> None:
        if self.model is None:
            # Told before a tokenizer is trained; its size and tokens, which come later, are the preset's here.
            replace(gpt_preset(self.size), **self.changes)
        else:
            names = ("preset", *(f.name for f in fields(self) if f.name not in _NO_SIZES))
            check_unused(self, names, f"model={self.model} is a model, which stays as large and as it was made")

    @property
    def size(self) -> str:
        """The preset of a new model."""
        return self.preset or "gpt2-nano"

    @property
    def changes(self) -> dict[str, object]:
        """What a new model has in place of its preset's."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NO_SIZES}
        if self.dropout is not None:
            kinds = ("embedding_dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob")
            named |= dict.fromkeys(kinds, self.dropout)
        return {name: value for name, value in named.items() if value is not None}

    def positions(self, max_seq_length: int) -> int:
        """Return the longest sequence that a new model will ever read: as asked for, or those of training."""
        return self.max_position_embeddings or max_seq_length


_NO_SIZES = ("arch", "preset", "model", "dropout")


@dataclass(frozen=True, kw_only=True)
class GptTrainingConfig(TrainingConfig):
    """Settings of training with the defaults of GPT-2 and GPT-3 (arXiv 2005.14165, appendix B)."""

    learning_rate: float = 6e-4
    """Peak learning rate."""
    warmup_ratio: float = 0.02
    """Warm-up as a share of all steps (of the minutes, with time_budget)."""
    weight_decay: float = 0.1
    """Decoupled weight decay; never applied to biases and norms (parameters with one dimension)."""
    adam_beta2: float = 0.95
    """Decay rate of AdamW's average of squared gradients."""
    adam_epsilon: float = 1e-8
    """Term added to AdamW's denominator."""

    @property
    def scheduler(self) -> str:
        """The schedule's name with "auto" resolved: cosine, or by the clock where only that ends the run."""
        if self.lr_scheduler_type == "auto" and not self.ends_by_time_alone:
            return "cosine"
        return super().scheduler


@dataclass(frozen=True, kw_only=True)
class GptPretrainingConfig:
    """A pretraining run of GPT."""

    corpus: CausalCorpusConfig
    """The text."""
    vocabulary: CausalVocabularyConfig = field(default_factory=CausalVocabularyConfig)
    """The tokenizer."""
    model: GptModelConfig = field(default_factory=GptModelConfig)
    """The model to start from."""
    objective: CausalObjectiveConfig = field(default_factory=CausalObjectiveConfig)
    """What is predicted."""
    batches: BatchConfig = field(default_factory=BatchConfig)
    """How much a step sees."""
    training: GptTrainingConfig
    """Length, optimizer, schedule, checkpoints, reports."""
