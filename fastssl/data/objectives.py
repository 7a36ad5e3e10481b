"""Self-supervised objectives: what a user chooses, and the integer tables that the drawing code reads."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from fastssl.data.numpy_host import examples
from fastssl.data.tokenizer import SpecialTokens

MaskStrategy = Literal["token", "word", "ngram", "span"]
SentenceObjective = Literal["none", "nsp", "sop"]

MAX_NGRAM = 3
"""Longest n-gram in words (ALBERT, section 4.1)."""
MAX_SPAN, SPAN_CONTINUES = 10, Fraction(4, 5)
"""Longest span in words, and the probability of one more word: geometric(0.2), cut at 10 (SpanBERT, section 3.1)."""
_ONE = 1 << 32

SENTENCE_OBJECTIVE_CODES = {
    "none": examples.NONE,
    "nsp": examples.NEXT_SENTENCE,
    "sop": examples.SENTENCE_ORDER,
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the model is to predict, and from what."""

    objective: Literal["mlm"] = "mlm"
    """mlm: predict the chosen tokens of a text from the rest of it."""
    mask_strategy: MaskStrategy = "token"
    """What is chosen together: token = single pieces; word = all pieces of a word; ngram = one to three words,
    p(n) ~ 1/n; span = one to ten words, geometric(0.2), replaced alike."""
    mask_rate: float = 0.15
    """Share of a sequence that is predicted: max(1, round(rate x length)) tokens; the length counts special ones."""
    mask_token_rate: float = 0.8
    """Share of the chosen tokens that become [MASK]."""
    random_token_rate: float = 0.1
    """Share of the chosen tokens that become a random token; the rest stay as they are."""
    sentence_objective: SentenceObjective = "none"
    """none: text alone; nsp: does the second segment follow the first, or is it from another document;
    sop: are two consecutive segments in their order, or swapped."""
    short_sequence_rate: float = 0.1
    """Share of examples with a random shorter target length, so that the model meets short texts too."""
    max_seq_length: int = 128
    """Longest sequence in tokens, special ones included."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("objective", ("mlm",)),
            ("mask_strategy", get_args(MaskStrategy)),
            ("sentence_objective", get_args(SentenceObjective)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name in ("mask_rate", "mask_token_rate", "random_token_rate", "short_sequence_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.mask_rate == 0:
            raise ValueError("mask_rate must be above 0: without predictions there is nothing to learn")
        if self.mask_token_rate + self.random_token_rate > 1 + 1e-9:
            raise ValueError(
                "mask_token_rate + random_token_rate must not exceed 1, "
                f"got {self.mask_token_rate} + {self.random_token_rate}; lower one of them"
            )
        if self.max_seq_length < self.num_special_tokens + 2:
            raise ValueError(
                f"max_seq_length must be at least {self.num_special_tokens + 2} for sentence_objective="
                f"{self.sentence_objective!r} ({self.num_special_tokens} special tokens), got {self.max_seq_length}"
            )

    @property
    def num_special_tokens(self) -> int:
        """[CLS] and one [SEP] per segment."""
        return 2 if self.sentence_objective == "none" else 3

    @property
    def text_room(self) -> int:
        """Tokens of text that fit into a sequence."""
        return self.max_seq_length - self.num_special_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskingRules:
    """An objective in integers: everything that the drawing code (numpy and C++) reads."""

    cls_id: int
    """Id that begins a sequence."""
    sep_id: int
    """Id that ends a segment."""
    mask_id: int
    """Id that stands for a hidden token."""
    special_ids: np.ndarray
    """int64, ascending: ids that are never chosen and never drawn."""
    vocab_size: int
    """Number of ids."""
    prediction_counts: np.ndarray
    """(max_seq_length + 1) int64: number of predictions of a sequence, by its length."""
    whole_words: bool
    """Whether the pieces of a word are chosen together."""
    span_thresholds: np.ndarray
    """uint64: P(span length <= i + 1) x 2^32 in place i; the last is 2^32."""
    replace_spans_whole: bool
    """Whether one draw decides between [MASK], random and kept for a whole span (SpanBERT), or one per token."""
    mask_threshold: int
    """P([MASK]) x 2^32."""
    random_threshold: int
    """P([MASK] or random) x 2^32."""
    align_boundary: bool
    """Whether the boundary of two adjacent segments moves to the beginning of a word, lest it tell their order."""


def probability_threshold(probability: float) -> int:
    """Return round(p x 2^32): a 32-bit random number is below it with probability p."""
    return round(probability * _ONE)


def prediction_count(length: int, mask_rate: float) -> int:
    """Return n = max(1, round(mask_rate x length)), halves to even; `length` counts the special tokens."""
    return max(1, round(mask_rate * length))


def masking_rules(objective: ObjectiveConfig, special: SpecialTokens, vocab_size: int) -> MaskingRules:
    """Return the tables of an objective for one vocabulary.

    Raises:
        ValueError: if a special token lies outside the vocabulary, or nothing but special tokens is in it.
    """
    special_ids = np.unique(np.array(special.ids, dtype=np.int64))
    if special_ids[0] < 0 or special_ids[-1] >= vocab_size:
        raise ValueError(
            f"the special tokens have ids {special_ids.tolist()}, but the shards' vocabulary has {vocab_size}; "
            "encode the text again with this tokenizer"
        )
    if len(special_ids) == vocab_size:
        raise ValueError(f"the vocabulary holds nothing but its {vocab_size} special tokens; train a larger one")
    rates = objective.mask_token_rate, objective.mask_token_rate + objective.random_token_rate
    return MaskingRules(
        cls_id=special.cls,
        sep_id=special.sep,
        mask_id=special.mask,
        special_ids=special_ids,
        vocab_size=vocab_size,
        prediction_counts=np.array(
            [prediction_count(n, objective.mask_rate) for n in range(objective.max_seq_length + 1)]
        ),
        whole_words=objective.mask_strategy != "token",
        span_thresholds=_cumulative_thresholds(span_length_weights(objective.mask_strategy)),
        replace_spans_whole=objective.mask_strategy == "span",
        mask_threshold=probability_threshold(rates[0]),
        random_threshold=probability_threshold(min(rates[1], 1.0)),
        align_boundary=objective.sentence_objective == "sop",
    )


def span_length_weights(strategy: MaskStrategy) -> list[Fraction]:
    """Return the relative frequency of spans of 1, 2, ... words."""
    if strategy == "ngram":
        return [Fraction(1, n) for n in range(1, MAX_NGRAM + 1)]
    if strategy == "span":
        return [SPAN_CONTINUES**n for n in range(MAX_SPAN)]
    return [Fraction(1)]


def _cumulative_thresholds(weights: list[Fraction]) -> np.ndarray:
    total = sum(weights)
    return np.array([round(sum(weights[: i + 1]) / total * _ONE) for i in range(len(weights))], dtype=np.uint64)
