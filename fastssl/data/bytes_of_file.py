"""The lines of a plain or compressed file as bytes, with their offsets."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

_CHUNK_BYTES = 1 << 20
_COMPRESSED_CHUNK_BYTES = 1 << 14
_GZIP = 16
_ZSTD_WINDOW_BYTES = 1 << 31
"""The longest that the zstd program writes, with --long=31; the library alone stops at 128 MiB."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_MAGIC = {
    b"\x1f\x8b": "gzip data without the ending .gz; rename it",
    b"\x28\xb5\x2f\xfd": "zstd data without the ending .zst; rename it",
    b"PAR1": "Parquet without the ending .parquet; rename it",
    b"PK\x03\x04": "a ZIP archive (or an Office document); unpack it, or save it as text",
    b"BZh": "bzip2 data; decompress it",
    b"\xfd7zXZ": "xz data; decompress it",
    b"%PDF": "a PDF; convert it, as with pdftotext",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x7fELF": "a program",
    b"\xff\xfe": "UTF-16 text; convert it, as in `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16 text; convert it, as in `iconv -f UTF-16 -t UTF-8`",
}


class BinaryFileError(ValueError):
    """A file does not hold text."""

    def __init__(self, path: Path, finding: str):
        super().__init__(f"{path} is not text: expected UTF-8, found {finding}")


def read_lines(path: Path, on_read: Callable[[int], None], *, keep_ends: bool = False) -> Iterator[tuple[int, bytes]]:
    r"""Iterate over a file's lines, without their ``\n``, each behind the offset of its first byte.

    Args:
        path: Decompressed while reading if its name ends in ``.gz`` or ``.zst``; offsets then count decompressed bytes.
        on_read: Called with the number of bytes of the file itself read since its last call.
        keep_ends: Leave each line its ``\n``: the lines are then the file, but for a byte order mark.

    Raises:
        BinaryFileError: It starts like a well-known kind of file that is not text.
        ValueError: Its compressed data is damaged or truncated.
    """
    chunks = _contents(path, on_read)
    first = next(chunks, b"")
    for magic, finding in _MAGIC.items():
        if first.startswith(magic):
            raise BinaryFileError(path, finding)
    offset = len(_BYTE_ORDER_MARK) if first.startswith(_BYTE_ORDER_MARK) else 0
    end = b"\n" if keep_ends else b""
    pending: list[bytes] = []
    for chunk in itertools.chain((first[offset:],), chunks):
        head, newline, tail = chunk.partition(b"\n")
        pending.append(head)
        if newline:
            *lines, rest = b"".join(pending), *tail.split(b"\n")
            pending = [rest]
            for line in lines:
                yield offset, line + end
                offset += len(line) + 1
    if last := b"".join(pending):
        yield offset, last


def _contents(path: Path, on_read: Callable[[int], None]) -> Iterator[bytes]:
    match path.suffix.lower():
        case ".gz":
            return _decompressed(path, lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | _GZIP), "gzip", on_read)
        case ".zst":
            zstd = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
            return _decompressed(path, zstd.decompressobj, "zstd", on_read)
        case _:
            return _raw(path, on_read, _CHUNK_BYTES)


def _raw(path: Path, on_read: Callable[[int], None], chunk_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            on_read(len(chunk))
            yield chunk


def _decompressed(path: Path, new: Callable[[], Any], method: str, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """Decompress members that follow one another, as ``cat a.gz b.gz`` makes; zeros behind the last are padding."""
    stream, num_bytes = new(), 0
    for chunk in _raw(path, on_read, _COMPRESSED_CHUNK_BYTES):
        data = chunk
        while data:
            if stream.eof:
                data = data.lstrip(b"\0")
                if not data:
                    break
                stream = new()
            try:
                decompressed = stream.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise ValueError(
                    f"{path} is damaged: no valid {method} data after {num_bytes} decompressed bytes ({error}); "
                    "fetch or compress it again"
                ) from error
            num_bytes += len(decompressed)
            for start in range(0, len(decompressed), _CHUNK_BYTES):
                yield decompressed[start : start + _CHUNK_BYTES]
            data = stream.unused_data if stream.eof else b""
    if not stream.eof:
        raise ValueError(
            f"{path} is truncated: its {method} data ends early, after {num_bytes} decompressed bytes; "
            "fetch or compress it again"
        )
