"""From planned examples to the arrays of a packed batch: gather tokens, add [CLS] and [SEP], mask.

Masking visits the words of an example in random order. A visited word becomes the first of a span: of one word, or of
a drawn number of neighbouring words of its segment, made shorter until it exceeds the number of predictions no more; a
span that exceeds it even with one word, or that touches a chosen one, is skipped. With `whole_words` off every token
counts as a word. Special tokens belong to no word.

Sources: Devlin et al., arXiv 1810.04805, section 3.1 (80/10/10); Lan et al., arXiv 1909.11942, section 4.1 (n-grams);
Joshi et al., arXiv 1907.10529, section 3.1 (spans).
"""

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastssl.data.numpy_host.philox import MASKING, Stream

if TYPE_CHECKING:
    from fastssl.data.objectives import MaskingRules

_CHOSEN, _SPAN_START = 1, 2


def draw_examples(
    tokens: Sequence[np.ndarray],
    word_starts: Sequence[np.ndarray],
    part_offsets: np.ndarray,
    segments: np.ndarray,
    examples: np.ndarray,
    *,
    seed: int,
    epoch: int,
    rules: "MaskingRules",
) -> tuple[np.ndarray, ...]:
    """Draw a packed batch.

    Args:
        tokens: token ids of each part of the corpus, uint16 or uint32.
        word_starts: per part and token, 1 where a word begins, uint8 or bool.
        part_offsets: (parts + 1) int64: first token of each part in the whole corpus.
        segments: (B, S, 2) int64: begin and end, in tokens of the whole corpus, of each example's segments; a segment
            lies within one part.
        examples: (B) int64: the examples' numbers in their epoch, the items of their random draws.
        seed: 64-bit key.
        epoch: number of the pass over the corpus.
        rules: how to mask.

    Returns:
        input_ids (N) int64, cu_seqlens (B + 1) int32, position_ids (N) int64, token_type_ids (N) int64,
        masked_positions (M) int64, masked_labels (M) int64.
    """
    corpus = _Corpus(tokens, word_starts, part_offsets)
    drawn, types, places, labels, lengths = [], [], [], [], [0]
    for example, parts in zip(examples.tolist(), segments.tolist(), strict=True):
        ids, starts, segment = corpus.lay_out(parts, rules)
        stream = Stream(seed, MASKING, epoch, example)
        chosen = _choose(ids, starts, stream, rules)
        masked, originals = _replace(ids, chosen, stream, rules)
        places += [len(drawn) + place for place in masked]
        labels += originals
        drawn += ids
        types += segment
        lengths.append(len(ids))
    cu_seqlens = np.cumsum(lengths)
    positions = np.arange(len(drawn)) - np.repeat(cu_seqlens[:-1], lengths[1:])
    arrays = [np.array(values, dtype=np.int64) for values in (drawn, positions, types, places, labels)]
    return (arrays[0], cu_seqlens.astype(np.int32), *arrays[1:])


class _Corpus:
    def __init__(self, tokens: Sequence[np.ndarray], word_starts: Sequence[np.ndarray], part_offsets: np.ndarray):
        self.tokens, self.word_starts, self.offsets = tokens, word_starts, part_offsets.tolist()

    def lay_out(self, parts: list[list[int]], rules: "MaskingRules") -> tuple[list[int], list[int], list[int]]:
        """Return ids, word starts and segment numbers of [CLS] A [SEP] (B [SEP]); each segment starts a word."""
        if rules.align_boundary:
            parts = self._align(parts)
        ids, starts, segment = [rules.cls_id], [1], [0]
        for number, (begin, end) in enumerate(parts):
            ids += [*self._read(self.tokens, begin, end), rules.sep_id]
            starts += [1, *self._read(self.word_starts, begin, end)[1:], 1]
            segment += [number] * (end - begin + 1)
        return ids, starts, segment

    def _align(self, parts: list[list[int]]) -> list[list[int]]:
        """Move a boundary inside a word to the word's beginning, or its end where the segment has no other word."""
        (low, boundary), (follows, high) = sorted(parts)
        if boundary != follows:
            return parts
        starts = self._read(self.word_starts, low, high)
        if starts[boundary - low]:
            return parts
        before = [p for p in range(1, boundary - low) if starts[p]]
        after = [p for p in range(boundary - low + 1, high - low) if starts[p]]
        if before or after:
            boundary = low + (before[-1] if before else after[0])
        aligned = [[low, boundary], [boundary, high]]
        return aligned if parts[0][0] == low else aligned[::-1]

    def _read(self, arrays: Sequence[np.ndarray], begin: int, end: int) -> list[int]:
        part = bisect.bisect_right(self.offsets, begin) - 1
        return arrays[part][begin - self.offsets[part] : end - self.offsets[part]].astype(np.int64).tolist()


