"""``fastssl predict`` for a tagger: a tag for every word of every sentence."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fastssl.cli.plain_table import plain_table
from fastssl.cli.predict_flags import PredictFlags
from fastssl.cli.text_lines import STANDARD_INPUT, text_lines
from fastssl.data.table import ending_of
from fastssl.tasks.labelled_texts import ColumnConfig
from fastssl.tasks.tagging.tagged_sentences import read_tagged_sentences
from fastssl.tasks.tagging.tagger import TaggedSentence, Tagger

_AT_ONCE = 1024
_SHOWN = 3


def predict_tags(flags: PredictFlags) -> None:
    """Print the tags of all words."""
    tagger = Tagger.load(flags.model, max_seq_length=flags.max_seq_length, dtype=flags.dtype, device=flags.device)
    console = Console(highlight=False)
    for one in tagger.stream(_sentences(flags), texts_at_once=_AT_ONCE):
        if flags.json:
            print(json.dumps(_as_json(one), ensure_ascii=False), flush=True)
        else:
            _print(console, one)


def _sentences(flags: PredictFlags) -> Iterator[str | list[str]]:
    """Yield plain sentences, or their words: a file is read as `finetune` and `evaluate` read it."""
    if flags.texts and flags.texts != (str(STANDARD_INPUT),):
        yield from flags.texts
    elif flags.file is not None:
        yield from _words_of(flags.file, flags.columns)
    else:
        lines = text_lines(STANDARD_INPUT)
        first = next(lines, None)
        if first is None:
            raise ValueError('there is no text; give one in quotes: fastssl predict --model DIR "a text"')
        yield from itertools.chain((first,), lines)


def _words_of(file: Path, columns: ColumnConfig) -> list[list[str]]:
    try:
        return read_tagged_sentences(file, columns, needs_tags=False).words
    except ValueError as error:
        if ending_of(file) != ".txt":
            raise
        raise ValueError(f"{error}; sentences, one a line, are read from standard input: < {file}") from error


def _as_json(sentence: TaggedSentence) -> dict:
    spans = None if sentence.spans is None else [vars(span) for span in sentence.spans]
    return {"text": sentence.text, "words": [vars(word) for word in sentence.words], "spans": spans}


def _print(console: Console, sentence: TaggedSentence) -> None:
    table = plain_table("word", "tag", "probabilities")
    for word in sentence.words:
        ranked = list(word.probabilities.items())
        shown = "  ".join(f"{name} {p:.1%}" for name, p in ranked[:_SHOWN]) + (" ..." if ranked[_SHOWN:] else "")
        table.add_row(Text(word.word), Text(word.tag, style="bold"), Text(shown))
    console.print(table)
    for span in sentence.spans or ():
        console.print(Text.assemble((span.label, "bold"), f": {span.text}"), soft_wrap=True)
    console.print()
