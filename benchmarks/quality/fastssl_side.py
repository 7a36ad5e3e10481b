"""fastssl's side: fine-tuned as `fastssl finetune` does it, measured as `fastssl evaluate` does it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.quality.problems import Problem
from benchmarks.quality.stopwatch import Stopwatch
from fastssl.data.squad import read_squad
from fastssl.tasks.classification.classifier import Classifier
from fastssl.tasks.finetuning import prepare_finetuning
from fastssl.tasks.finetuning_config import (
    ExamplesConfig,
    FinetuningConfig,
    FinetuningTrainingConfig,
    StartConfig,
    TaskName,
    TuningConfig,
)
from fastssl.tasks.labelled_texts import ColumnConfig, read_labelled_texts
from fastssl.tasks.question_answering.answerer import QuestionAnswerer
from fastssl.tasks.tagging.tagged_sentences import read_tagged_sentences
from fastssl.tasks.tagging.tagger import Tagger


def measure(
    problem: Problem, files: tuple[Path, Path], model: Path, seed: int, folder: Path
) -> tuple[Mapping[str, float], Stopwatch]:
    """Fine-tune and measure.

    Args:
        problem: the settings.
        files: to train on, and to measure on.
        model: directory of the pretrained weights.
        seed: of head, order and dropout.
        folder: where the model may go.

    Returns:
        The figures of the last weights, and how long the way from the files to them took.
    """
    train, held_out = files
    watch = Stopwatch()
    run = prepare_finetuning(
        FinetuningConfig(
            task=problem.task,
            examples=ExamplesConfig(train_file=train, max_seq_length=problem.max_seq_length),
            start=StartConfig(model=str(model)),
            tuning=TuningConfig(per_device_train_batch_size=problem.batch_size),
            training=FinetuningTrainingConfig(
                output_dir=str(folder),
                num_train_epochs=problem.num_epochs,
                learning_rate=problem.learning_rate,
                weight_decay=problem.weight_decay,
                seed=seed,
                save_strategy="no",
            ),
        )
    )
    watch.steps = run.run().step
    watch.stop()
    return FIGURES[problem.task](folder, held_out), watch


def _classes(model: Path, file: Path) -> dict[str, float]:
    return Classifier.load(model).evaluate(read_labelled_texts(file, ColumnConfig()))


def _tags(model: Path, file: Path) -> dict[str, float]:
    return Tagger.load(model).evaluate(read_tagged_sentences(file, ColumnConfig()))


def _answers(model: Path, file: Path) -> dict[str, float]:
    return QuestionAnswerer.load(model).evaluate(read_squad(file))


FIGURES: dict[TaskName, Callable[[Path, Path], dict[str, float]]] = {
    "classification": _classes,
    "tagging": _tags,
    "question_answering": _answers,
}
"""Task -> what measures the model of a directory on a file."""
