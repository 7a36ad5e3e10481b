"""The nine tasks of GLUE: their columns, labels, official metrics, and what people and BERT score.

Source: Wang, Singh, Michael, Hill, Levy and Bowman 2018 (arXiv 1804.07461) §3; people's scores: Nangia and Bowman 2019
(arXiv 1905.10425) and the leaderboard of gluebenchmark.com; BERT-base (cased, development set): the table of Hugging
Face's example ``run_glue``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastssl.models.bert_config import ProblemType

Measured = tuple[str, str]
"""A file of held-out examples, without its ending, and a figure on it."""


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task of GLUE. All scores are in per cent."""

    name: str
    """As on the leaderboard, also the name of its folder."""
    texts: tuple[str, ...]
    """Column of the text, or columns of the two texts."""
    label: str
    """Column of the label."""
    labels: tuple[str, ...]
    """The classes as the files spell them; empty for regression."""
    measured: tuple[Measured, ...]
    """The official figures, of which the task's score is the mean."""
    human: tuple[float, ...]
    """What people score in each, on the test set."""
    bert_base: tuple[float, ...]
    """What BERT-base scores in each, on the development set."""
    tests: tuple[tuple[str, str], ...]
    """File of test examples, without its ending -> name of its predictions in a submission."""
    header: tuple[str, ...] | None = None
    """Columns of training and development files where these have no header."""

    @property
    def key(self) -> str:
        """The name in lower case, without signs: "sst2"."""
        return key_of(self.name)

    @property
    def problem_type(self) -> ProblemType:
        """What the labels are."""
        return "single_label_classification" if self.labels else "regression"

    @property
    def splits(self) -> tuple[str, ...]:
        """Files of development examples, without their endings."""
        return tuple(dict.fromkeys(split for split, _ in self.measured))

    @property
    def figure_names(self) -> tuple[str, ...]:
        """Names of the figures for people: "F1", "accuracy, mismatched"."""
        return tuple(
            _FIGURES[figure] + ("" if split == "dev" else f", {split.removeprefix('dev_')}")
            for split, figure in self.measured
        )


def key_of(name: str) -> str:
    """Return a name in lower case, without signs: "sst2" for SST-2."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_FIGURES = {"matthews": "Matthews", "accuracy": "accuracy", "f1": "F1", "pearson": "Pearson", "spearman": "Spearman"}
_F1_AND_ACCURACY = (("dev", "f1"), ("dev", "accuracy"))
_ACCURACY = (("dev", "accuracy"),)
_ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS: tuple[GlueTask, ...] = (
    GlueTask(
        name="CoLA",
        texts=("sentence",),
        label="label",
        labels=("0", "1"),
        measured=(("dev", "matthews"),),
        human=(66.4,),
        bert_base=(56.53,),
        tests=(("test", "CoLA"),),
        header=("source", "label", "original_label", "sentence"),
    ),
    GlueTask(
        name="SST-2",
        texts=("sentence",),
        label="label",
        labels=("0", "1"),
        measured=_ACCURACY,
        human=(97.8,),
        bert_base=(92.32,),
        tests=(("test", "SST-2"),),
    ),
    GlueTask(
        name="MRPC",
        texts=("#1 String", "#2 String"),
        label="Quality",
        labels=("0", "1"),
        measured=_F1_AND_ACCURACY,
        human=(86.3, 80.8),
        bert_base=(88.85, 84.07),
        tests=(("test", "MRPC"),),
    ),
    GlueTask(
        name="STS-B",
        texts=("sentence1", "sentence2"),
        label="score",
        labels=(),
        measured=(("dev", "pearson"), ("dev", "spearman")),
        human=(92.7, 92.6),
        bert_base=(88.64, 88.48),
        tests=(("test", "STS-B"),),
    ),
    GlueTask(
        name="QQP",
        texts=("question1", "question2"),
        label="is_duplicate",
        labels=("0", "1"),
        measured=_F1_AND_ACCURACY,
        human=(59.5, 80.4),
        bert_base=(87.49, 90.71),
        tests=(("test", "QQP"),),
    ),
    GlueTask(
        name="MNLI",
        texts=("sentence1", "sentence2"),
        label="gold_label",
        labels=("contradiction", "entailment", "neutral"),
        measured=(("dev_matched", "accuracy"), ("dev_mismatched", "accuracy")),
        human=(92.0, 92.8),
        bert_base=(83.91, 84.10),
        tests=(("test_matched", "MNLI-m"), ("test_mismatched", "MNLI-mm")),
    ),
    GlueTask(
        name="QNLI",
        texts=("question", "sentence"),
        label="label",
        labels=_ENTAILMENT,
        measured=_ACCURACY,
        human=(91.2,),
        bert_base=(90.66,),
        tests=(("test", "QNLI"),),
    ),
    GlueTask(
        name="RTE",
        texts=("sentence1", "sentence2"),
        label="label",
        labels=_ENTAILMENT,
        measured=_ACCURACY,
        human=(93.6,),
        bert_base=(65.70,),
        tests=(("test", "RTE"),),
    ),
    GlueTask(
        name="WNLI",
        texts=("sentence1", "sentence2"),
        label="label",
        labels=("0", "1"),
        measured=_ACCURACY,
        human=(95.9,),
        bert_base=(56.34,),
        tests=(("test", "WNLI"),),
    ),
)
"""In the order of the paper."""


def task_named(name: str) -> GlueTask:
    """Return the task of a name in any spelling, such as sst2 or SST-2; ValueError where there is none."""
    for task in GLUE_TASKS:
        if task.key == key_of(name):
            return task
    raise ValueError(f"GLUE has no task {name!r}; expected some of {', '.join(task.name for task in GLUE_TASKS)}")
