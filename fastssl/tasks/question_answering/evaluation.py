"""How well a model answers labelled questions."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastssl.data.squad import Question, QuestionFile
from fastssl.data.tokenizer import Tokenizer
from fastssl.tasks.example_batches import TOKENS_PER_BATCH
from fastssl.tasks.question_answering.gold_answers import locate_answers, usable_questions
from fastssl.tasks.question_answering.scores import ScoredAnswer, answer_scores
from fastssl.tasks.question_answering.spans import SpanConfig, find_answer
from fastssl.tasks.question_answering.windows import QuestionWindows, WindowConfig, cut_windows, window_spans
from fastssl.training.distributed import World
from fastssl.training.evaluation import evaluation_mode


@torch.inference_mode()
def answer_logits(
    model: nn.Module,
    windows: QuestionWindows,
    *,
    dtype: torch.dtype = torch.float32,
    cancelled: Callable[[], bool] = lambda: False,
) -> np.ndarray | None:
    """Return the start and end scores of all tokens of the windows, end to end, (N, 2) fp32; None once it is cancelled.

    Windows go through the model longest first, packed without padding. The model is in evaluation mode meanwhile and in
    its former mode after.
    """
    offsets, lengths = windows.examples.offsets, windows.examples.lengths
    logits = np.empty((int(offsets[-1]), 2), dtype=np.float32)
    with evaluation_mode(model, dtype) as device:
        for numbers in windows.by_length(TOKENS_PER_BATCH):
            if cancelled():
                return None
            output = model(windows.batch(numbers).to(device))
            found = torch.stack((output.start_logits, output.end_logits), dim=1).float().cpu().numpy()
            pieces = np.split(found, np.cumsum(lengths[numbers])[:-1])
            for number, piece in zip(numbers, pieces, strict=True):
                logits[offsets[number] : offsets[number + 1]] = piece
    return logits


@dataclass(frozen=True, kw_only=True)
class AnswerEvaluation:
    """Measures a model on held-out questions: the loss, exact match and F1."""

    windows: QuestionWindows
    """Of the questions."""
    spans: Tensor
    """The answers in the windows, as `window_spans` returns them."""
    questions: Sequence[Question]
    """All labelled."""
    documents: Sequence[str]
    """The texts."""
    config: SpanConfig
    """Which spans count."""
    threshold: float | None
    """For "no answer"; see `find_answer`."""

    def __call__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        world: World | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Return "eval_loss" and the figures of `answer_scores` as "eval_..."; None once it is cancelled.

        Every process of `world` measures everything, so that all have the same figures.
        """
        logits = answer_logits(model, self.windows, dtype=dtype, cancelled=cancelled)
        if (world or World()).maximum([float(logits is None)])[0]:
            return None
        return {f"eval_{name}": value for name, value in self.figures(logits).items()}

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the figures by which checkpoints may be compared."""
        difference = -np.inf if self.threshold is None else 0.0
        kinds = {question.unanswerable for question in self.questions}
        gold = [() if unanswerable else ("answer",) for unanswerable in kinds]
        found = answer_scores([ScoredAnswer(text="", gold=one, no_answer_difference=difference) for one in gold], 0.0)
        return "loss", *(name for name in found if not name.endswith("threshold"))

    def figures(self, logits: np.ndarray) -> dict[str, float]:
        """Return "loss", the mean over windows with an answer, and the figures of `answer_scores`."""
        scored = []
        for number, question in enumerate(self.questions):
            answer = find_answer(
                self.windows,
                number,
                logits,
                question=question.text,
                document=self.documents[question.document],
                config=self.config,
                threshold=self.threshold,
            )
            difference = answer.no_answer_difference
            scored.append(
                ScoredAnswer(
                    text=answer.candidates[0].text if answer.candidates else "",
                    gold=() if question.unanswerable else tuple(gold.text for gold in question.answers),
                    no_answer_difference=-np.inf if difference is None else difference,
                )
            )
        threshold = np.inf if self.threshold is None else self.threshold
        return {"loss": mean_loss(self.windows, self.spans, logits)} | answer_scores(scored, threshold)


def can_settle_threshold(names: Container[str]) -> bool:
    """Whether figures of these names tell from which difference on "no answer" is best given: both kinds are asked."""
    return "best_f1" in names and "has_answer_f1" in names


def mean_loss(windows: QuestionWindows, spans: Tensor, logits: np.ndarray) -> float:
    """Return the mean over the windows with an answer of half the cross-entropies of its start and its end; 0 for none.

    Args:
        windows: W of them.
        spans: (W, 2), as `window_spans` returns them.
        logits: (tokens of all windows, 2) float.
    """
    losses = []
    for window, span in enumerate(spans.tolist()):
        if span[0] < 0:
            continue
        first = int(windows.examples.offsets[window])
        rows = logits[windows.document_rows(window)].astype(np.float64)
        if windows.allows_no_answer:
            rows = np.concatenate((logits[first : first + 1], rows))
        top = rows.max(0)
        chosen = logits[(first + span[0], first + span[1]), (0, 1)]
        losses.append(float((top + np.log(np.exp(rows - top).sum(0)) - chosen).mean()))
    return float(np.mean(losses)) if losses else 0.0


def make_evaluation(
    file: QuestionFile,
    *,
    tokenizer: Tokenizer,
    max_seq_length: int,
    windows: WindowConfig,
    spans: SpanConfig,
    threshold: float | None,
    say: Callable[[str], None],
) -> AnswerEvaluation:
    """Return what measures models on the questions of a file.

    Args:
        file: questions without text, document or label in it are left out, and told.
        tokenizer: of the models.
        max_seq_length: length of a window, in tokens.
        windows: how long documents are cut.
        spans: which spans count.
        threshold: for "no answer"; see `find_answer`.
        say: takes remarks.

    Raises:
        ValueError: where no question can be used.
    """
    questions = usable_questions(file, say)
    cut = cut_windows(
        tokenizer,
        [question.text for question in questions],
        file.documents,
        [question.document for question in questions],
        max_seq_length=max_seq_length,
        config=windows,
        allows_no_answer=threshold is not None,
    )
    located = locate_answers(cut, questions, file.documents)
    return AnswerEvaluation(
        windows=cut,
        spans=window_spans(cut, located.spans, located.known),
        questions=questions,
        documents=file.documents,
        config=spans,
        threshold=threshold,
    )