def _words(ids: list[int], starts: list[int], rules: "MaskingRules") -> tuple[list[int], list[int]]:
    """Return where the maskable words begin and end."""
    begins, ends = [], []
    special = set(rules.special_ids.tolist())
    for place, (token, start) in enumerate(zip(ids, starts, strict=True)):
        if token in special:
            continue
        if begins and ends[-1] == place and not start and rules.whole_words:
            ends[-1] += 1
        else:
            begins.append(place)
            ends.append(place + 1)
    return begins, ends


def _choose(ids: list[int], starts: list[int], stream: Stream, rules: "MaskingRules") -> list[int]:
    """Return per token 0, `_CHOSEN`, or `_SPAN_START` where its replacement is drawn anew."""
    begins, ends = _words(ids, starts, rules)
    order, taken, chosen = list(range(len(begins))), [False] * len(begins), [0] * len(ids)
    left = int(rules.prediction_counts[len(ids)])
    thresholds = rules.span_thresholds.tolist()
    for visited in range(len(order)):
        if left == 0:
            break
        other = visited + stream.below(len(order) - visited)
        order[visited], order[other] = order[other], order[visited]
        first = order[visited]
        if taken[first]:
            continue
        num_words = 1 + bisect.bisect_right(thresholds, stream.next() >> 32) if len(thresholds) > 1 else 1
        after = _span_end(begins, ends, first, left, num_words)
        if after == first or any(taken[first:after]):
            continue
        taken[first:after] = [True] * (after - first)
        for place in range(begins[first], ends[after - 1]):
            chosen[place] = _CHOSEN if rules.replace_spans_whole else _SPAN_START
        chosen[begins[first]] = _SPAN_START
        left -= ends[after - 1] - begins[first]
    return chosen


def _span_end(begins: list[int], ends: list[int], first: int, left: int, num_words: int) -> int:
    """Return the word after the longest allowed span from `first`: neighbouring words, at most `left` tokens."""
    after = first + 1
    while after - first < num_words and after < len(begins) and begins[after] == ends[after - 1]:
        after += 1
    while after > first and ends[after - 1] - begins[first] > left:
        after -= 1
    return after


def _replace(ids: list[int], chosen: list[int], stream: Stream, rules: "MaskingRules") -> tuple[list[int], list[int]]:
    """Replace chosen tokens in place; return their places and original ids."""
    special = rules.special_ids.tolist()
    places = [place for place, flag in enumerate(chosen) if flag]
    originals = [ids[place] for place in places]
    kind = 0
    for place in places:
        draw = stream.next()
        if chosen[place] == _SPAN_START:
            kind = draw >> 32
        if kind < rules.mask_threshold:
            ids[place] = rules.mask_id
        elif kind < rules.random_threshold:
            token = (draw & 0xFFFFFFFF) * (rules.vocab_size - len(special)) >> 32
            for special_id in special:
                token += token >= special_id
            ids[place] = token
    return places, originals
