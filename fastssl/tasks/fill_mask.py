"""Fill in masked words: the likeliest tokens for each mask of a text."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fastssl.data.batch import PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertForMaskedLM
from fastssl.tasks.encoded_texts import groups_by_length
from fastssl.tasks.inference import dtype_of_parameters, ready
from fastssl.tasks.streaming import TEXTS_AT_ONCE, one_by_one, stream_windows


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One token for one mask."""

    token: str
    """Its spelling in the vocabulary, such as "##ing"."""
    token_id: int
    """Its id."""
    probability: float
    """Its share of the softmax over the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class FilledText:
    """What the model makes of one text."""

    text: str
    """The text as given."""
    filled: str
    """The text with each mask replaced by its likeliest token."""
    masks: tuple[tuple[Candidate, ...], ...]
    """For each mask, from left to right, its candidates, likeliest first."""


class FillMask:
    """Fills masks with a masked language model.

    Each mask is filled by itself: the candidates of one do not know what was chosen for another. Texts go through the
    model packed, longest first. May be called from several threads at once.

    Args:
        model: with a masked-LM head; put into eval mode.
        tokenizer: of the model's vocabulary.
        tokens_per_batch: about how many tokens go through the model at once.

    Raises:
        ValueError: where the tokenizer has ids that the model does not.
    """

    def __init__(self, model: BertForMaskedLM, tokenizer: Tokenizer, *, tokens_per_batch: int = 4096) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}; "
                "give the tokenizer that the model was trained with, or call model.resize_token_embeddings first"
            )
        if tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.tokens_per_batch = tokens_per_batch

    @classmethod
    def load(
        cls, directory: str | Path, *, dtype: str = "fp32", device: str = "auto", tokens_per_batch: int = 4096
    ) -> "FillMask":
        """Read model and tokenizer from one directory.

        Args:
            directory: of a model with a masked-LM head.
            dtype: "fp32", "bf16" or "int8" (see `fastssl.quantize`), of the computation.
            device: "auto" (a GPU where there is one; "int8" always the CPU), "cpu", "cuda" or "cuda:1".
            tokens_per_batch: about how many tokens go through the model at once.

        Raises:
            FileNotFoundError: where a part is missing.
            ValueError: where the model has no masked-LM head, or a part is damaged.
        """
        parameters_in = dtype_of_parameters(dtype)
        tokenizer = Tokenizer.load(directory)
        with warnings.catch_warnings():
            # The warning of a fresh head says what the error says.
            warnings.simplefilter("ignore", UserWarning)
            model = BertForMaskedLM.from_pretrained(directory, dtype=parameters_in)
        if model.load_report.fresh:
            raise ValueError(
                f"{directory} holds a model without a masked-LM head, which could only guess at random; "
                "pretrain it first (fastssl pretrain --model DIR)"
            )
        return cls(ready(model, dtype, device), tokenizer, tokens_per_batch=tokens_per_batch)

    def __call__(self, texts: Iterable[str], *, top_k: int = 5) -> list[FilledText]:
        """Return what the model makes of each text.

        Args:
            texts: each with at least one mask token, spelt as the tokenizer spells it ("[MASK]").
            top_k: candidates per mask.

        Raises:
            ValueError: for one string instead of several, a text without a mask or longer than the model's positions,
                or a `top_k` beyond the vocabulary.
        """
        return list(self.stream(texts, top_k=top_k))

    def stream(
        self, texts: Iterable[str], *, top_k: int = 5, texts_at_once: int = TEXTS_AT_ONCE
    ) -> Iterator[FilledText]:
        """Yield what the model makes of each text, in their order, as a call does.

        Memory does not grow with the number of texts, which may be endless.

        Args:
            texts: each with at least one mask token.
            top_k: candidates per mask.
            texts_at_once: texts that go together; twice as many are read ahead.
        """
        if not 1 <= top_k <= self.tokenizer.vocab_size:
            raise ValueError(f"top_k must be between 1 and the {self.tokenizer.vocab_size} tokens, got {top_k}")
        parts = stream_windows(texts, self._encode, partial(self._fill, top_k=top_k), texts_at_once=texts_at_once)
        return one_by_one(parts)

    def _fill(self, window: tuple[Sequence[str], Sequence[list[int]]], top_k: int) -> list[FilledText]:
        texts, sequences = window
        filled: list[FilledText | None] = [None] * len(texts)
        for numbers in groups_by_length(np.array([len(ids) for ids in sequences]), self.tokens_per_batch):
            batch = self._fill_batch([texts[i] for i in numbers], [sequences[i] for i in numbers], top_k)
            for number, one in zip(numbers, batch, strict=True):
                filled[number] = one
        return filled

    @torch.inference_mode()
    def _fill_batch(self, texts: Sequence[str], sequences: Sequence[list[int]], top_k: int) -> list[FilledText]:
        batch = PackedBatch.from_sequences(sequences).to(next(self.model.parameters()).device)
        positions = (batch.input_ids == self.tokenizer.special.mask).nonzero().flatten()
        rows = self.model.bert.encode(batch).index_select(0, positions)
        # A padded vocabulary has rows beyond the tokenizer's last token, which stand for nothing.
        logits = self.model.masked_lm_logits(rows)[:, : self.tokenizer.vocab_size]
        best = logits.float().softmax(-1).topk(top_k)
        candidates = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        filled = []
        for text, sequence in zip(texts, sequences, strict=True):
            masks = tuple(
                self._candidates(*next(candidates)) for _ in range(sequence.count(self.tokenizer.special.mask))
            )
            filled.append(FilledText(text=text, filled=self._substitute(text, masks), masks=masks))
        return filled

    def _encode(self, texts: Sequence[str]) -> tuple[Sequence[str], list[list[int]]]:
        special = self.tokenizer.special
        sequences = [[special.cls, *ids, special.sep] for ids in self.tokenizer.encode_many(texts)]
        for text, ids in zip(texts, sequences, strict=True):
            self._check(text, ids)
        return texts, sequences

    def _check(self, text: str, ids: Sequence[int]) -> None:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        if self.tokenizer.special.mask not in ids:
            mask = self.tokenizer.special_names["mask"]
            raise ValueError(f"the text {shown!r} has no {mask}; put {mask} where a word is to be filled in")
        longest = self.model.config.max_position_embeddings
        if len(ids) > longest:
            raise ValueError(
                f"the text {shown!r} has {len(ids)} tokens, [CLS] and [SEP] included, and the model reads at most "
                f"{longest}; shorten it"
            )

    def _candidates(self, probabilities: list[float], ids: list[int]) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(token=self.tokenizer.id_to_token(i) or f"[{i}]", token_id=i, probability=p)
            for p, i in zip(probabilities, ids, strict=True)
        )

    def _substitute(self, text: str, masks: Sequence[Sequence[Candidate]]) -> str:
        for candidates in masks:
            word = self.tokenizer.decode([candidates[0].token_id]).strip().removeprefix("##")
            text = text.replace(self.tokenizer.special_names["mask"], word, 1)
        return text
