"""``fastssl predict``: what a fine-tuned model makes of texts."""

from __future__ import annotations

from collections.abc import Callable

from fastssl.cli.flags import parse_flags
from fastssl.cli.predict_answers import predict_answers
from fastssl.cli.predict_classes import predict_classes
from fastssl.cli.predict_flags import PredictFlags
from fastssl.cli.predict_tags import predict_tags
from fastssl.tasks.finetuning_config import TaskName
from fastssl.tasks.task_of import task_of


def _embeds(flags: PredictFlags) -> None:
    raise ValueError(
        f"{flags.model} embeds sentences, and vectors cannot be printed: `fastssl embed --model {flags.model}` writes "
        f"them to a file, `fastssl search --model {flags.model}` finds the lines that are nearest to a text"
    )


PREDICT: dict[TaskName, Callable[[PredictFlags], None]] = {
    "classification": predict_classes,
    "tagging": predict_tags,
    "question_answering": predict_answers,
    "embedding": _embeds,
}
"""Task -> what prints the predictions of its models."""


def main(arguments: list[str]) -> int:
    """Print what the model makes of every text."""
    flags = parse_flags(PredictFlags, arguments, program="fastssl predict")
    if flags.texts and flags.file is not None:
        raise ValueError("texts and file are both given; expected one of them")
    task = task_of(flags.model)
    asks = flags.document is not None or flags.question or flags.show_probabilities or flags.figure is not None
    if asks and task != "question_answering":
        raise ValueError(f"{flags.model} does not answer questions from a document: it was fine-tuned for {task}")
    PREDICT[task](flags)
    return 0
