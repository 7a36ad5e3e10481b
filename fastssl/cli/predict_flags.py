"""The flags of ``fastssl predict``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from fastssl.tasks.labelled_texts import ColumnConfig


@dataclass(frozen=True, kw_only=True)
class PredictFlags:
    """Classify texts, or tag their words, with a fine-tuned model, with probabilities.

    One text, or two that belong together; or --file; or the lines of standard input, a pair with a tab between its
    texts. Results come in the order given. A model that tags words takes any number of sentences, and a file of words
    (.conllu, .conll, .jsonl), or of one sentence a line (.txt).

    Examples:
      fastssl predict --model runs/sentiment "this is good"
      fastssl predict --model runs/entailment "A person on a horse jumps." "A person is outdoors."
      fastssl predict --model runs/sentiment --file reviews.jsonl --text-column review --json > predictions.jsonl
      cat reviews.txt | fastssl predict --model runs/sentiment --json
      fastssl predict --model runs/parts-of-speech "I saw a saw"
    """

    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """A text, or a pair of texts, or sentences to tag; "-" or nothing: the lines of standard input."""
    model: Path
    """Directory of a fine-tuned model."""
    file: Path | None = None
    """Instead: a .tsv, .csv or .jsonl file; for tagging .conllu, .conll, .jsonl or .txt."""
    columns: ColumnConfig = field(default_factory=ColumnConfig)
    """Which columns are meant."""
    max_seq_length: int | None = None
    """Longer texts are cut, in tokens; None: where they were cut in training."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in; int8 rounds its linear maps to 8 bits."""
    json: bool = False
    """Print one JSON object a line, with the probabilities of all labels, instead of a table."""
