"""Files of texts, pairs of texts and labels: which columns are meant, and what their labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastssl.data.table import Table, read_table

_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "answer"),
    ("query", "document"),
    ("query", "passage"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("anchor", "positive"),
    ("query", "positive"),
)
_TEXTS = ("sentence", "text", "review", "comment", "tweet", "document", "question", "content")
_LABELS = ("label", "labels", "gold_label", "class", "category", "sentiment", "score", "similarity", "target")


@dataclass(frozen=True, kw_only=True)
class ColumnConfig:
    """Which columns of a file are meant; well-known names (sentence, text, sentence1 ..., label) need not be given."""

    text_column: str | None = None
    """Column of the text, or of the first text of a pair; for tagging, of the words (by default FORM, the first column,
    or the key tokens or words)."""
    text_pair_column: str | None = None
    """Column of the second text."""
    label_column: str | None = None
    """Column of the label; for tagging, of the tags: a name such as XPOS, a number such as 4, or a key (by default
    UPOS, the last column, or tags, ner_tags, ...)."""


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """The examples of one file."""

    table: Table
    """Where they come from."""
    texts: list[str]
    """One a row."""
    pairs: list[str] | None
    """The second texts, or None where examples are single texts."""
    labels: list[Any] | None
    """As the file spells them; None where it has no labels and none are needed."""

    def __len__(self) -> int:
        return len(self.texts)

    def is_empty(self, row: int) -> bool:
        """Whether an example has no text at all."""
        return not self.texts[row].strip() and not (self.pairs and self.pairs[row].strip())

    @property
    def num_empty(self) -> int:
        """How many of the examples are empty."""
        return sum(map(self.is_empty, range(len(self))))

    @property
    def remark_on_empty(self) -> str:
        """What is to be said where there are such."""
        return f"{self.table.path}: {self.num_empty:,} of {len(self):,} examples have no text"

    def select(self, rows: Sequence[int]) -> LabelledTexts:
        """Return some of the examples."""

        def pick(values: list | None) -> list | None:
            return None if values is None else [values[row] for row in rows]

        table = Table(path=self.table.path, columns={}, lines=pick(self.table.lines))
        return LabelledTexts(table=table, texts=pick(self.texts), pairs=pick(self.pairs), labels=pick(self.labels))


def read_labelled_texts(
    path: str | Path, columns: ColumnConfig, *, needs_labels: bool = True, keep_empty: bool = False
) -> LabelledTexts:
    """Read a table of texts or pairs; see `fastssl.data.table.read_table` for the formats.

    Args:
        path: the file.
        columns: the names of its columns, as far as they are given; the others are found by well-known names.
        needs_labels: whether a file without labels is an error.
        keep_empty: whether rows without any text count, as in `read_table`.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a column that is not there (those that are there are listed), a damaged file, or a text that is
            none.
    """
    table = read_table(path, keep_empty=keep_empty)
    text, pair = _text_columns(table, columns)
    label = _label_column(table, columns.label_column, needed=needs_labels)
    return LabelledTexts(
        table=table,
        texts=_strings(table, text),
        pairs=None if pair is None else _strings(table, pair),
        labels=None if label is None else table.columns[label],
    )


def _text_columns(table: Table, wanted: ColumnConfig) -> tuple[str, str | None]:
    if wanted.text_pair_column is not None and wanted.text_column is None:
        raise ValueError("text_pair_column is given without text_column; name the first text's column too")
    if wanted.text_column is not None:
        pair = wanted.text_pair_column
        return _given(table, "text_column", wanted.text_column), pair and _given(table, "text_pair_column", pair)
    for first, second in _PAIRS:
        if (one := _found(table, first)) is not None and (other := _found(table, second)) is not None:
            return one, other
    for name in _TEXTS:
        if (one := _found(table, name)) is not None:
            return one, None
    raise ValueError(
        f"{table.path} has no column with a well-known name for texts; it has {', '.join(table.columns)}: "
        "name one with --text-column, and for pairs --text-pair-column"
    )


def _label_column(table: Table, wanted: str | None, *, needed: bool) -> str | None:
    if wanted is not None:
        return _given(table, "label_column", wanted) if needed or wanted in table.columns else None
    for name in _LABELS:
        if (found := _found(table, name)) is not None:
            return found
    if not needed:
        return None
    raise ValueError(
        f"{table.path} has no column with a well-known name for labels; it has {', '.join(table.columns)}: "
        "name one with --label-column"
    )


def _given(table: Table, option: str, name: str) -> str:
    if name not in table.columns:
        raise ValueError(f"{table.path} has no column {name!r} ({option}); it has {', '.join(table.columns)}")
    return name


def _found(table: Table, name: str) -> str | None:
    return next((column for column in table.columns if column.lower() == name), None)


def _strings(table: Table, column: str) -> list[str]:
    values = table.columns[column]
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{table.place(row)}: column {column!r} must hold a text, got {value!r}")
    return values
