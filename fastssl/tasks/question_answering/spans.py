"""From scores of tokens to answers: the best spans over all windows of a document."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastssl.tasks.question_answering.windows import QuestionWindows


@dataclass(frozen=True, kw_only=True)
class SpanConfig:
    """Which span of a document is taken for the answer."""

    max_answer_length: int = 30
    """Longest answer, in tokens."""
    no_answer_threshold: float | None = None
    """By how much the score of "no answer" must be above the best answer's to be given; None: as the model's config has
    it, which is that an answer is always given where the model was not trained to give none."""
    n_best: int = 3
    """How many answers to tell of, likeliest first."""

    def __post_init__(self) -> None:
        for name in ("max_answer_length", "n_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a document that may be the answer."""

    text: str
    """As it stands in the document."""
    start: int
    """Its first character in the document."""
    end: int
    """One behind its last character."""
    probability: float
    """Among all spans of at most `max_answer_length` tokens, and "no answer" where that is allowed."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answers to one question."""

    question: str
    """As given."""
    text: str
    """The answer; "" where there is none."""
    start: int | None
    """First character of the answer in the document; None where there is none."""
    end: int | None
    """One behind its last character."""
    probability: float
    """Of this answer, or of there being none."""
    no_answer_difference: float | None
    """Score of "no answer" less that of the best span, to be held against a threshold; inf for a document without any
    token; None where "no answer" is not allowed."""
    candidates: tuple[Span, ...]
    """The best spans, likeliest first, whether or not an answer is given."""


def find_answer(
    windows: QuestionWindows,
    number: int,
    logits: np.ndarray,
    *,
    question: str,
    document: str,
    config: SpanConfig,
    threshold: float | None,
) -> Answer:
    """Return the answer to one question.

    A span scores the sum of its start and its end, and in the window in which it scores highest; "no answer" that of
    [CLS], in the window in which it scores lowest (only if no window holds an answer there is none), both as in Hugging
    Face. Probabilities are the softmax over these scores.

    Args:
        windows: of all questions.
        number: which question.
        logits: (tokens of all windows, 2) float, start and end.
        question, document: the texts.
        config: lengths and numbers.
        threshold: "no answer" is given where it is above the best span by more than this; None: never.
    """
    scores = span_scores(windows, number, logits, config.max_answer_length)
    flat = scores.ravel()
    count = min(config.n_best, int(np.isfinite(flat).sum()))
    best = np.argpartition(-flat, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
    best = best[np.argsort(-flat[best], kind="stable")]
    nothing = no_answer_score(windows, number, logits) if windows.allows_no_answer else -np.inf
    total = np.logaddexp(_log_sum_exp(flat), nothing)
    offsets = windows.offsets[number]
    spans = []
    for index in best:
        first, more = divmod(int(index), scores.shape[1])
        start, end = int(offsets[first, 0]), int(offsets[first + more, 1])
        spans.append(
            Span(text=document[start:end], start=start, end=end, probability=float(np.exp(flat[index] - total)))
        )
    difference = float(nothing - flat[best[0]]) if count else np.inf
    silence = float(np.exp(nothing - total)) if windows.allows_no_answer else 0.0
    silent = not spans or (threshold is not None and difference > threshold)
    return Answer(
        question=question,
        text="" if silent else spans[0].text,
        start=None if silent else spans[0].start,
        end=None if silent else spans[0].end,
        probability=silence if silent else spans[0].probability,
        no_answer_difference=difference if windows.allows_no_answer else None,
        candidates=tuple(spans),
    )


def span_scores(windows: QuestionWindows, number: int, logits: np.ndarray, max_answer_length: int) -> np.ndarray:
    """Return (D, K) float64: the score of the span from each of D tokens of a document over 0 to K - 1 tokens more.

    -inf where no window holds the whole span.
    """
    num_tokens = len(windows.offsets[number])
    longest = max(1, min(max_answer_length, num_tokens))
    scores = np.full((num_tokens, longest), -np.inf)
    for window in windows.windows_of(number):
        sums = window_scores(windows, window, logits, longest)
        rows = scores[windows.first_tokens[window] :][: len(sums)]
        np.maximum(rows, sums, out=rows)
    return scores


def window_scores(windows: QuestionWindows, window: int, logits: np.ndarray, longest: int) -> np.ndarray:
    """Return (D, longest) float64: the same of the D tokens of the document in one window."""
    starts, ends = logits[windows.document_rows(window)].astype(np.float64).T
    ends = np.concatenate((ends, np.full(longest, -np.inf)))
    return starts[:, None] + np.lib.stride_tricks.sliding_window_view(ends, longest)[: len(starts)]


def no_answer_score(windows: QuestionWindows, number: int, logits: np.ndarray) -> float:
    """Return the lowest score of [CLS], as start and end, of a question's windows."""
    firsts = windows.examples.offsets[:-1][windows.windows_of(number)]
    return float(logits[firsts].astype(np.float64).sum(1).min())


def _log_sum_exp(values: np.ndarray) -> float:
    if not len(values) or not np.isfinite(top := values.max()):
        return -np.inf
    return float(top + np.log(np.exp(values - top).sum()))
