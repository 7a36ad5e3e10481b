"""Right answers: which questions of a file can be used, and where their answers stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastssl.data.squad import GoldAnswer, Question, QuestionFile
from fastssl.tasks.question_answering.windows import QuestionWindows, token_span

EMPTY_QUESTION, EMPTY_DOCUMENT, NO_LABEL = (
    "the question is empty",
    "the document is empty",
    "no answer is given, nor that there is none (is_impossible)",
)


def usable_questions(
    file: QuestionFile, say: Callable[[str], None], *, allows_no_answer: bool = True
) -> list[Question]:
    """Return the questions that have something to learn from or to measure; what is left out is told, with the reason.

    Args:
        file: the questions.
        say: takes the remarks.
        allows_no_answer: whether questions that the document does not answer are kept.

    Raises:
        ValueError: where none is left.
    """
    kept, left_out = [], Counter()
    for question in file.questions:
        reason = _reason_against(question, file.documents[question.document], allows_no_answer)
        if reason is None:
            kept.append(question)
        else:
            left_out[reason] += 1
    for reason, count in left_out.items():
        say(f"{file.path}: left out {count:,} of {len(file):,} questions: {reason}")
    if not kept:
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in left_out.items())
        raise ValueError(f"{file.path}: none of its {len(file):,} questions can be used: {reasons}")
    return kept


def _reason_against(question: Question, document: str, allows_no_answer: bool) -> str | None:
    if not question.text.strip():
        return EMPTY_QUESTION
    if not document.strip():
        return EMPTY_DOCUMENT
    if not question.labelled:
        return NO_LABEL
    if question.unanswerable and not allows_no_answer:
        return "the document does not answer it (is_impossible), and --no-answer never is given"
    return None


@dataclass(frozen=True, kw_only=True)
class LocatedAnswers:
    """The first answers of Q questions, as tokens of their documents."""

    spans: list[tuple[int, int] | None]
    """First and last token; None where there is no answer, or it was not found."""
    known: np.ndarray
    """(Q) bool: False where an answer was not found in its document."""
    num_moved: int
    """How many answers were not where the file says, but elsewhere in the document."""

    @property
    def num_lost(self) -> int:
        """How many answers were not found."""
        return int((~self.known).sum())


def locate_answers(windows: QuestionWindows, questions: Sequence[Question], documents: Sequence[str]) -> LocatedAnswers:
    """Find the first answer of each question in its document.

    Args:
        windows: of the questions.
        questions: Q of them, all labelled.
        documents: the texts.
    """
    spans, known, num_moved = [], np.ones(len(questions), dtype=bool), 0
    for number, question in enumerate(questions):
        span = None
        if not question.unanswerable:
            answer, document = question.answers[0], documents[question.document]
            start = character_of(answer, document)
            if start is not None:
                span = token_span(windows.offsets[number], start, start + len(answer.text))
                num_moved += span is not None and answer.start not in (None, start)
            known[number] = span is not None
        spans.append(span)
    return LocatedAnswers(spans=spans, known=known, num_moved=num_moved)


def character_of(answer: GoldAnswer, document: str) -> int | None:
    """Return where an answer stands: where the file says, or as near to it as possible; None where nowhere."""
    wanted = 0 if answer.start is None else answer.start
    if wanted >= 0 and document.startswith(answer.text, wanted):
        return wanted
    places, place = [], document.find(answer.text)
    while place >= 0:
        places.append(place)
        place = document.find(answer.text, place + 1)
    return min(places, key=lambda found: abs(found - wanted), default=None)
