"""Answers to questions, found in documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastssl.data.squad import QuestionFile
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert_question_answering import BertForQuestionAnswering
from fastssl.tasks.fine_tuned import check_vocabulary, checked_length, load_fine_tuned, trained_length
from fastssl.tasks.question_answering.evaluation import AnswerEvaluation, answer_logits, make_evaluation
from fastssl.tasks.question_answering.spans import Answer, SpanConfig, find_answer, window_scores
from fastssl.tasks.question_answering.windows import QuestionWindows, WindowConfig, cut_windows
from fastssl.tasks.streaming import one_by_one, stream_windows

USUAL_LENGTH = 384
"""Length of a window, in tokens, where none is given and the model has as many positions."""
QUESTIONS_AT_ONCE = 256
"""Questions of a stream that go together."""


@dataclass(frozen=True, kw_only=True)
class AnswerProbabilities:
    """The two softmax rows of a question and a document, over the document's D tokens in one window."""

    tokens: tuple[str, ...]
    """As the tokenizer spells them; [CLS], which stands for "no answer", comes first where that is allowed."""
    offsets: tuple[tuple[int, int], ...]
    """The characters of the document that each stands for; (0, 0) for [CLS]."""
    start: Tensor
    """(D) fp32: the probability of each token as the first of the answer; they sum to 1."""
    end: Tensor
    """(D) fp32: as the last."""


