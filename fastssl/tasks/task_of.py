"""Which task a model directory was fine-tuned for."""

from __future__ import annotations

from pathlib import Path

from fastssl.models.pretrained import read_config
from fastssl.tasks.finetuning_config import TaskName

HEADS: dict[str, TaskName] = {
    "BertForSequenceClassification": "classification",
    "BertForTokenClassification": "tagging",
    "BertForQuestionAnswering": "question_answering",
}
"""Class of a model, as its config.json names it -> what it does."""


def task_of(directory: str | Path) -> TaskName:
    """Return the task of a model, told by the class in its config.json; "classification" where none stands there.

    A directory of sentence-transformers, which has a modules.json, is of the task "embedding".

    Raises:
        FileNotFoundError: where there is no such directory, or no config in it.
        ValueError: for a model without a head for a task.
    """
    if (Path(directory) / "modules.json").is_file():
        return "embedding"
    architectures = read_config(directory).get("architectures") or ["BertForSequenceClassification"]
    for name in architectures:
        if name in HEADS:
            return HEADS[name]
    if not any(name.startswith("Bert") for name in architectures):
        raise ValueError(
            f"{directory} holds a {', '.join(architectures)}; what has a task here is a BERT that was fine-tuned for "
            f"one ({', '.join(sorted(set(HEADS.values())))})"
        )
    raise ValueError(
        f"{directory} holds a {', '.join(architectures)}, which was not fine-tuned for a task "
        f"({', '.join(sorted(set(HEADS.values())))}) and could only guess at random; "
        f"train it first (fastssl finetune --model {directory} --task ... --train-file ...)"
    )
