"""Texts and pairs of texts as token ids, laid end to end, from which batches are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastssl.data.batch import PackedBatch
from fastssl.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """X examples ``[CLS] text [SEP]`` or ``[CLS] text [SEP] pair [SEP]``."""

    tokens: np.ndarray
    """(N) int32: all of them end to end."""
    offsets: np.ndarray
    """(X + 1) int64: where each begins."""
    first_lengths: np.ndarray
    """(X) int64: tokens up to the first [SEP], which is counted in; the rest has token type 1."""
    num_truncated: int
    """How many examples were longer than allowed."""

    def __len__(self) -> int:
        return len(self.first_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """(X) int64: tokens of each example."""
        return np.diff(self.offsets)

    def batch(self, numbers: np.ndarray, labels: Tensor | None = None) -> PackedBatch:
        """Return some examples as a batch, with the rows of `labels`, if given, that are theirs."""
        starts, lengths = self.offsets[numbers], self.lengths[numbers]
        ends = np.cumsum(lengths)
        # The place of each token in its own example, and from it in the whole.
        positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        rows = positions + np.repeat(starts, lengths)
        types = positions >= np.repeat(self.first_lengths[numbers], lengths)
        return PackedBatch(
            input_ids=torch.from_numpy(self.tokens[rows].astype(np.int64)),
            cu_seqlens=torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32)),
            max_seqlen=int(lengths.max()),
            position_ids=torch.from_numpy(positions),
            token_type_ids=torch.from_numpy(types.astype(np.int64)),
            sequence_labels=None if labels is None else labels[torch.from_numpy(numbers)],
        )

    def by_length(self, tokens_per_batch: int) -> Iterator[np.ndarray]:
        """Yield the numbers of all examples, longest first, in groups of about `tokens_per_batch` tokens."""
        return groups_by_length(self.lengths, tokens_per_batch)


def groups_by_length(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Yield the numbers of sequences, longest first, in groups of about `tokens_per_batch` tokens.

    Args:
        lengths: (X) integers, tokens of each.
        tokens_per_batch: a sequence that is longer has a group of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    groups = np.cumsum(lengths[order]) // tokens_per_batch
    yield from np.split(order, np.flatnonzero(np.diff(groups)) + 1)


def encode_texts(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_seq_length: int,
    reads_special: bool = False,
) -> EncodedTexts:
    """Encode texts, or pairs, which are cut token by token from the end of the longer one until they fit.

    Args:
        tokenizer: of the model.
        texts: at least one.
        pairs: as many second texts, or None.
        max_seq_length: most tokens of an example, special ones included.
        reads_special: whether "[SEP]" in a text is that token; else it is read as ordinary characters.

    Raises:
        ValueError: for a length that leaves no room for text.
    """
    special, room = tokenizer.special, max_seq_length - (2 if pairs is None else 3)
    if room < 1:
        raise ValueError(f"max_seq_length must leave room for text beside the special tokens, got {max_seq_length}")

    def encode(of: Sequence[str]) -> list[np.ndarray]:
        if reads_special:
            return [np.array(ids, dtype=np.int32) for ids in tokenizer.encode_many(of)]
        return [ids for ids, _ in tokenizer.encode_batch(of)]

    firsts, seconds = encode(texts), None if pairs is None else encode(pairs)
    start, end = np.array([special.cls], dtype=np.int32), np.array([special.sep], dtype=np.int32)
    pieces, lengths, first_lengths, num_truncated = [], [], [], 0
    for number, first in enumerate(firsts):
        second = None if seconds is None else seconds[number]
        kept_first, kept_second = kept_lengths(len(first), 0 if second is None else len(second), room)
        num_truncated += kept_first + kept_second < len(first) + (0 if second is None else len(second))
        pieces += [start, first[:kept_first], end]
        first_lengths.append(kept_first + 2)
        if second is not None:
            pieces += [second[:kept_second], end]
        lengths.append(kept_first + 2 + (0 if second is None else kept_second + 1))
    return EncodedTexts(
        tokens=np.concatenate(pieces),
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        first_lengths=np.array(first_lengths, dtype=np.int64),
        num_truncated=num_truncated,
    )


def kept_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens stay of a pair when the longer one is cut until both fit into `room`.

    The same as "longest first" of Hugging Face's tokenizers: at the end the second has the odd token.
    """
    if first + second <= room:
        return first, second
    shorter, longer = min(first, second), max(first, second)
    if shorter <= room // 2:
        longer = room - shorter
    else:
        shorter, longer = room // 2, room - room // 2
    return (shorter, longer) if first <= second else (longer, shorter)
