"""Files of words with columns beside them, a word a line: CoNLL-U, and the plainer CoNLL formats."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastssl.data.table import ending_of, numbered_lines

CONLLU_COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_DOCUMENT_START = "-DOCSTART-"
_WORD_ID, _OTHER_ID = re.compile(r"\d+"), re.compile(r"\d+[-.]\d+")
_GLOBAL_COLUMNS = re.compile(r"#\s*global\.columns\s*=\s*(.*)")
_COMMENT = re.compile(r"#\s+(id\s|\S+\s*=)")
_WORD_TITLES = {"word", "words", "token", "tokens", "form", "text", "sentence"}
_TAG_TITLES = {"tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "pos", "pos_tag", "upos"}
Lines = list[tuple[int, str]]


@dataclass(frozen=True, kw_only=True)
class WordColumns:
    """A file of sentences, cut into words with a row of fields each."""

    path: Path
    """The file."""
    columns: tuple[str, ...]
    """Names of the fields; "1", "2" and so on where the file does not name them."""
    is_conllu: bool
    """Whether it is CoNLL-U, in which "_" means that a field is not specified."""
    sentences: list[list[list[str]]]
    """The rows of each sentence, at least one."""
    lines: list[list[int]]
    """The line number of each row, from 1."""


def read_word_columns(path: str | Path) -> WordColumns:
    """Read words with their columns, a word a line and a blank line between sentences; .gz and .zst of it too.

    CoNLL-U is told by the ending .conllu, a line ``# global.columns = ...`` (CoNLL-U Plus), or ten fields between tabs
    of which the first is a number; multi-word tokens (3-4) and empty nodes (5.1), which are no words of the sentence,
    are passed over. In all other files, fields stand between tabs, or between blanks where the first row has no tab;
    ``-DOCSTART-`` lines and comments are passed over, and a first row of well-known titles (word, tag, ...) names the
    columns.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row with fewer or more fields than the others, an ID that is none, bytes that are not UTF-8 (each
            with the number of the line), or no words at all.

    Source: universaldependencies.org/format.html; Tjong Kim Sang and De Meulder 2003 (cs/0306050) §2.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected words with their tags, a word a line")
    lines = list(numbered_lines(path))
    titles = next((match[1].split() for _, line in lines[:1] if (match := _GLOBAL_COLUMNS.match(line))), None)
    if titles is not None or ending_of(path) == ".conllu" or _looks_like_conllu(lines):
        columns, is_conllu = tuple(titles or CONLLU_COLUMNS), True
        rows = _conllu_rows(path, lines, columns)
    else:
        tabs, columns, lines = _layout(lines)
        rows, is_conllu = _plain_rows(path, lines, tabs, columns), False
    sentences, numbers = _sentences(rows)
    if not sentences:
        raise ValueError(f"{path} has no words; expected a word a line with its tag, and blank lines between sentences")
    return WordColumns(path=path, columns=columns, is_conllu=is_conllu, sentences=sentences, lines=numbers)


def _looks_like_conllu(lines: Lines) -> bool:
    first = next((line.split("\t") for _, line in lines if line.strip() and not line.startswith("#")), [])
    return len(first) == len(CONLLU_COLUMNS) and bool(_WORD_ID.fullmatch(first[0]) or _OTHER_ID.fullmatch(first[0]))


def _conllu_rows(path: Path, lines: Lines, columns: Sequence[str]) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the rows that are words, each behind its line number, and None for the end of a sentence."""
    number_column = columns.index("ID") if "ID" in columns else None
    for number, line in lines:
        if not line.strip():
            yield number, None
        elif not line.startswith("#"):
            fields = line.split("\t")
            if len(fields) != len(columns):
                raise ValueError(
                    f"{path}, line {number}: expected {len(columns)} fields between tabs ({', '.join(columns)}), "
                    f"got {len(fields)}: {line[:60]!r}"
                )
            word_id = "1" if number_column is None else fields[number_column]
            if _WORD_ID.fullmatch(word_id):
                yield number, fields
            elif not _OTHER_ID.fullmatch(word_id):
                raise ValueError(
                    f"{path}, line {number}: the ID of a word must be a number such as 3, 3-4 or 5.1, got {word_id!r}"
                )


def _layout(lines: Lines) -> tuple[bool, tuple[str, ...], Lines]:
    """Return whether fields stand between tabs, the names of the columns, and the lines behind a row of titles."""
    rows = [index for index, (_, line) in enumerate(lines) if line.strip() and not line.startswith(_DOCUMENT_START)]
    first = next((index for index in rows if not lines[index][1].startswith("#")), rows[0] if rows else None)
    if first is None:
        return False, (), lines
    tabs = "\t" in lines[first][1]
    fields = _fields(lines[first][1], tabs)
    titles = [field.strip().lower() for field in fields]
    if len(set(titles)) > 1 and titles[0] in _WORD_TITLES and titles[-1] in _TAG_TITLES:
        return tabs, tuple(field.strip() for field in fields), lines[first + 1 :]
    return tabs, tuple(str(number + 1) for number in range(len(fields))), lines


def _plain_rows(path: Path, lines: Lines, tabs: bool, columns: Sequence[str]) -> Iterator[tuple[int, list[str] | None]]:
    begins = True
    for number, line in lines:
        if not line.strip() or line.startswith(_DOCUMENT_START):
            begins = True
            yield number, None
            continue
        fields = _fields(line, tabs)
        if begins and line.startswith("#") and (len(fields) != len(columns) or _COMMENT.match(line)):
            continue
        if len(fields) != len(columns):
            between = "tabs" if tabs else "blanks"
            raise ValueError(
                f"{path}, line {number}: expected {len(columns)} fields between {between}, as in the first row, got "
                f"{len(fields)}: {line[:60]!r}"
            )
        begins = False
        yield number, fields


def _fields(line: str, tabs: bool) -> list[str]:
    # Not str.split(): it would cut at a no-break space, which may be part of a word.
    return line.split("\t") if tabs else re.split(r"[ \t]+", line.strip(" \t"))


def _sentences(rows: Iterator[tuple[int, list[str] | None]]) -> tuple[list[list[list[str]]], list[list[int]]]:
    sentences: list[list[list[str]]] = [[]]
    lines: list[list[int]] = [[]]
    for number, fields in rows:
        if fields is not None:
            sentences[-1].append(fields)
            lines[-1].append(number)
        elif sentences[-1]:
            sentences.append([])
            lines.append([])
    return ([s for s in sentences if s], [n for n in lines if n])
