"""From sentence lengths to examples: which stretches of the corpus an epoch shows together.

A document is walked once with the draws of its own stream (`philox.DOCUMENT`), so it is planned alike whatever other
documents do. The pair objectives follow `create_instances_from_document` of the published BERT and ALBERT code; the
target length is drawn per example, not per document, so that a corpus of a few long documents gets short examples too.

Sources: Devlin et al., arXiv 1810.04805, appendix A.2; Lan et al., arXiv 1909.11942, section 3.1.
"""

import bisect
from collections.abc import Iterator, Sequence

import numpy as np

from fastssl.data.numpy_host.philox import DOCUMENT, Stream

Segments = tuple[tuple[int, int], ...]

NONE, NEXT_SENTENCE, SENTENCE_ORDER = 0, 1, 2
"""Codes of the sentence objectives."""


def plan_examples(
    piece_offsets: np.ndarray,
    document_offsets: np.ndarray,
    *,
    seed: int,
    epoch: int,
    sentence_objective: int,
    room: int,
    short_threshold: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the examples of an epoch in corpus order.

    Args:
        piece_offsets: (P + 1) int64, ascending: token where each piece (a sentence, or a part of a long one) begins;
            a piece has 1 to `room` tokens.
        document_offsets: (D + 1) int64, ascending: piece where each document begins; none is empty.
        seed: 64-bit key.
        epoch: number of the pass over the corpus.
        sentence_objective: `NONE`, `NEXT_SENTENCE` or `SENTENCE_ORDER`.
        room: tokens of an example without its special tokens.
        short_threshold: probability of a short target length, times 2^32.

    Returns:
        segments (X, S, 2) int64, begin and end in tokens of each segment, S = 1 for `NONE` and else 2;
        labels (X) int8: 1 = random next sentence, or swapped.
    """
    pieces, documents = piece_offsets.tolist(), document_offsets.tolist()
    segments: list[Segments] = []
    labels: list[int] = []
    for document in range(len(documents) - 1):
        stream = Stream(seed, DOCUMENT, epoch, document)
        planner = _Planner(pieces, documents, document, stream, room, short_threshold)
        walk = (planner.windows, planner.next_sentence_pairs, planner.sentence_order_pairs)[sentence_objective]
        for example, label in walk():
            segments.append(example)
            labels.append(label)
    shape = (len(segments), 1 if sentence_objective == NONE else 2, 2)
    return np.array(segments, dtype=np.int64).reshape(shape), np.array(labels, dtype=np.int8)


class _Planner:
    def __init__(
        self,
        pieces: Sequence[int],
        documents: Sequence[int],
        document: int,
        stream: Stream,
        room: int,
        short_threshold: int,
    ) -> None:
        self.pieces, self.documents, self.document = pieces, documents, document
        self.stream, self.room, self.short_threshold = stream, room, short_threshold
        self.begin, self.end = documents[document], documents[document + 1]

    def windows(self) -> Iterator[tuple[Segments, int]]:
        """Yield as many whole pieces as the target length holds, at least one."""
        first = self.begin
        while first < self.end:
            limit = self.pieces[first] + self._target_length()
            after = max(first + 1, bisect.bisect_right(self.pieces, limit, first, self.end + 1) - 1)
            yield ((self.pieces[first], self.pieces[after]),), 0
            first = after

    def next_sentence_pairs(self) -> Iterator[tuple[Segments, int]]:
        """Yield pairs whose second segment is the true continuation, or comes from another document.

        One half of each; a lone piece has no continuation and always gets a random one, as published.
        """
        first = self.begin
        while first < self.end:
            target = self._target_length()
            after = self._chunk_end(first, target, self.end)
            middle = self._split(first, after)
            a = (self.pieces[first], self.pieces[middle])
            random_next = after - first == 1 or bool(self.stream.next() >> 63)
            if random_next:
                b = self._random_segment(target - (a[1] - a[0]))
                after = middle  # the unused sentences are put back
            else:
                b = (self.pieces[middle], self.pieces[after])
            yield self._truncate(a, b), int(random_next)
            first = after

    def sentence_order_pairs(self) -> Iterator[tuple[Segments, int]]:
        """Yield two consecutive segments, half of them swapped; a lone piece is split inside."""
        first = self.begin
        while first < self.end:
            after = self._chunk_end(first, self._target_length(), self.end)
            if after - first > 1:
                middle = self.pieces[self._split(first, after)]
            else:
                middle = self.pieces[first] + 1 + self.stream.below(max(1, self.pieces[after] - self.pieces[first] - 1))
            swapped = bool(self.stream.next() >> 63)
            a, b = (self.pieces[first], middle), (middle, self.pieces[after])
            if middle < self.pieces[after]:
                yield self._truncate(*((b, a) if swapped else (a, b))), int(swapped)
            first = after

    def _target_length(self) -> int:
        return 2 + self.stream.below(self.room - 1) if self.stream.happens(self.short_threshold) else self.room

    def _chunk_end(self, first: int, target: int, end: int) -> int:
        """Return the piece after the shortest run from `first` that reaches the target length, or `end`."""
        wanted = self.pieces[first] + max(1, target)
        return min(end, bisect.bisect_left(self.pieces, wanted, first + 1, end + 1))

    def _split(self, first: int, after: int) -> int:
        return first + (1 + self.stream.below(after - first - 1) if after - first > 1 else 1)

    def _random_segment(self, target: int) -> tuple[int, int]:
        other = self.stream.below(len(self.documents) - 2)
        other += other >= self.document
        begin, end = self.documents[other], self.documents[other + 1]
        first = begin + self.stream.below(end - begin)
        return self.pieces[first], self.pieces[self._chunk_end(first, target, end)]

    def _truncate(self, a: tuple[int, int], b: tuple[int, int]) -> Segments:
        """Take tokens off the longer segment, at its front or its back by one random bit each, until both fit."""
        segments = [list(a), list(b)]
        excess, bits = a[1] - a[0] + b[1] - b[0] - self.room, 0
        for i in range(excess):
            bits = self.stream.next() if i % 64 == 0 else bits >> 1
            longer = segments[0] if segments[0][1] - segments[0][0] > segments[1][1] - segments[1][0] else segments[1]
            if bits & 1:
                longer[0] += 1
            else:
                longer[1] -= 1
        return tuple(segments[0]), tuple(segments[1])
