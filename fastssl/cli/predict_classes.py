"""``fastssl predict`` for a classifier: the classes of texts and pairs."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastssl.cli.plain_table import plain_table
from fastssl.cli.predict_flags import PredictFlags
from fastssl.cli.text_lines import STANDARD_INPUT, text_lines
from fastssl.tasks.classification.classifier import Classifier, Prediction
from fastssl.tasks.labelled_texts import read_labelled_texts

_AT_ONCE = 4096
_SHOWN = 3


def predict_classes(flags: PredictFlags) -> None:
    """Print what a classifier makes of every text."""
    if len(flags.texts) > 2:
        raise ValueError(
            f"expected one text or a pair, got {len(flags.texts)} texts; give many as --file, or one a line on "
            "standard input"
        )
    classifier = Classifier.load(
        flags.model, max_seq_length=flags.max_seq_length, dtype=flags.dtype, device=flags.device
    )
    stream = classifier.stream(text if pair is None else (text, pair) for text, pair in _examples(flags))
    console = Console(highlight=False)
    while predictions := list(itertools.islice(stream, _AT_ONCE)):
        if flags.json:
            print("\n".join(json.dumps(asdict(one), ensure_ascii=False) for one in predictions), flush=True)
        else:
            console.print(_table(predictions))


def _examples(flags: PredictFlags) -> Iterator[tuple[str, str | None]]:
    """Yield texts with their second texts, all with one or all without."""
    if flags.texts and flags.texts != (str(STANDARD_INPUT),):
        yield flags.texts[0], flags.texts[1] if len(flags.texts) == 2 else None
    elif flags.file is not None:
        # Each line has its result, so that the two files can be laid side by side.
        found = read_labelled_texts(flags.file, flags.columns, needs_labels=False, keep_empty=True)
        if found.num_empty:
            warnings.warn(f"{found.remark_on_empty}; what the model makes of them means nothing", stacklevel=1)
        yield from zip(found.texts, found.pairs or itertools.repeat(None), strict=False)
    else:
        yield from _standard_input()


def _standard_input() -> Iterator[tuple[str, str | None]]:
    paired = None
    for number, line in enumerate(text_lines(STANDARD_INPUT), start=1):
        text, tab, pair = line.partition("\t")
        if paired is None:
            paired = bool(tab)
        elif paired != bool(tab):
            kind = "a pair, with a tab between its texts" if paired else "a single text"
            raise ValueError(f"standard input, line {number}: expected {kind}, as in line 1")
        yield text, pair if tab else None
    if paired is None:
        raise ValueError('there is no text; give one in quotes: fastssl predict --model DIR "a text"')


def _table(predictions: list[Prediction]) -> Table:
    table = plain_table("label", "probabilities", "text")
    for one in predictions:
        label = f"{one.label:.4f}" if isinstance(one.label, float) else one.label
        label = ", ".join(label) if isinstance(label, tuple) else label
        ranked = list((one.probabilities or {}).items())
        shown = "  ".join(f"{name} {p:.1%}" for name, p in ranked[:_SHOWN]) + (" ..." if ranked[_SHOWN:] else "")
        text = one.text if one.pair is None else f"{one.text} | {one.pair}"
        table.add_row(Text(label, style="bold"), Text(shown), Text(text))
    return table
