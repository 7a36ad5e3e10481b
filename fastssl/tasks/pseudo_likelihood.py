"""How likely a masked language model finds a text: each of its tokens masked in turn.

PLL(w) = sum over t of ln p(w_t | w with the token at t masked)

It ranks texts, such as the hypotheses of a recogniser or the two sentences of a minimal pair; it is not the logarithm
of a probability of the text.

Source: Salazar et al. 2019, "Masked Language Model Scoring" (arXiv 1910.14659) section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastssl.data.batch import PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertForMaskedLM
from fastssl.tasks.fill_mask import FillMask
from fastssl.tasks.streaming import TEXTS_AT_ONCE, one_by_one, stream_windows

TOKENS_PER_BATCH = 4096
"""About how many tokens go through the model at once, by default."""


@dataclass(frozen=True, kw_only=True)
class PseudoLikelihood:
    """What a model thinks of one text."""

    text: str
    """The text as given."""
    tokens: tuple[str, ...]
    """Spelling of its tokens, without the special ones around it."""
    log_probabilities: tuple[float, ...]
    """Of each token, given all others."""

    @property
    def score(self) -> float:
        """The pseudo-log-likelihood: the sum over all tokens."""
        return math.fsum(self.log_probabilities)

    @property
    def perplexity(self) -> float:
        """The pseudo-perplexity of the text, exp(-score / tokens); 1 for a text without tokens."""
        return math.exp(-self.score / max(1, len(self.tokens)))


class PseudoLikelihoodScorer:
    """Scores texts with a masked language model. May be called from several threads at once.

    A text of T tokens is read T times, each time with one token masked; the copies of all texts go through the model
    packed, and the head sees the masked rows alone.

    Args:
        model: with a masked-LM head; put into eval mode.
        tokenizer: of the model's vocabulary.
        tokens_per_batch: about how many tokens go through the model at once.

    Raises:
        ValueError: where the tokenizer has ids that the model does not.
    """

    def __init__(
        self, model: BertForMaskedLM, tokenizer: Tokenizer, *, tokens_per_batch: int = TOKENS_PER_BATCH
    ) -> None:
        served = FillMask(model, tokenizer, tokens_per_batch=tokens_per_batch)
        self.model, self.tokenizer, self.tokens_per_batch = served.model, tokenizer, tokens_per_batch

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        dtype: str = "fp32",
        device: str = "auto",
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ) -> PseudoLikelihoodScorer:
        """Read model and tokenizer from one directory; arguments and errors as in `FillMask.load`."""
        served = FillMask.load(directory, dtype=dtype, device=device)
        return cls(served.model, served.tokenizer, tokens_per_batch=tokens_per_batch)

    def __call__(self, texts: Iterable[str]) -> list[PseudoLikelihood]:
        """Return the score of each text.

        Args:
            texts: what looks like a special token in them is read as ordinary characters.

        Raises:
            ValueError: for one string instead of several, or a text longer than the model's positions.
        """
        return list(self.stream(texts))

    def stream(self, texts: Iterable[str], *, texts_at_once: int = TEXTS_AT_ONCE) -> Iterator[PseudoLikelihood]:
        """Yield what a call returns, in order, in memory that does not grow with the number of texts."""
        return one_by_one(stream_windows(texts, self._encode, self._score, texts_at_once=texts_at_once))

    def _encode(self, texts: Sequence[str]) -> tuple[Sequence[str], list[np.ndarray]]:
        special, longest = self.tokenizer.special, self.model.config.max_position_embeddings
        sequences = [np.array([special.cls, *ids, special.sep]) for ids, _ in self.tokenizer.encode_batch(texts)]
        for text, ids in zip(texts, sequences, strict=True):
            if len(ids) > longest:
                raise ValueError(
                    f"the text {text[:57]!r}... has {len(ids)} tokens, [CLS] and [SEP] included, and the model reads "
                    f"at most {longest}; shorten it"
                )
        return texts, sequences

    def _score(self, window: tuple[Sequence[str], list[np.ndarray]]) -> list[PseudoLikelihood]:
        texts, sequences = window
        found = pseudo_log_likelihoods(
            self.model,
            sequences,
            positions=[range(1, len(ids) - 1) for ids in sequences],
            mask_token=self.tokenizer.special.mask,
            tokens_per_batch=self.tokens_per_batch,
        )
        return [
            PseudoLikelihood(
                text=text,
                tokens=tuple(self.tokenizer.id_to_token(i) or f"[{i}]" for i in ids[1:-1]),
                log_probabilities=tuple(own.tolist()),
            )
            for text, ids, own in zip(texts, sequences, found, strict=True)
        ]


def pseudo_log_likelihoods(
    model: BertForMaskedLM,
    sequences: Sequence[Sequence[int]],
    *,
    mask_token: int,
    positions: Sequence[Sequence[int]] | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[np.ndarray]:
    """Return the log-probability of tokens of sequences, each given all others of its sequence.

    Args:
        model: in eval mode.
        sequences: token ids, special ones included.
        mask_token: id of the mask.
        positions: which tokens of each sequence to ask for; None: all.
        tokens_per_batch: about how many tokens go through the model at once; a longer sequence goes alone.

    Returns:
        For each sequence a float64 array, one number for each of its positions.

    Raises:
        ValueError: for an id outside the vocabulary, a sequence longer than the model's positions, a position that its
            sequence does not have, or `tokens_per_batch` below 1.
    """
    asked = [range(len(ids)) for ids in sequences] if positions is None else positions
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
    if not 0 <= mask_token < model.config.vocab_size:
        raise ValueError(f"mask_token must be below the vocabulary's {model.config.vocab_size} ids, got {mask_token}")
    _check_sequences(model, sequences)
    _check_positions(asked, sequences)
    # Longest first, so that the copies of a batch are of like length and the first batch needs the most memory.
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    copies = [(number, place) for number in order for place in asked[number]]
    answers = {}
    for batch in _batches(copies, sequences, tokens_per_batch):
        answers.update(zip(batch, _log_probabilities(model, sequences, batch, mask_token), strict=True))
    return [np.array([answers[number, place] for place in own], dtype=np.float64) for number, own in enumerate(asked)]


def _check_sequences(model: BertForMaskedLM, sequences: Sequence[Sequence[int]]) -> None:
    vocab_size, longest = model.config.vocab_size, model.config.max_position_embeddings
    for number, ids in enumerate(sequences):
        if len(ids) > longest:
            raise ValueError(f"sequence {number} has {len(ids)} tokens, and the model reads at most {longest}")
        wrong = [token for token in ids if not 0 <= token < vocab_size]
        if wrong:
            raise ValueError(f"sequence {number} has the token {wrong[0]}, and the vocabulary ends at {vocab_size}")


def _check_positions(asked: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]]) -> None:
    if len(asked) != len(sequences):
        raise ValueError(f"positions must be given for each of the {len(sequences)} sequences, got {len(asked)}")
    for number, (places, ids) in enumerate(zip(asked, sequences, strict=True)):
        wrong = [place for place in places if not 0 <= place < len(ids)]
        if wrong:
            raise ValueError(f"sequence {number} has {len(ids)} tokens, numbered from 0, and none at {wrong[0]}")


def _batches(
    copies: Sequence[tuple[int, int]], sequences: Sequence[Sequence[int]], tokens_per_batch: int
) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    tokens = 0
    for number, place in copies:
        length = len(sequences[number])
        if batch and tokens + length > tokens_per_batch:
            yield batch
            batch, tokens = [], 0
        batch.append((number, place))
        tokens += length
    if batch:
        yield batch


@torch.inference_mode()
def _log_probabilities(
    model: BertForMaskedLM, sequences: Sequence[Sequence[int]], batch: Sequence[tuple[int, int]], mask_token: int
) -> list[float]:
    device = next(model.parameters()).device
    packed = PackedBatch.from_sequences([sequences[number] for number, _ in batch])
    places = torch.tensor([place for _, place in batch])
    rows = packed.cu_seqlens[:-1].long() + places
    labels = packed.input_ids[rows]
    packed.input_ids[rows] = mask_token
    packed, rows, labels = packed.to(device), rows.to(device), labels.to(device)
    hidden_states = model.bert.encode(packed).index_select(0, rows)
    _, stats = model.masked_lm_head.loss(hidden_states, labels, model.bert.embeddings.word.weight)
    return (-stats.losses.double()).tolist()
