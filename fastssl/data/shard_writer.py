"""Writing token shards."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import numpy as np

from fastssl.data.files import replace_file, sha256_of_file
from fastssl.data.shard_format import HEADER, PartInfo, aligned, part_header, token_dtype


class ShardWriter:
    """Writes one part file: tokens stream to disk, the rest follows at the end, and then the file gets its name.

    Use as a context manager: leaving it by an exception removes the unfinished file.
    """

    def __init__(self, path: Path, *, vocab_size: int):
        """Begin a part.

        Args:
            path: Final name of the file.
            vocab_size: Of the tokenizer; decides between 2 and 4 bytes a token.
        """
        self._path = path
        self._vocab_size = vocab_size
        self._token_dtype = token_dtype(vocab_size)
        self._word_starts = bytearray()
        self._sentence_offsets = array("q", [0])
        self._document_offsets = array("q", [0])
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = self._temporary.open("wb")
        self._file.write(bytes(HEADER.itemsize))

    @property
    def num_tokens(self) -> int:
        """Tokens written so far."""
        return self._sentence_offsets[-1]

    @property
    def num_documents(self) -> int:
        """Documents written so far."""
        return len(self._document_offsets) - 1

    def add_documents(
        self, tokens: np.ndarray, word_starts: np.ndarray, sentence_lengths: np.ndarray, document_lengths: np.ndarray
    ) -> None:
        """Append whole documents; sentences of no token and documents of no sentence leave no trace.

        Args:
            tokens: ``(n)`` ids below ``vocab_size``.
            word_starts: ``(n)`` True or 1 at the first token of a word.
            sentence_lengths: ``(s)`` tokens of each sentence; they add up to n.
            document_lengths: ``(d)`` sentences of each document; they add up to s.
        """
        sentence_ends = np.cumsum(sentence_lengths)[sentence_lengths > 0]
        kept_sentences = np.concatenate(([0], np.cumsum(sentence_lengths > 0)))
        document_ends = np.unique(kept_sentences[np.cumsum(document_lengths)])
        document_ends = document_ends[document_ends > 0]
        self._file.write(np.ascontiguousarray(tokens, dtype=self._token_dtype).data)
        self._word_starts += np.ascontiguousarray(word_starts, dtype=np.uint8).data
        self._document_offsets.extend((len(self._sentence_offsets) - 1 + document_ends).tolist())
        self._sentence_offsets.extend((self.num_tokens + sentence_ends).tolist())

    def finish(self, *, next_source: int, next_document: int) -> PartInfo:
        """Write the rest, sync, rename, and describe the part for the index.

        Args:
            next_source, next_document: Where the next part is to begin, as in ``PartInfo``.
        """
        counts = {
            "num_tokens": self.num_tokens,
            "num_sentences": len(self._sentence_offsets) - 1,
            "num_documents": self.num_documents,
        }
        header = part_header(**counts, vocab_size=self._vocab_size)
        with self._file as file:
            for data in (self._word_starts, self._sentence_offsets, self._document_offsets):
                file.write(bytes(aligned(file.tell()) - file.tell()))
                file.write(data)
            file.seek(0)
            file.write(header.tobytes())
        size_bytes, checksum = self._temporary.stat().st_size, sha256_of_file(self._temporary)
        replace_file(self._temporary, self._path)
        return PartInfo(
            file=self._path.name,
            size_bytes=size_bytes,
            sha256=checksum,
            **counts,
            next_source=next_source,
            next_document=next_document,
        )

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)
