"""``fastssl evaluate``: how good a fine-tuned model is on labelled examples."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastssl.cli.flags import parse_flags
from fastssl.tasks.classification import Classifier
from fastssl.tasks.labelled_texts import ColumnConfig, read_labelled_texts


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Measure a fine-tuned model on labelled examples.

    One of two classes: accuracy, F1 of the second, Matthews' correlation; of more: macro F1. Several classes at once:
    accuracy (all right), micro and macro F1. Regression: Pearson's and Spearman's correlation.

    Examples:
      fastssl evaluate --model runs/sentiment --eval-file dev.tsv
      fastssl evaluate --model runs/sentiment --eval-file test.csv --text-column review --label-column stars --json
    """

    model: Path
    """Directory of a fine-tuned model."""
    eval_file: Path
    """File to measure on: .tsv, .csv or .jsonl."""
    columns: ColumnConfig = field(default_factory=ColumnConfig)
    """Which columns are meant."""
    max_seq_length: int | None = None
    """Longer texts are cut, in tokens; None: where they were cut in training."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in; int8 rounds its linear maps to 8 bits."""
    json: bool = False
    """Print JSON instead of a table."""


def main(arguments: list[str]) -> int:
    """Print the figures of a model on a file."""
    flags = parse_flags(EvaluateFlags, arguments, program="fastssl evaluate")
    examples = read_labelled_texts(flags.eval_file, flags.columns)
    classifier = Classifier.load(flags.model, max_seq_length=flags.max_seq_length, dtype=flags.dtype)
    figures = classifier.evaluate(examples)
    f1_of = {"f1_of": classifier.label_set.names[1]} if "f1" in figures else {}
    if flags.json:
        print(json.dumps({"examples": len(examples), **figures, **f1_of}, indent=2, ensure_ascii=False))
        return 0
    table = Table("figure", "value", box=None, pad_edge=False, header_style="dim")
    table.columns[1].justify = "right"
    table.add_row("examples", f"{len(examples):,}")
    for name, value in figures.items():
        shown = f"f1 (of {f1_of['f1_of']})" if name == "f1" else name.replace("_", " ")
        table.add_row(Text(shown), f"{value:.4f}")
    Console(highlight=False).print(table)
    return 0
