"""The flags of ``fastssl predict``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from fastssl.tasks.labelled_texts import ColumnConfig
from fastssl.tasks.question_answering.spans import SpanConfig
from fastssl.tasks.question_answering.windows import WindowConfig


@dataclass(frozen=True, kw_only=True)
class PredictFlags:
    """Classify texts, tag their words, or answer questions from them, with a fine-tuned model, with probabilities.

    One text, or two that belong together; or --file; or the lines of standard input, a pair with a tab between its
    texts. Results come in the order given. A model that tags words takes any number of sentences, also one a line on
    standard input; its --file is one of words, as for `fastssl finetune`. A model that answers questions takes a
    --document with one --question or several, also one a line on standard input; or a --file in SQuAD's format.

    Examples:
      fastssl predict --model runs/sentiment "this is good"
      fastssl predict --model runs/entailment "A person on a horse jumps." "A person is outdoors."
      fastssl predict --model runs/sentiment --file reviews.jsonl --text-column review --json > predictions.jsonl
      cat reviews.txt | fastssl predict --model runs/sentiment --json
      fastssl predict --model runs/parts-of-speech "I saw a saw"
      fastssl predict --model runs/parts-of-speech --json < sentences.txt
      fastssl predict --model runs/answers --document weather.txt --question "What causes precipitation to fall?"
          --show-probabilities --figure rows.png
    """

    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """A text, or a pair of texts, or sentences to tag; "-" or nothing: the lines of standard input."""
    model: Path
    """Directory of a fine-tuned model."""
    file: Path | None = None
    """Instead: a file as for `fastssl finetune`, labels not needed: .tsv, .csv or .jsonl; for tagging CoNLL-U, a word a
    line, or lists of words in .jsonl (plain sentences: on standard input); for question answering .json or .jsonl, in
    SQuAD's format."""
    document: Path | None = None
    """Text file in which the answers are to be found."""
    question: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What is asked of the document; may be given several times."""
    show_probabilities: bool = False
    """Of question answering: print how likely each token of the document begins and ends the answer."""
    figure: Path | None = None
    """Of question answering: draw that for one question, into this file, such as rows.png."""
    windows: WindowConfig = field(default_factory=WindowConfig)
    """How long documents are cut."""
    spans: SpanConfig = field(default_factory=SpanConfig)
    """Which answers count."""
    columns: ColumnConfig = field(default_factory=ColumnConfig)
    """Which columns are meant."""
    max_seq_length: int | None = None
    """Longer texts are cut, in tokens; None: where they were cut in training."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in; int8 rounds its linear maps to 8 bits."""
    device: str = "auto"
    """Where: auto (a GPU where there is one; int8 always on the CPU), cpu, cuda or cuda:1."""
    json: bool = False
    """Print one JSON object a line, with the probabilities of all labels, instead of a table."""
