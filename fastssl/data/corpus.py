"""Documents from text, JSON-lines and Parquet files, one at a time."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastssl.data.bytes_of_file import BinaryFileError, read_lines

MAX_DOCUMENT_CHARACTERS = 1 << 24

ENCODING_ERRORS = ("strict", "replace", "ignore")


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """What a document is, and what becomes of its white space."""

    exact: bool = False
    """False, for masked language models: blank lines part the documents of a text file, and documents are cut into
    sentences, which loses line ends. True, for causal ones: a document stays as it is, to the last line end."""
    document_separator: str | None = None
    """Of exact text: the line that parts two documents of a text file, such as <|endoftext|>; "" is an empty line;
    None: a text file is one document."""

    def __post_init__(self) -> None:
        if not self.exact and self.document_separator is not None:
            raise ValueError("document_separator is of exact text; sentences are of documents that blank lines part")


SENTENCES, EXACT = TextForm(), TextForm(exact=True)


def read_documents(
    path: str | Path,
    *,
    text_field: str = "text",
    encoding_errors: str = "strict",
    form: TextForm = SENTENCES,
    on_read: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """Iterate over the documents of a file, in memory bounded by the largest of them.

    By its name (``.gz`` and ``.zst`` behind any of the first two are decompressed):

    * ``.jsonl``, ``.ndjson``, ``.json``: one JSON object a line; its ``text_field`` is a document;
    * ``.parquet``: the column ``text_field`` holds a document a row;
    * anything else: UTF-8 text with a blank line between documents, or what ``form`` says. A document of more than
      16 Mi characters is cut at a line end, so that a file without any blank line does not fill the memory.

    Documents without a visible character are left out. A leading byte order mark is dropped; so are, unless ``form``
    is exact, carriage returns before line ends, and blank lines.

    Args:
        path: The file.
        text_field: Key or column of the text in JSON lines and Parquet.
        encoding_errors: What to do with bytes that are not UTF-8: "strict" stops, "replace" puts U+FFFD, "ignore"
            drops them.
        form: What a document of a text file is.
        on_read: Called with the number of bytes of the file read since its last call.

    Raises:
        FileNotFoundError, IsADirectoryError: There is no such file.
        ValueError: The file is empty, damaged, not text, not UTF-8, or holds no document; the message names the place.
    """
    path = Path(path)
    if encoding_errors not in ENCODING_ERRORS:
        raise ValueError(f"encoding_errors must be one of {', '.join(ENCODING_ERRORS)}, but is {encoding_errors!r}")
    check_file(path)
    kind = _kind(path)
    on_read = on_read or _ignore
    if kind == "parquet":
        documents = _parquet_documents(path, text_field, on_read)
    else:
        is_exact_text = form.exact and kind == "text"
        lines = _decoded_lines(path, encoding_errors, on_read, keep_ends=is_exact_text)
        if kind == "json":
            documents = _json_documents(path, lines, text_field)
        elif is_exact_text:
            documents = _exact_documents(lines, form.document_separator)
        else:
            documents = _text_documents(lines)
    found = False
    for document in documents:
        if document and not document.isspace():
            found = True
            yield document
    if not found:
        raise ValueError(f"{path} holds no documents: expected text, found only white space; leave the file out")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents of several files, to be read as often as needed."""

    paths: Sequence[str | Path]
    """The files, in order."""
    text_field: str = "text"
    """Key or column of the text in JSON lines and Parquet."""
    encoding_errors: str = "strict"
    """What to do with bytes that are not UTF-8, as in ``read_documents``."""
    form: TextForm = SENTENCES
    """What a document is, as in ``read_documents``."""
    max_characters: int | None = None
    """Read no more than this, taking the beginning of each file, in equal shares; None reads everything."""

    def __iter__(self) -> Iterator[str]:
        """Iterate over the documents of the first file, then of the second, and so on."""
        share = None if self.max_characters is None else self.max_characters // len(self.paths)
        for path in self.paths:
            num_characters = 0
            for document in read_documents(
                path, text_field=self.text_field, encoding_errors=self.encoding_errors, form=self.form
            ):
                yield document
                num_characters += len(document)
                if share is not None and num_characters >= share:
                    break


def _ignore(_: int) -> None:
    pass


