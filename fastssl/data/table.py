"""Tables of texts and labels: tab-separated, comma-separated, or one JSON object a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastssl.data.bytes_of_file import read_lines

_COMPRESSED = (".gz", ".zst")
_CSV_FIELD_LIMIT = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file's columns by name, and the line that each row begins at."""

    path: Path
    """The file."""
    columns: dict[str, list[Any]]
    """Name -> one value a row: strings, and for JSON whatever the value is; None where an object lacks the key."""
    lines: list[int]
    """Line number of each row, from 1."""

    def place(self, row: int) -> str:
        """Return where a row stands, for errors."""
        return f"{self.path}, line {self.lines[row]}"


def read_table(
    path: str | Path,
    *,
    header: Sequence[str] | None = None,
    on_ragged: Callable[[str], None] | None = None,
    keep_empty: bool = False,
) -> Table:
    r"""Read a .tsv, .csv or .jsonl file, also with .gz or .zst behind it.

    A .tsv file (or .txt) has a header, fields between tabs, and no quoting, as the files of GLUE; a .csv file has a
    header and the quoting of spreadsheets; a .jsonl file has one object a line. Blank lines are passed over.

    Args:
        path: the file.
        header: names of the columns of a .tsv or .csv file that has none; its first line is then the first row.
        on_ragged: takes a description of each row that has fewer or more fields than the header, which is then left
            out; None makes it an error.
        keep_empty: whether rows without any text count, so that there is one for each line: in a .tsv or .csv file of
            one column a blank line, but for those at the end, and in a .tsv file of several nothing but tabs.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another kind of file, no rows, bytes that are not UTF-8, a row with fewer or more fields than the
            header, or a line that is not a JSON object; with the number of the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a table, .tsv, .csv or .jsonl")
    match ending_of(path):
        case ".tsv" | ".txt" | ".tab":
            table = _from_rows(path, _tab_separated(path, keep_empty), header, on_ragged, keep_empty)
        case ".csv":
            table = _from_rows(path, _comma_separated(path), header, on_ragged, keep_empty)
        case ".jsonl" | ".ndjson":
            table = read_objects(path)
        case _:
            raise ValueError(f"{path} has an unknown ending; expected .tsv, .csv or .jsonl (.gz or .zst of them too)")
    if not table.lines:
        raise ValueError(f"{path} has no rows; expected at least one example")
    return table


def ending_of(path: Path) -> str:
    """Return the ending of a file's name in lower case, without that of a compression; "" where it has none."""
    endings = [ending.lower() for ending in path.suffixes]
    while endings and endings[-1] in _COMPRESSED:
        endings.pop()
    return endings[-1] if endings else ""


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Iterate over the lines of a plain or compressed file, without their ends, each behind its number, from 1.

    Raises:
        ValueError: Bytes that are not UTF-8; names the line.
    """
    for number, (_, line) in enumerate(read_lines(path, lambda _: None), start=1):
        try:
            yield number, line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error}); save the file as UTF-8") from error


def _tab_separated(path: Path, keep_empty: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each line behind its number, none for a blank line."""
    for number, line in numbered_lines(path):
        holds_fields = line.strip() or (keep_empty and "\t" in line)
        yield number, line.split("\t") if holds_fields else []


def _comma_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row behind the number of its first line, none for a blank line."""
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    reader = csv.reader((line + "\n" for _, line in numbered_lines(path)), strict=True)
    while True:
        begins = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {begins}: {error}; is a quotation mark missing?") from error
        if row is None:
            return
        yield begins, row


def _from_rows(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    header: Sequence[str] | None,
    on_ragged: Callable[[str], None] | None,
    keep_empty: bool,
) -> Table:
    if header is None:
        header = next((row for _, row in rows if row), [])
    names = [name.strip() for name in header]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{path}: the header names a column twice: {', '.join(names)}; every column needs its own name"
        )
    values: list[list[str]] = []
    lines: list[int] = []
    blank: list[int] = []
    for number, row in rows:
        if not row:
            blank.append(number)
            continue
        if keep_empty and len(names) == 1:
            values += [[""]] * len(blank)
            lines += blank
        blank.clear()
        if len(row) != len(names):
            message = f"{path}, line {number}: {len(row)} fields, but the header has {len(names)} ({', '.join(names)})"
            if on_ragged is None:
                raise ValueError(message)
            on_ragged(message)
            continue
        values.append(row)
        lines.append(number)
    columns = zip(*values, strict=True) if values else [()] * len(names)
    return Table(path=path, columns={n: list(c) for n, c in zip(names, columns, strict=True)}, lines=lines)


def read_objects(path: Path) -> Table:
    """Read a file of one JSON object a line, whatever its ending; errors as in ``read_table``, no rows excepted."""
    objects: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(value).__name__}")
        objects.append(value)
        lines.append(number)
    names = dict.fromkeys(name for value in objects for name in value)
    return Table(path=path, columns={n: [value.get(n) for value in objects] for n in names}, lines=lines)
