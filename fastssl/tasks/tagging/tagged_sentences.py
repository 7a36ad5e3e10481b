"""Files of sentences with a tag for each word: which columns are meant, and how words and tags are spelt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastssl.data.conll import WordColumns, read_word_columns
from fastssl.data.table import Table, ending_of, numbered_lines, read_objects
from fastssl.tasks.labelled_texts import ColumnConfig
from fastssl.tasks.labels import spelled

_WORDS = ("tokens", "words")
_TAGS = ("tags", "ner_tags", "pos_tags", "upos", "labels")
_FORM, _UPOS, _UNSPECIFIED = "FORM", "UPOS", "_"
_JSON_ENDINGS = (".jsonl", ".ndjson")
_OTHER_ENDINGS = (".csv", ".json", ".parquet")
_IGNORED = "-100"


@dataclass(frozen=True, kw_only=True)
class TaggedSentences:
    """The sentences of one file."""

    path: Path
    """Where they come from."""
    words: list[list[str]]
    """The words of each sentence."""
    tags: list[list[str | None]] | None
    """A tag for each word, None where the file gives it none; None where tags are not needed."""
    tag_column: str | None
    """The column of the tags."""
    lines: list[list[int]]
    """The line in which each word stands."""

    def __len__(self) -> int:
        return len(self.words)

    @property
    def num_words(self) -> int:
        """Words in all sentences."""
        return sum(map(len, self.words))


def read_tagged_sentences(path: str | Path, columns: ColumnConfig, *, needs_tags: bool = True) -> TaggedSentences:
    """Read words and tags, from CoNLL-U, from columns between tabs or blanks, or from one JSON object a line.

    See `read_word_columns` for the first two kinds of file. A .jsonl file (or another one whose first line is a JSON
    object) has a list of words and a list of tags in each row.

    Args:
        path: the file.
        columns: `text_column` names the words, `label_column` the tags. By default FORM and UPOS in CoNLL-U, the first
            and the last column in other columns, which are named by their number from 1 (the second and the last where
            the first numbers the words), and in JSON the first there is of "tokens", "words" and of "tags",
            "ner_tags", "pos_tags", "upos", "labels".
        needs_tags: whether the tags are read.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a column that is not there (those that are there are listed), a ragged row, more or fewer
            tags than words, no tag or no word in the whole file, texts for words, or a file of another kind.
    """
    path = Path(path)
    if columns.text_pair_column is not None:
        raise ValueError("text_pair_column is for pairs of texts; tagging has words (text_column) and tags")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected sentences with a tag for each word")
    if ending_of(path) in _OTHER_ENDINGS:
        raise ValueError(
            f"{path} has the ending {ending_of(path)}; expected CoNLL-U (.conllu), a word and its tag a line with "
            "blank lines between sentences (.conll, .iob, .bio, .tsv, .txt), or one JSON object a line (.jsonl)"
        )
    if ending_of(path) in _JSON_ENDINGS or _begins_with_an_object(path):
        found = _from_objects(read_objects(path), columns, needs_tags)
    else:
        found = _from_columns(read_word_columns(path), columns, needs_tags)
    if not any(found.words):
        raise ValueError(f"{path} has no words; expected at least one sentence")
    if found.tags is not None and all(tag is None for tags in found.tags for tag in tags):
        raise ValueError(
            f"{path}: no word has a tag in column {found.tag_column!r}; name another one with --label-column"
        )
    return found


def _begins_with_an_object(path: Path) -> bool:
    for _, line in numbered_lines(path):
        if line.strip():
            try:
                return isinstance(json.loads(line), dict)
            except ValueError:
                return False
    return False


def _from_columns(found: WordColumns, wanted: ColumnConfig, needs_tags: bool) -> TaggedSentences:
    form = _column(found, "text_column", wanted.text_column, default=_usual_words(found))
    tags, tag = None, None
    if needs_tags:
        if len(found.columns) < 2:
            raise ValueError(
                f"{found.path}, line {found.lines[0][0]}: expected a word and its tag, got one field: "
                f"{found.sentences[0][0][0]!r}"
            )
        default = _UPOS if found.is_conllu else found.columns[-1]
        tag = _column(found, "label_column", wanted.label_column, default=default)
        none = _UNSPECIFIED if found.is_conllu else None
        tags = [[_tag(row[tag], none) for row in rows] for rows in found.sentences]
        _check_no_gaps(found.path, tags, found.lines, found.is_conllu)
    words = [[row[form] for row in rows] for rows in found.sentences]
    _check_words(found, words, form)
    return TaggedSentences(
        path=found.path,
        words=words,
        tags=tags,
        tag_column=None if tag is None else found.columns[tag],
        lines=found.lines,
    )


def _check_words(found: WordColumns, words: list[list[str]], form: int) -> None:
    """Refuse a table of texts, whose lines would be read as the words of one endless sentence."""
    blanks = [" " in word.strip() for sentence in words for word in sentence]
    if 2 * sum(blanks) > len(blanks):
        raise ValueError(
            f"{found.path}, column {found.columns[form]!r}: expected a word a line, but most lines have several words, "
            "as in a table of texts; name another column with --text-column, or learn one class for each text "
            "(--task classification)"
        )


def _usual_words(found: WordColumns) -> str:
    if found.is_conllu:
        return _FORM
    numbered = all(row[0] == str(number) for rows in found.sentences for number, row in enumerate(rows, start=1))
    return found.columns[1 if numbered and len(found.columns) > 2 else 0]


def _column(found: WordColumns, option: str, name: str | None, *, default: str) -> int:
    name = default if name is None else name
    if name in found.columns:
        return found.columns.index(name)
    upper = [column.upper() for column in found.columns]
    if name.upper() in upper:
        return upper.index(name.upper())
    raise ValueError(f"{found.path} has no column {name!r} ({option}); it has {', '.join(found.columns)}")


def _check_no_gaps(path: Path, tags: list[list[str | None]], lines: list[list[int]], gaps_allowed: bool) -> None:
    if gaps_allowed:
        return
    for row, numbers in zip(tags, lines, strict=True):
        if None in row:
            raise ValueError(f"{path}, line {numbers[row.index(None)]}: there is a word without a tag")


def _from_objects(table: Table, wanted: ColumnConfig, needs_tags: bool) -> TaggedSentences:
    if not table.lines:
        raise ValueError(f"{table.path} has no rows; expected at least one sentence")
    word_key = _key(table, "text_column", wanted.text_column, _WORDS, "words")
    tag_key = _key(table, "label_column", wanted.label_column, _TAGS, "tags") if needs_tags else None
    words, tags = [], [] if needs_tags else None
    for row in range(len(table.lines)):
        sentence = _list(table, word_key, row)
        for word in sentence:
            if not isinstance(word, str):
                raise ValueError(f"{table.place(row)}: {word_key!r} must hold words, got {word!r:.60}")
        words.append(sentence)
        if tag_key is not None:
            tags.append(_tags_of(table, tag_key, row, sentence))
    return TaggedSentences(
        path=table.path,
        words=words,
        tags=tags,
        tag_column=tag_key,
        lines=[[line] * len(sentence) for line, sentence in zip(table.lines, words, strict=True)],
    )


def _key(table: Table, option: str, name: str | None, known: Sequence[str], what: str) -> str:
    keys = ", ".join(table.columns)
    if name is not None:
        if name not in table.columns:
            raise ValueError(f"{table.path} has no key {name!r} ({option}); it has {keys}")
        return name
    for candidate in known:
        if candidate in table.columns:
            return candidate
    flag = option.replace("_", "-")
    raise ValueError(
        f"{table.path} has no key with a well-known name for {what} ({', '.join(known)}); it has {keys}: name one with "
        f"--{flag}"
    )


def _list(table: Table, key: str, row: int) -> list[Any]:
    value = table.columns[key][row]
    if not isinstance(value, list):
        raise ValueError(f"{table.place(row)}: {key!r} must hold a list, one value a word, got {value!r:.60}")
    return value


def _tags_of(table: Table, key: str, row: int, sentence: list[str]) -> list[str | None]:
    values = _list(table, key, row)
    if len(values) != len(sentence):
        raise ValueError(
            f"{table.place(row)}: {key!r} has {len(values)} values for {len(sentence)} words; every word needs a tag, "
            "or null where it has none"
        )
    for value in values:
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{table.place(row)}: {key!r} must hold strings or numbers, got {value!r:.60}")
    return [_tag(value, _IGNORED) for value in values]


@lru_cache(maxsize=4096, typed=True)
def _tag(value: str | float | None, none: str | None) -> str | None:
    """Return a tag as it is spelt everywhere, None for what stands for none."""
    text = "" if value is None else spelled(value)
    return None if text in ("", none) else text
