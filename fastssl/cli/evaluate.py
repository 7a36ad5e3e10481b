"""``fastssl evaluate``: how good a fine-tuned model is on labelled examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from fastssl.cli.flags import parse_flags
from fastssl.cli.plain_table import plain_table
from fastssl.data.squad import read_squad
from fastssl.models.bert_files import note_no_answer_threshold
from fastssl.tasks.classification.classifier import Classifier
from fastssl.tasks.embedding.embedder import SentenceEmbedder
from fastssl.tasks.finetuning_config import TaskName
from fastssl.tasks.labelled_texts import ColumnConfig, read_labelled_texts
from fastssl.tasks.question_answering.answerer import QuestionAnswerer
from fastssl.tasks.question_answering.evaluation import answer_logits, can_settle_threshold
from fastssl.tasks.question_answering.spans import SpanConfig
from fastssl.tasks.question_answering.windows import WindowConfig
from fastssl.tasks.tagging.tagged_sentences import read_tagged_sentences
from fastssl.tasks.tagging.tagger import Tagger
from fastssl.tasks.task_of import task_of


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Measure a fine-tuned model on labelled examples.

    One of two classes: accuracy, F1 of the second, Matthews' correlation; of more: macro F1. Several classes at once:
    accuracy (all right), micro and macro F1. Regression: Pearson's and Spearman's correlation. Tags of words: accuracy,
    macro F1, and precision, recall and F1 of the spans that tags such as B-PER and I-PER spell. Answers to questions:
    exact match and F1 of the words (in Chinese and Japanese, of the characters); where some questions have no answer,
    also of both kinds apart, and with the best threshold for "no answer".
    Sentence embeddings (sentence1, sentence2, score): Spearman's and Pearson's correlation of cosines and scores;
    without scores, how often the text that belongs to another is the nearest of all, and among the ten nearest.

    Examples:
      fastssl evaluate --model runs/sentiment --eval-file dev.tsv
      fastssl evaluate --model runs/sentiment --eval-file test.csv --text-column review --label-column stars --json
      fastssl evaluate --model runs/parts-of-speech --eval-file en_ewt-ud-test.conllu
      fastssl evaluate --model runs/answers --eval-file dev-v2.0.json --no-answer-threshold 0 --keep-threshold
    """

    model: Path
    """Directory of a fine-tuned model; with --task embedding, of any BERT."""
    task: TaskName | None = None
    """What it is measured at; None: what it was fine-tuned for."""
    eval_file: Path
    """File to measure on: .tsv, .csv or .jsonl; for tagging .conllu, .conll or .jsonl; for question answering .json or
    .jsonl, in SQuAD's format."""
    columns: ColumnConfig = field(default_factory=ColumnConfig)
    """Which columns are meant."""
    windows: WindowConfig = field(default_factory=WindowConfig)
    """How long documents are cut."""
    spans: SpanConfig = field(default_factory=SpanConfig)
    """Which answers count."""
    keep_threshold: bool = False
    """Of question answering: note the threshold for "no answer" that gives the best F1 on this file in the model's
    config.json, for predict and evaluate to use; for a model that has none yet, with --no-answer-threshold 0."""
    max_seq_length: int | None = None
    """Longer texts are cut, in tokens; None: where they were cut in training."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in; int8 rounds its linear maps to 8 bits."""
    device: str = "auto"
    """Where: auto (a GPU where there is one; int8 always on the CPU), cpu, cuda or cuda:1."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured, to be shown."""

    num_examples: int
    """Of the file."""
    figures: Mapping[str, float]
    """Name -> value."""
    f1_of: str | None = None
    """The class that "f1" is of, if it is of one."""


def main(arguments: list[str]) -> int:
    """Print the figures of a model on a file."""
    flags = parse_flags(EvaluateFlags, arguments, program="fastssl evaluate")
    task = flags.task or task_of(flags.model)
    if flags.keep_threshold and task != "question_answering":
        raise ValueError(f"--keep-threshold is for question_answering, but {flags.model} is evaluated for {task}")
    measured = MEASURE[task](flags)
    if flags.json:
        f1_of = {} if measured.f1_of is None else {"f1_of": measured.f1_of}
        shown = {"examples": measured.num_examples, **measured.figures, **f1_of}
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0
    table = plain_table("figure", "value")
    table.columns[1].justify = "right"
    table.add_row("examples", f"{measured.num_examples:,}")
    for name, value in measured.figures.items():
        named = name == "f1" and measured.f1_of is not None
        table.add_row(Text(f"f1 (of {measured.f1_of})" if named else name.replace("_", " ")), f"{value:.4f}")
    Console(highlight=False).print(table)
    return 0


def _measure_classes(flags: EvaluateFlags) -> Measured:
    examples = read_labelled_texts(flags.eval_file, flags.columns)
    classifier = Classifier.load(
        flags.model, max_seq_length=flags.max_seq_length, dtype=flags.dtype, device=flags.device
    )
    figures = classifier.evaluate(examples)
    return Measured(
        num_examples=len(examples),
        figures=figures,
        f1_of=classifier.label_set.names[1] if "f1" in figures else None,
    )


def _measure_tags(flags: EvaluateFlags) -> Measured:
    sentences = read_tagged_sentences(flags.eval_file, flags.columns)
    tagger = Tagger.load(flags.model, max_seq_length=flags.max_seq_length, dtype=flags.dtype, device=flags.device)
    return Measured(num_examples=len(sentences), figures=tagger.evaluate(sentences))


def _measure_answers(flags: EvaluateFlags) -> Measured:
    file = read_squad(flags.eval_file)
    answerer = QuestionAnswerer.load(
        flags.model,
        max_seq_length=flags.max_seq_length,
        windows=flags.windows,
        spans=flags.spans,
        dtype=flags.dtype,
        device=flags.device,
    )
    remarks = Console(stderr=True, highlight=False)
    evaluation = answerer.evaluation(file, say=lambda text: remarks.print(text, markup=False, soft_wrap=True))
    figures = evaluation.figures(answer_logits(answerer.model, evaluation.windows))
    if flags.keep_threshold:
        _keep_threshold(flags, figures)
    return Measured(num_examples=len(evaluation.questions), figures=figures)


def _keep_threshold(flags: EvaluateFlags, figures: Mapping[str, float]) -> None:
    if not can_settle_threshold(figures):
        raise ValueError(
            f"--keep-threshold needs questions with and without an answer in {flags.eval_file}, and a model that may "
            "say that there is none (one that was not trained to does with --no-answer-threshold 0)"
        )
    note_no_answer_threshold(flags.model, figures["best_f1_threshold"])


def _measure_embeddings(flags: EvaluateFlags) -> Measured:
    needs_labels = flags.columns.label_column is not None
    examples = read_labelled_texts(flags.eval_file, flags.columns, needs_labels=needs_labels)
    embedder = SentenceEmbedder.load(
        flags.model, max_length=flags.max_seq_length, dtype=flags.dtype, device=flags.device
    )
    return Measured(num_examples=len(examples), figures=embedder.evaluate(examples))


MEASURE: dict[TaskName, Callable[[EvaluateFlags], Measured]] = {
    "classification": _measure_classes,
    "tagging": _measure_tags,
    "question_answering": _measure_answers,
    "embedding": _measure_embeddings,
}
"""Task -> what measures its models."""
