"""Questions with the parts of their documents that a model reads at once: overlapping windows, and answers in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastssl.data.batch import IGNORED_LABEL, PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.tasks.encoded_texts import EncodedTexts

_SPECIAL_TOKENS = 3
_NO_ANSWER = (0, 0)


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """How a document that is longer than the model's input is read."""

    doc_stride: int | None = None
    """Tokens that two neighbouring windows of a long document share; None: 128, or a third of a short input."""
    max_query_length: int | None = None
    """Longer questions are cut, in tokens; None: at 64, or a third of a short input."""

    def __post_init__(self) -> None:
        if self.doc_stride is not None and self.doc_stride < 0:
            raise ValueError(f"doc_stride must be at least 0, got {self.doc_stride}")
        if self.max_query_length is not None and self.max_query_length < 1:
            raise ValueError(f"max_query_length must be at least 1, got {self.max_query_length}")

    def sizes(self, max_seq_length: int) -> tuple[int, int]:
        """Return `doc_stride` and `max_query_length` for an input length.

        Raises:
            ValueError: where they leave no room for the document.
        """
        stride = min(128, max_seq_length // 3) if self.doc_stride is None else self.doc_stride
        query = min(64, max_seq_length // 3) if self.max_query_length is None else self.max_query_length
        room = max_seq_length - query - _SPECIAL_TOKENS
        if room < 1 or stride >= room:
            raise ValueError(
                f"doc_stride={stride} must be below {max(room, 0)}, which max_seq_length={max_seq_length} leaves for "
                f"the document beside max_query_length={query} and {_SPECIAL_TOKENS} special tokens; lower doc_stride "
                "or max_query_length, or raise max_seq_length"
            )
        return stride, query


@dataclass(frozen=True, kw_only=True)
class QuestionWindows:
    """Q questions in W windows ``[CLS] question [SEP] part of the document [SEP]``, in the order of the questions."""

    examples: EncodedTexts
    """The windows; `first_lengths` is where the document begins in each, `num_truncated` counts questions that were
    cut."""
    question_of: np.ndarray
    """(W) int64: number of each window's question, ascending."""
    first_tokens: np.ndarray
    """(W) int64: the token of the document that a window begins with."""
    offsets: list[np.ndarray]
    """Q arrays (tokens of the document, 2) int64: the characters that its tokens stand for."""
    allows_no_answer: bool
    """Whether [CLS] may be the answer, meaning that there is none."""

    def __len__(self) -> int:
        return len(self.question_of)

    @property
    def document_lengths(self) -> np.ndarray:
        """(W) int64: tokens of the document in each window."""
        return self.examples.lengths - self.examples.first_lengths - 1

    def windows_of(self, question: int) -> range:
        """Return the numbers of a question's windows."""
        return range(*np.searchsorted(self.question_of, (question, question + 1)).tolist())

    def document_rows(self, window: int) -> slice:
        """Return which of all tokens of the windows, end to end, are the document in one of them."""
        first = self.examples.offsets[window] + self.examples.first_lengths[window]
        return slice(int(first), int(self.examples.offsets[window + 1]) - 1)

    def select(self, numbers: np.ndarray) -> QuestionWindows:
        """Return some of the windows, (W') int64 ascending; all questions keep their numbers."""
        examples = self.examples
        lengths = examples.lengths[numbers]
        shifts = examples.offsets[numbers] - np.cumsum(lengths) + lengths
        chosen = EncodedTexts(
            tokens=examples.tokens[np.arange(lengths.sum()) + np.repeat(shifts, lengths)],
            offsets=np.concatenate(([0], np.cumsum(lengths))),
            first_lengths=examples.first_lengths[numbers],
            num_truncated=examples.num_truncated,
        )
        return replace(
            self,
            examples=chosen,
            question_of=self.question_of[numbers],
            first_tokens=self.first_tokens[numbers],
        )

    def batch(self, numbers: np.ndarray, spans: Tensor | None = None) -> PackedBatch:
        """Return some windows as a batch.

        Args:
            numbers: (B) int64: of the windows.
            spans: (W, 2) int64 or None: the answers in all windows, as `window_spans` returns them.
        """
        batch = self.examples.batch(numbers)
        lengths = self.examples.lengths[numbers]
        positions = batch.position_ids.numpy()
        mask = positions >= np.repeat(self.examples.first_lengths[numbers], lengths)
        mask &= positions < np.repeat(lengths - 1, lengths)
        if self.allows_no_answer:
            mask |= positions == 0
        answers = {}
        if spans is not None:
            found = spans[torch.from_numpy(numbers)]
            rows = torch.where(found >= 0, found + batch.cu_seqlens[:-1, None], IGNORED_LABEL)
            answers = dict(zip(("answer_starts", "answer_ends"), rows.T.contiguous(), strict=True))
        return replace(batch, answer_mask=torch.from_numpy(mask), **answers)

    def by_length(self, tokens_per_batch: int) -> Iterator[np.ndarray]:
        """Yield the numbers of all windows, longest first, in groups of about `tokens_per_batch` tokens."""
        yield from self.examples.by_length(tokens_per_batch)


def cut_windows(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    documents: Sequence[str],
    document_of: Sequence[int],
    *,
    max_seq_length: int,
    config: WindowConfig,
    allows_no_answer: bool,
) -> QuestionWindows:
    """Encode questions and documents, each once, and cut the documents into windows.

    A window begins `doc_stride` tokens before the one in front of it ends; the last one ends with the document.

    Args:
        tokenizer: of the model.
        questions: Q texts, at least one.
        documents: any number of texts.
        document_of: Q numbers: the document of each question.
        max_seq_length: most tokens of a window, question and special tokens included.
        config: how windows are cut.
        allows_no_answer: whether [CLS] may be the answer.

    Raises:
        ValueError: where the lengths leave no room for the document.
    """
    stride, max_query_length = config.sizes(max_seq_length)
    whole = [ids for ids, _ in tokenizer.encode_with_offsets(questions)]
    asked = [ids[:max_query_length] for ids in whole]
    encoded = tokenizer.encode_with_offsets(documents)
    special = tokenizer.special
    start, end = np.array([special.cls], dtype=np.int32), np.array([special.sep], dtype=np.int32)
    pieces, lengths, first_lengths, question_of, first_tokens = [], [], [], [], []
    for number, (question, document) in enumerate(zip(asked, document_of, strict=True)):
        tokens = encoded[document][0]
        room = max_seq_length - len(question) - _SPECIAL_TOKENS
        for first in window_starts(len(tokens), room, stride):
            part = tokens[first : first + room]
            pieces += [start, question, end, part, end]
            lengths.append(len(question) + len(part) + _SPECIAL_TOKENS)
            first_lengths.append(len(question) + 2)
            question_of.append(number)
            first_tokens.append(first)
    return QuestionWindows(
        examples=EncodedTexts(
            tokens=np.concatenate(pieces),
            offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
            first_lengths=np.array(first_lengths, dtype=np.int64),
            num_truncated=sum(len(ids) > max_query_length for ids in whole),
        ),
        question_of=np.array(question_of, dtype=np.int64),
        first_tokens=np.array(first_tokens, dtype=np.int64),
        offsets=[encoded[document][1] for document in document_of],
        allows_no_answer=allows_no_answer,
    )


def window_starts(num_tokens: int, room: int, stride: int) -> list[int]:
    """Return where windows of `room` tokens begin that share `stride` tokens and cover all `num_tokens`."""
    starts = [0]
    while starts[-1] + room < num_tokens:
        starts.append(starts[-1] + room - stride)
    return starts


def token_span(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """Return the first and the last token that stand for any of the characters `start` to `end`, the last excluded.

    Args:
        offsets: (tokens, 2): the characters of each token.
        start, end: characters of the text.

    Returns:
        None where no token does, as between words.
    """
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else None


def window_spans(windows: QuestionWindows, answers: Sequence[tuple[int, int] | None], known: np.ndarray) -> Tensor:
    """Return the answer in each window: its first and last token, counted from the window's first.

    Where the answer is not wholly inside, and where there is none, that is [CLS] if it may be the answer, and otherwise
    nothing (-100): such a window is not trained on.

    Args:
        windows: W windows of Q questions.
        answers: Q spans of tokens of the documents; None: there is no answer.
        known: (Q) bool: whether the answer is known at all; others have nothing to train on.

    Returns:
        (W, 2) int64.
    """
    spans = np.array([(-1, -1) if span is None else span for span in answers], dtype=np.int64).reshape(-1, 2)
    spans = spans[windows.question_of]
    inside = (spans[:, 0] >= windows.first_tokens) & (spans[:, 1] < windows.first_tokens + windows.document_lengths)
    moved = spans + (windows.examples.first_lengths - windows.first_tokens)[:, None]
    otherwise = np.array(_NO_ANSWER if windows.allows_no_answer else (IGNORED_LABEL, IGNORED_LABEL))
    found = np.where((inside & (spans[:, 0] >= 0))[:, None], moved, otherwise)
    return torch.from_numpy(np.where(known[windows.question_of][:, None], found, IGNORED_LABEL))
