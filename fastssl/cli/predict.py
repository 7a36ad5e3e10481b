"""``fastssl predict``: what a fine-tuned model makes of texts."""

from __future__ import annotations

from collections.abc import Callable

from fastssl.cli.flags import parse_flags
from fastssl.cli.predict_classes import predict_classes
from fastssl.cli.predict_flags import PredictFlags
from fastssl.cli.predict_tags import predict_tags
from fastssl.tasks.finetuning_config import TaskName
from fastssl.tasks.task_of import task_of

PREDICT: dict[TaskName, Callable[[PredictFlags], None]] = {
    "classification": predict_classes,
    "tagging": predict_tags,
}
"""Task -> what prints the predictions of its models."""


def main(arguments: list[str]) -> int:
    """Print what the model makes of every text."""
    flags = parse_flags(PredictFlags, arguments, program="fastssl predict")
    if flags.texts and flags.file is not None:
        raise ValueError("texts and file are both given; expected one of them")
    PREDICT[task_of(flags.model)](flags)
    return 0
