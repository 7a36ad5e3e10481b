"""What the files of a shard directory contain: the index and the layout of a part, drawn in this folder's README."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastssl.data.files import read_checked_json, write_checked_json

INDEX_NAME = "index.json"
FORMAT_NAME = "fastssl token shards"
FORMAT_VERSION = 1

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("token_bytes", "<u4"),
        ("num_tokens", "<u8"),
        ("num_sentences", "<u8"),
        ("num_documents", "<u8"),
        ("vocab_size", "<u8"),
        ("reserved", "S16"),
    ]
)
_MAGIC = b"FSSLTOKS"
_ALIGNMENT = 64


class ShardError(ValueError):
    """A token shard is damaged, unfinished, or was made with another tokenizer."""


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """What the index says about one part file."""

    file: str
    """Name inside the directory."""
    size_bytes: int
    """Size of the file."""
    sha256: str
    """Checksum of the whole file."""
    num_tokens: int
    """Tokens in it."""
    num_sentences: int
    """Sentences in it."""
    num_documents: int
    """Documents in it."""
    next_source: int
    """Which of the index's sources the next part begins in; the number of sources if nothing is left."""
    next_document: int
    """Documents of that source that this part and those before it have used up."""


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What the index says about one text file."""

    path: str
    """Absolute path at the time of encoding."""
    size_bytes: int
    """Size at the time of encoding."""
    modified_ns: int
    """Modification time, nanoseconds since 1970."""
    sha256: str
    """Checksum of the file; empty until all of it is in the parts."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The table of contents of a shard directory: ``index.json``."""

    vocab_size: int
    """One more than the largest id that the tokenizer can give."""
    tokenizer_fingerprint: str
    """``Tokenizer.fingerprint`` of the tokenizer that made the ids."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the reader that change the ids."""
    complete: bool = False
    """Whether all of every source is in the parts."""
    sources: tuple[SourceInfo, ...] = ()
    """The text files, in the order of their parts."""
    parts: tuple[PartInfo, ...] = ()
    """The part files, in the order of the corpus."""

    def write(self, directory: Path) -> None:
        """Replace the directory's index in one step."""
        head = {"format": FORMAT_NAME, "version": FORMAT_VERSION}
        write_checked_json(directory / INDEX_NAME, {**head, **asdict(self)})

    @classmethod
    def read(cls, directory: Path) -> ShardIndex:
        """Read an index, finished or not.

        Raises:
            FileNotFoundError: The directory has no index.
            ShardError: The index is damaged or of another format.
        """
        file = directory / INDEX_NAME
        if not file.is_file():
            raise FileNotFoundError(
                f"no token shards at {directory}: {INDEX_NAME} is missing; make them with `fastssl data encode`"
            )
        try:
            content = read_checked_json(file)
        except ValueError as error:
            raise ShardError(f"{error}; encode again with --overwrite") from error
        found = (content.pop("format", None), content.pop("version", None))
        if found != (FORMAT_NAME, FORMAT_VERSION):
            raise ShardError(
                f"{file} has format {found[0]!r} version {found[1]}; expected {FORMAT_NAME!r} version "
                f"{FORMAT_VERSION}; encode again with this version of fastssl"
            )
        content["sources"] = tuple(SourceInfo(**source) for source in content["sources"])
        content["parts"] = tuple(PartInfo(**part) for part in content["parts"])
        return cls(**content)


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type of stored ids: uint16 where every id fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def part_header(*, num_tokens: int, num_sentences: int, num_documents: int, vocab_size: int) -> np.void:
    """Return the 64 bytes at the start of a part file."""
    token_bytes = token_dtype(vocab_size).itemsize
    fields = (_MAGIC, FORMAT_VERSION, token_bytes, num_tokens, num_sentences, num_documents, vocab_size, b"")
    return np.array([fields], dtype=HEADER)[0]


def sections(header: np.void) -> list[tuple[str, np.dtype, int]]:
    """Return name, type and length of the arrays behind a header, in their order in the file."""
    return [
        ("tokens", token_dtype(int(header["vocab_size"])), int(header["num_tokens"])),
        ("word_starts", np.dtype(np.uint8), int(header["num_tokens"])),
        ("sentence_offsets", np.dtype("<i8"), int(header["num_sentences"]) + 1),
        ("document_offsets", np.dtype("<i8"), int(header["num_documents"]) + 1),
    ]


def aligned(position: int) -> int:
    """Return the next position at which an array may start: a multiple of 64 bytes."""
    return -(-position // _ALIGNMENT) * _ALIGNMENT
