"""The sizes and options of a BERT, under the names that Hugging Face gives them."""

import math
from dataclasses import dataclass
from typing import Literal

from fastssl.nn.mlp import ACTIVATIONS

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes and options of a BERT; the defaults are bert-base-uncased."""

    vocab_size: int = 30522
    """V, number of tokens in the vocabulary."""
    hidden_size: int = 768
    """E, width of the model; a multiple of the heads."""
    num_hidden_layers: int = 12
    """L, number of blocks."""
    num_attention_heads: int = 12
    """H, attention heads per block."""
    intermediate_size: int = 3072
    """F, width inside the feed-forward network."""
    hidden_act: str = "gelu"
    """Activation in feed-forward network and masked-LM head: gelu, gelu_new, gelu_pytorch_tanh, relu or silu."""
    hidden_dropout_prob: float = 0.1
    """Probability of dropping an element of the embeddings and of what each block adds."""
    attention_probs_dropout_prob: float = 0.1
    """Probability of dropping an attention weight."""
    max_position_embeddings: int = 512
    """Longest sequence, in tokens."""
    type_vocab_size: int = 2
    """Number of token types (segments)."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in every layer norm."""
    pad_token_id: int | None = 0
    """Token whose word vector starts at zero and gets no gradient from being read."""
    tie_word_embeddings: bool = True
    """Whether the masked-LM head scores with the word embedding itself, or with a matrix of its own."""
    labels: tuple[str, ...] | None = None
    """Names of what a classification head tells apart, `id2label` in files; None: LABEL_0 and LABEL_1."""
    problem_type: ProblemType | None = None
    """What the numbers of a classification head mean; None: regression with one, else the labels' dtype tells."""
    classifier_dropout: float | None = None
    """Probability of dropping an element of what a classification head reads; None: hidden_dropout_prob."""
    trained_on_pairs: bool | None = None
    """Whether a classification head was trained on pairs of texts, or on single ones; None: nobody noted it."""
    no_answer_threshold: float | None = None
    """Of a head for answers: by how much the score of no answer must be above that of the best one to be given; None:
    the head was not trained to say that there is none."""
    norm_position: str = "post"
    """Where the layer norms stand: "post", after each sum, as published; "pre", before each part, with a final norm."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, Hugging Face's where none were given."""
        return default_label_names(2) if self.labels is None else self.labels

    @property
    def num_labels(self) -> int:
        """How many numbers a classification head gives."""
        return len(self.label_names)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "type_vocab_size"):
            _expect(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        _expect("num_hidden_layers", self.num_hidden_layers, "at least 0", self.num_hidden_layers >= 0)
        _expect(
            "max_position_embeddings", self.max_position_embeddings, "at least 1", self.max_position_embeddings >= 1
        )
        divides = self.hidden_size % self.num_attention_heads == 0
        _expect(
            "hidden_size", self.hidden_size, f"a multiple of num_attention_heads={self.num_attention_heads}", divides
        )
        _expect("hidden_act", self.hidden_act, f"one of {', '.join(ACTIVATIONS)}", self.hidden_act in ACTIVATIONS)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            _expect(name, getattr(self, name), "at least 0 and below 1", 0 <= getattr(self, name) < 1)
        _expect("layer_norm_eps", self.layer_norm_eps, "above 0", self.layer_norm_eps > 0)
        _expect("initializer_range", self.initializer_range, "at least 0", 0 <= self.initializer_range < math.inf)
        in_vocabulary = self.pad_token_id is None or 0 <= self.pad_token_id < self.vocab_size
        _expect("pad_token_id", self.pad_token_id, f"None, or below vocab_size={self.vocab_size}", in_vocabulary)
        self._check_labels()
        _expect("norm_position", self.norm_position, '"post" or "pre"', self.norm_position in ("post", "pre"))

    def _check_labels(self) -> None:
        distinct = self.labels is None or (0 < len(self.labels) == len(set(self.labels)))
        _expect("labels", self.labels, "None, or distinct names, at least one", distinct)
        kinds = (None, *ProblemType.__args__)
        _expect("problem_type", self.problem_type, f"one of {kinds}", self.problem_type in kinds)
        p = self.classifier_dropout
        _expect("classifier_dropout", p, "None, or at least 0 and below 1", p is None or 0 <= p < 1)


def default_label_names(count: int) -> tuple[str, ...]:
    """Return the names that Hugging Face gives to classes without names: LABEL_0, LABEL_1 and so on."""
    return tuple(f"LABEL_{number}" for number in range(count))


def _expect(name: str, value: object, expected: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"BertConfig.{name} must be {expected}, got {value!r}")
