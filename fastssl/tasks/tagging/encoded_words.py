"""Sentences that are cut into words, as token ids: which token stands for which word, and windows of long sentences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastssl.data.batch import IGNORED_LABEL, PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.tasks.encoded_texts import EncodedTexts

_SHARED = 4
"""Two windows share about a quarter of their tokens."""


@dataclass(frozen=True, kw_only=True)
class EncodedWords:
    """X windows ``[CLS] words [SEP]`` over the W words of some sentences; most sentences are one window.

    Every word belongs to exactly one window, in which its first token stands for it. Where windows overlap, the others
    read it too, as context.
    """

    windows: EncodedTexts
    """The tokens of the windows."""
    word_offsets: np.ndarray
    """(X + 1) int64: where the words that belong to each window begin among all of them."""
    first_tokens: np.ndarray
    """(W) int64: index of each word's first token inside of its window."""
    num_split: int
    """How many sentences did not fit into one window."""
    num_cut: int
    """How many words alone did not fit into one: their last tokens are left out."""
    num_unspelled: int
    """How many words have nothing that the tokenizer could spell, such as control characters: [UNK] stands for them."""

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def num_words(self) -> int:
        """W, the number of words."""
        return len(self.first_tokens)

    def batch(self, numbers: np.ndarray, labels: Tensor | None = None) -> PackedBatch:
        """Return some windows as a batch; with `labels` (W), those of their words, -100 where a word has none."""
        batch = self.windows.batch(numbers)
        if labels is None:
            return batch
        words, positions = self.words_of(numbers)
        own = labels[words]
        known = own != IGNORED_LABEL
        return replace(batch, token_positions=positions[known], token_labels=own[known])

    def words_of(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the words that belong to some windows, and where in the batch of these their first tokens are."""
        counts = np.diff(self.word_offsets)[numbers]
        ends, lengths = np.cumsum(counts), self.windows.lengths[numbers]
        words = np.arange(ends[-1]) + np.repeat(self.word_offsets[numbers] - ends + counts, counts)
        positions = self.first_tokens[words] + np.repeat(np.cumsum(lengths) - lengths, counts)
        return torch.from_numpy(words), torch.from_numpy(positions)


def encode_words(tokenizer: Tokenizer, sentences: Sequence[Sequence[str]], *, max_seq_length: int) -> EncodedWords:
    """Encode sentences word by word; a sentence of more tokens than allowed is split into windows.

    What looks like a special token is read as ordinary characters.

    Args:
        tokenizer: of the model.
        sentences: lists of words, which may be empty.
        max_seq_length: most tokens of a window, [CLS] and [SEP] included.
    """
    special, room = tokenizer.special, max_seq_length - 2
    if room < 1:
        raise ValueError(f"max_seq_length must leave room for words beside the special tokens, got {max_seq_length}")
    start, end = np.array([special.cls], dtype=np.int32), np.array([special.sep], dtype=np.int32)
    pieces, lengths, word_counts, first_tokens = [], [], [], []
    num_split = num_cut = num_unspelled = 0
    for ids, counts in tokenizer.encode_words(sentences):
        num_unspelled += int((counts == 0).sum())
        num_cut += int((counts > room).sum())
        ids, counts = _spelled_and_cut(ids, counts, special.unk, room)
        ends = np.concatenate(([0], np.cumsum(counts)))
        windows = split_into_windows(counts, room)
        num_split += len(windows) > 1
        for window in windows:
            first, last = ends[window.first], ends[window.end]
            pieces += [start, ids[first:last], end]
            lengths.append(int(last - first) + 2)
            word_counts.append(window.own_end - window.own_first)
            first_tokens.append(ends[window.own_first : window.own_end] - first + 1)
    return EncodedWords(
        windows=EncodedTexts(
            tokens=np.concatenate(pieces or [np.empty(0, dtype=np.int32)]),
            offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
            first_lengths=np.array(lengths, dtype=np.int64),
            num_truncated=num_cut,
        ),
        word_offsets=np.concatenate(([0], np.cumsum(word_counts, dtype=np.int64))),
        first_tokens=np.concatenate(first_tokens or [np.empty(0, dtype=np.int64)]),
        num_split=num_split,
        num_cut=num_cut,
        num_unspelled=num_unspelled,
    )


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a sentence, in numbers of words."""

    first: int
    """The first word in it."""
    end: int
    """One behind the last."""
    own_first: int
    """The first word that belongs to it; those before belong to the window before."""
    own_end: int
    """One behind the last that belongs to it."""


def split_into_windows(counts: np.ndarray, room: int) -> list[Window]:
    """Cover the words of a sentence by windows that overlap by about a quarter.

    A word in an overlap belongs to the window in which it stands farther from the border, so that it is judged with
    context on both sides.

    Args:
        counts: (words) tokens of each word, at least 1 and at most `room`.
        room: most tokens of a window.

    Returns:
        As few windows as that takes, none for a sentence without words; own words follow one another without a gap.
    """
    if not len(counts):
        return []
    ends = np.concatenate(([0], np.cumsum(counts)))
    spans = []
    first = 0
    while True:
        end = int(np.searchsorted(ends, ends[first] + room, side="right")) - 1
        spans.append((first, end))
        if end == len(counts):
            break
        # The next one must reach at least one word farther than this one.
        begin = max(ends[end] - room // _SHARED, ends[end + 1] - room)
        first = int(np.searchsorted(ends, begin))
    borders = [0]
    for (_, end), (first, _) in itertools.pairwise(spans):
        borders.append(int(np.searchsorted(ends, (ends[first] + ends[end]) / 2)))
    borders.append(len(counts))
    found = [
        Window(first=first, end=end, own_first=own_first, own_end=own_end)
        for (first, end), (own_first, own_end) in zip(spans, itertools.pairwise(borders), strict=True)
    ]
    return [window for window in found if window.own_first < window.own_end]


def _spelled_and_cut(ids: np.ndarray, counts: np.ndarray, unknown: int, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Give words without a token the unknown one, and of words with more tokens than fit keep the first ones."""
    if not counts.size or (counts.min() > 0 and counts.max() <= room):
        return ids, counts
    starts = np.cumsum(counts) - counts
    ids = np.insert(ids, starts[counts == 0], unknown)
    counts = np.maximum(counts, 1)
    place_in_word = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ids[place_in_word < room], np.minimum(counts, room)