def check_file(path: Path) -> None:
    """Raise the error that reading a path would raise at once: it is missing, a directory, or empty."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: expected a file; name the files in it, as in {path}/*.txt")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check its name")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected text; leave the file out")


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last == ".parquet":
        return "parquet"
    return "json" if last in (".jsonl", ".ndjson", ".json") else "text"


def _decoded_lines(
    path: Path, encoding_errors: str, on_read: Callable[[int], None], *, keep_ends: bool
) -> Iterator[str]:
    for offset, line in read_lines(path, on_read, keep_ends=keep_ends):
        if b"\0" in line:
            raise BinaryFileError(path, f"a NUL byte at byte {offset + line.index(0)}")
        try:
            text = line.decode("utf-8", errors=encoding_errors)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8: byte 0x{line[error.start]:02x} at byte {offset + error.start} "
                f"({error.reason}); convert it, as in `iconv -f LATIN1 -t UTF-8`, or go on with "
                "`--encoding-errors replace`"
            ) from error
        yield text if keep_ends else text.removesuffix("\r")


def _text_documents(lines: Iterator[str]) -> Iterator[str]:
    document: list[str] = []
    num_characters = 0
    for line in lines:
        if line and not line.isspace():
            document.append(line)
            num_characters += len(line)
        if document and (not line or line.isspace() or num_characters > MAX_DOCUMENT_CHARACTERS):
            yield "\n".join(document)
            document, num_characters = [], 0
    yield "\n".join(document)


def _exact_documents(lines: Iterator[str], separator: str | None) -> Iterator[str]:
    document: list[str] = []
    num_characters = 0
    for line in lines:
        is_separator = separator is not None and line.rstrip("\r\n") == separator
        if is_separator or num_characters > MAX_DOCUMENT_CHARACTERS:
            yield "".join(document)
            document, num_characters = [], 0
        if not is_separator:
            document.append(line)
            num_characters += len(line)
    yield "".join(document)


def _json_documents(path: Path, lines: Iterator[str], text_field: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not a JSON record ({error.msg} at column {error.colno}); expected one object a line"
            ) from error
        except (ValueError, RecursionError) as error:  # numbers too long, and lists too deep
            raise ValueError(
                f"{path}:{number}: cannot be read as JSON ({error}); leave that out of the record"
            ) from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{path}:{number}: expected a JSON object with {text_field!r}, found a {type(record).__name__}; "
                "put one object on each line"
            )
        text = _text_of(record, text_field, f"{path}:{number}")
        # JSON can spell half a surrogate pair, which is no character and would stop the tokenizer.
        yield text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if "\\ud" in line.lower() else text


def _text_of(record: dict[str, object], text_field: str, place: str) -> str:
    if text_field not in record:
        raise ValueError(
            f"{place}: no field {text_field!r}; it has {', '.join(map(repr, record)) or 'none'}; "
            "name the field of the text with `--text-field`"
        )
    text = record[text_field]
    if not isinstance(text, str):
        raise ValueError(
            f"{place}: the field {text_field!r} must be text, but is {type(text).__name__}; "
            "name the field of the text with `--text-field`"
        )
    return text


def _parquet_documents(path: Path, text_field: str, on_read: Callable[[int], None]) -> Iterator[str]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"reading {path} needs pyarrow, which is not installed; run `pip install fastssl[parquet]`")
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file or is truncated ({error}); fetch or write it again") from error
    with file:
        columns = file.schema_arrow.names
        if text_field not in columns:
            raise ValueError(
                f"{path}: no column {text_field!r}; it has {', '.join(map(repr, columns))}; "
                "name the column of the text with `--text-field`"
            )
        size_bytes, num_rows, row = path.stat().st_size, max(1, file.metadata.num_rows), 0
        for batch in _batches(path, file.iter_batches(batch_size=1024, columns=[text_field])):
            for text in batch.column(0).to_pylist():
                row += 1
                yield _text_of({text_field: text}, text_field, f"{path}, row {row}")
            on_read(size_bytes * row // num_rows - size_bytes * (row - batch.num_rows) // num_rows)


def _batches(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    """Iterate over a Parquet file's batches, and name the place of damage inside it."""
    num_rows = 0
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:  # pyarrow's, which do not say where
            raise ValueError(f"{path} is damaged behind row {num_rows} ({error}); fetch or write it again") from error
        if batch is None:
            return
        yield batch
        num_rows += batch.num_rows
