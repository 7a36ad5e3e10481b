"""Questions for Hugging Face's model: windows before it, and answers from its numbers after it.

As its example script for question answering: windows that overlap, labelled with [CLS] where the answer is not inside;
of the twenty best starts and ends of each window, the best pair over all windows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_STRIDE, _N_BEST, _MAX_ANSWER_LENGTH = 128, 20, 30


@dataclass(frozen=True, kw_only=True)
class PlainQuestion:
    """A question with its document."""

    text: str
    document: str
    answers: Sequence[str]
    """What is right."""
    start: int
    """The first character of the first of them."""


@dataclass(frozen=True, kw_only=True)
class PlainWindow:
    """What the model reads at once."""

    question: int
    """Number of the question."""
    inputs: Mapping[str, list[int]]
    """Of the model."""
    offsets: Sequence[tuple[int, int] | None]
    """The characters of the document that each token stands for; None for tokens that are not of the document."""
    span: Mapping[str, int]
    """The first and the last token of the answer."""


def read_questions(path: Path) -> list[PlainQuestion]:
    """Return the questions of a file in SQuAD's format."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [
        PlainQuestion(
            text=question["question"].lstrip(),
            document=paragraph["context"],
            answers=[answer["text"] for answer in question["answers"]],
            start=question["answers"][0]["answer_start"],
        )
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def question_windows(tokenizer: Any, questions: Sequence[PlainQuestion], max_length: int) -> list[PlainWindow]:
    """Return the windows of all questions, in order."""
    encoded = tokenizer(
        [question.text for question in questions],
        [question.document for question in questions],
        truncation="only_second",
        max_length=max_length,
        stride=_STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = ("input_ids", "token_type_ids", "attention_mask")
    windows = []
    for window, number in enumerate(encoded["overflow_to_sample_mapping"]):
        sides = encoded.sequence_ids(window)
        spans = encoded["offset_mapping"][window]
        offsets = [span if side == 1 else None for span, side in zip(spans, sides, strict=True)]
        question = questions[number]
        first, last = _answer_tokens(offsets, question.start, question.start + len(question.answers[0]))
        windows.append(
            PlainWindow(
                question=number,
                inputs={name: encoded[name][window] for name in names},
                offsets=offsets,
                span={"start_positions": first, "end_positions": last},
            )
        )
    return windows


def best_answers(
    questions: Sequence[PlainQuestion], windows: Sequence[PlainWindow], starts: np.ndarray, ends: np.ndarray
) -> list[str]:
    """Return the answer to each question.

    Args:
        questions: Q of them.
        windows: W, of these questions.
        starts, ends: (W, T) the model's numbers; beyond a window's tokens they mean nothing.
    """
    best = [(-np.inf, "")] * len(questions)
    for window, start_row, end_row in zip(windows, starts, ends, strict=True):
        length, document = len(window.offsets), questions[window.question].document
        firsts, lasts = (np.argsort(row[:length])[::-1][:_N_BEST] for row in (start_row, end_row))
        for first in firsts:
            for last in lasts:
                one, other = window.offsets[first], window.offsets[last]
                if one is None or other is None or not 0 <= last - first < _MAX_ANSWER_LENGTH:
                    continue
                score = start_row[first] + end_row[last]
                if score > best[window.question][0]:
                    best[window.question] = (score, document[one[0] : other[1]])
    return [text for _, text in best]


def _answer_tokens(offsets: Sequence[tuple[int, int] | None], start: int, end: int) -> tuple[int, int]:
    """Return the tokens that cover the characters from `start` to `end`; (0, 0) where they are not all inside."""
    places = [number for number, span in enumerate(offsets) if span is not None]
    if not places or offsets[places[0]][0] > start or offsets[places[-1]][1] < end:
        return 0, 0
    inside = [number for number in places if offsets[number][0] < end and offsets[number][1] > start]
    return (inside[0], inside[-1]) if inside else (0, 0)