class QuestionAnswerer:
    """Answers questions from documents with a fine-tuned model: packed, longest first, in the order given.

    Each document is cut into tokens once, however many questions there are about it. May be called from several threads
    at once.

    Args:
        model: put into evaluation mode.
        tokenizer: of the model's vocabulary.
        max_seq_length: length of a window; None: 384, or the model's positions where they are fewer.
        windows: how long documents are cut.
        spans: which spans count.

    Raises:
        ValueError: where the tokenizer has ids that the model does not, or the lengths do not fit each other or the
            model's positions.
    """

    def __init__(
        self,
        model: BertForQuestionAnswering,
        tokenizer: Tokenizer,
        *,
        max_seq_length: int | None = None,
        windows: WindowConfig | None = None,
        spans: SpanConfig | None = None,
    ) -> None:
        check_vocabulary(model, tokenizer)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.windows, self.spans = windows or WindowConfig(), spans or SpanConfig()
        self.max_seq_length = window_length(max_seq_length, model.config.max_position_embeddings)
        self.windows.sizes(self.max_seq_length)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        max_seq_length: int | None = None,
        windows: WindowConfig | None = None,
        spans: SpanConfig | None = None,
        dtype: str = "fp32",
        device: str = "auto",
    ) -> QuestionAnswerer:
        """Read model and tokenizer from one directory; windows are as long as they were in training.

        Args:
            directory: of a fine-tuned model.
            max_seq_length: length of a window instead, in tokens.
            windows: how long documents are cut.
            spans: which spans count.
            dtype: "fp32", "bf16" or "int8" (see `fastssl.quantize`), of the computation.
            device: "auto" (a GPU where there is one; "int8" always the CPU), "cpu", "cuda" or "cuda:1".

        Raises:
            FileNotFoundError: where a part is missing.
            ValueError: where the model is none for question answering, a part is damaged, or the lengths do not fit.
        """
        model, tokenizer = load_fine_tuned(BertForQuestionAnswering, directory, "question_answering", dtype, device)
        if max_seq_length is None:
            max_seq_length = trained_length(directory, model.config.max_position_embeddings)
        return cls(model, tokenizer, max_seq_length=max_seq_length, windows=windows, spans=spans)

    @property
    def threshold(self) -> float | None:
        """For "no answer"; None where an answer is always given."""
        own = self.model.config.no_answer_threshold
        return own if self.spans.no_answer_threshold is None else self.spans.no_answer_threshold

    def __call__(self, questions: Iterable[str], documents: Iterable[str] | str) -> list[Answer]:
        """Return the answer to each question.

        Args:
            questions: any number of texts.
            documents: one for each question, or a single one for all.

        Raises:
            ValueError: for one string instead of several questions, documents of another number, or a question or
                document that is empty or no text.
        """
        questions = _texts("questions", questions)
        documents = [documents] * len(questions) if isinstance(documents, str) else list(documents)
        documents = _texts("documents", documents)
        if len(documents) != len(questions):
            raise ValueError(
                f"documents must hold one text for each of the {len(questions)} questions, got {len(documents)}"
            )
        if not questions:
            return []
        return self._answer(self._prepare(list(zip(questions, documents, strict=True))))

    def stream(
        self, questions: Iterable[tuple[str, str]], *, texts_at_once: int = QUESTIONS_AT_ONCE
    ) -> Iterator[Answer]:
        """Yield the answer to each question, in their order, as a call does.

        Memory does not grow with the number of questions, which may be endless.

        Args:
            questions: tuples of a question and its document.
            texts_at_once: questions that go together; twice as many are read ahead. Among them, each document is cut
                into tokens once.
        """
        parts = stream_windows(
            questions, self._prepare, self._answer, texts_at_once=texts_at_once, characters_of=_characters_of
        )
        return one_by_one(parts)

    def probabilities(self, question: str, document: str) -> AnswerProbabilities:
        """Return the two softmax rows: of each token of the document as the first and as the last of the answer.

        Of a document of several windows they are those of the window with the best span.

        Raises:
            ValueError: for a text that is empty or none.
        """
        question, document = _texts("questions", [question])[0], _texts("documents", [document])[0]
        windows = self._cut([question], [document])
        logits = answer_logits(self.model, windows)
        longest = self.spans.max_answer_length
        best = [window_scores(windows, window, logits, longest).max(initial=-np.inf) for window in range(len(windows))]
        window = int(np.argmax(best))
        rows = windows.document_rows(window)
        index = np.arange(rows.start, rows.stop)
        first = int(windows.first_tokens[window])
        offsets = [tuple(pair) for pair in windows.offsets[0][first : first + len(index)].tolist()]
        if windows.allows_no_answer:
            index, offsets = np.concatenate(([windows.examples.offsets[window]], index)), [(0, 0), *offsets]
        start, end = torch.from_numpy(logits[index]).softmax(0).unbind(1)
        tokens = tuple(self.tokenizer.id_to_token(token) for token in windows.examples.tokens[index])
        return AnswerProbabilities(tokens=tokens, offsets=tuple(offsets), start=start, end=end)

    def evaluate(self, file: QuestionFile, *, say: Callable[[str], None] = lambda _: None) -> dict[str, float]:
        """Return the loss, exact match and F1 on labelled questions; see `answer_scores`.

        Args:
            file: questions without text, document or label in it are left out, and told.
            say: takes the remarks.

        Raises:
            ValueError: where no question can be used.
        """
        evaluation = self.evaluation(file, say=say)
        return evaluation.figures(answer_logits(self.model, evaluation.windows))

    def evaluation(self, file: QuestionFile, *, say: Callable[[str], None] = lambda _: None) -> AnswerEvaluation:
        """Return what measures models on a file, with this one's windows and spans; arguments as in `evaluate`."""
        return make_evaluation(
            file,
            tokenizer=self.tokenizer,
            max_seq_length=self.max_seq_length,
            windows=self.windows,
            spans=self.spans,
            threshold=self.threshold,
            say=say,
        )

    def _prepare(self, pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], QuestionWindows]:
        questions, documents = zip(*pairs, strict=True)
        return pairs, self._cut(questions, documents)

    def _answer(self, prepared: tuple[list[tuple[str, str]], QuestionWindows]) -> list[Answer]:
        pairs, windows = prepared
        logits = answer_logits(self.model, windows)
        return [
            find_answer(
                windows,
                number,
                logits,
                question=question,
                document=document,
                config=self.spans,
                threshold=self.threshold,
            )
            for number, (question, document) in enumerate(pairs)
        ]

    def _cut(self, questions: Sequence[str], documents: Sequence[str]) -> QuestionWindows:
        distinct = {document: number for number, document in enumerate(dict.fromkeys(documents))}
        return cut_windows(
            self.tokenizer,
            questions,
            list(distinct),
            [distinct[document] for document in documents],
            max_seq_length=self.max_seq_length,
            config=self.windows,
            allows_no_answer=self.threshold is not None,
        )


def window_length(wanted: int | None, positions: int) -> int:
    """Return the length of windows: as wanted, or `USUAL_LENGTH`, or at the model's positions where these are fewer."""
    return checked_length(wanted or (min(USUAL_LENGTH, positions) if wanted is None else wanted), positions)


def _characters_of(number: int, asked: object) -> int:
    if not isinstance(asked, tuple) or len(asked) != 2:
        raise ValueError(
            f"questions must be tuples of a question and its document, got {type(asked).__name__} as number {number}"
        )
    for name, text in zip(("question", "document"), asked, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"the {name} of number {number} must be a string, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"the {name} of number {number} is empty")
    return sum(map(len, asked))


def _texts(name: str, values: Iterable[str]) -> list[str]:
    if isinstance(values, str):
        raise ValueError(f"{name} must be several strings, got one; put it into a list")
    values = list(values)
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{name} must be strings, got {type(value).__name__} as number {number}")
        if not value.strip():
            raise ValueError(f"{name} must not be empty, but number {number} is")
    return values
