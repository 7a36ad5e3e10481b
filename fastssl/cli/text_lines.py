"""Texts, one a line, from a file or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastssl.data.bytes_of_file import read_lines
from fastssl.data.corpus import check_file

STANDARD_INPUT = Path("-")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def text_lines(file: Path) -> Iterator[str]:
    r"""Iterate over the lines of a file, also .gz or .zst, or of `STANDARD_INPUT`, without ``\n`` or ``\r\n``.

    A leading byte order mark is dropped.

    Raises:
        FileNotFoundError: There is no such file; told at once, before the first line is asked for.
        ValueError: Bytes that are not UTF-8; names the line.
    """
    if file == STANDARD_INPUT:
        return _decoded((line.rstrip(b"\n") for line in _without_mark(sys.stdin.buffer)), "standard input")
    check_file(file)
    return _decoded((line for _, line in read_lines(file, lambda num_bytes: None)), str(file))


def standard_text() -> str:
    r"""Return all of standard input as one text, each line end ``\n``, without a byte order mark and the last line end.

    Raises:
        ValueError: Bytes that are not UTF-8; names the first.
    """
    content = sys.stdin.buffer.read().removeprefix(_BYTE_ORDER_MARK)
    try:
        return content.decode().replace("\r\n", "\n").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 at byte {error.start + 1}; convert it, as with iconv") from error


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines):
        yield line.removeprefix(_BYTE_ORDER_MARK) if number == 0 else line


def _decoded(lines: Iterable[bytes], source: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{source} is not UTF-8 in line {number}, byte {error.start + 1}; convert it, as with iconv"
            ) from error
