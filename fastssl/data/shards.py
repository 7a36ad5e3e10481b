"""Token shards: encoded text on disk, memory-mapped. The layout is drawn in this folder's README."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastssl.data.files import sha256_of_file
from fastssl.data.shard_format import HEADER, PartInfo, ShardError, ShardIndex, aligned, part_header, sections

if TYPE_CHECKING:
    from fastssl.data.tokenizer import Tokenizer


_NOTABLE_SHARE = 0.01
"""Of unknown tokens; texts of other scripts have some anyway."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardPart:
    """One part file, memory-mapped; offsets count from the start of the part."""

    path: Path
    """The file."""
    tokens: np.ndarray
    """``(num_tokens)`` uint16, or uint32 for vocabularies of more than 65,536 tokens."""
    word_starts: np.ndarray
    """``(num_tokens)`` uint8: 1 at the first token of a word."""
    sentence_offsets: np.ndarray
    """``(num_sentences + 1)`` int64: sentence s is ``tokens[sentence_offsets[s]:sentence_offsets[s + 1]]``."""
    document_offsets: np.ndarray
    """``(num_documents + 1)`` int64: document d is the sentences ``document_offsets[d]`` to ``[d + 1]``."""

    @property
    def num_tokens(self) -> int:
        """Tokens in the part."""
        return len(self.tokens)

    @property
    def num_sentences(self) -> int:
        """Sentences in the part."""
        return len(self.sentence_offsets) - 1

    @property
    def num_documents(self) -> int:
        """Documents in the part."""
        return len(self.document_offsets) - 1

    @classmethod
    def open(cls, path: Path, info: PartInfo, vocab_size: int) -> ShardPart:
        """Map a part file after checking its size and header against the index.

        Raises:
            ShardError: The file is missing, truncated, or not the one that the index describes.
        """
        if not path.is_file():
            raise ShardError(f"token shard {path} is missing; encode again to make it anew")
        size_bytes = path.stat().st_size
        if size_bytes != info.size_bytes:
            raise ShardError(
                f"token shard {path} is truncated or altered: expected {info.size_bytes} bytes, found {size_bytes}; "
                "encode again to make it anew"
            )
        header = np.fromfile(path, dtype=HEADER, count=1)[0]
        expected = part_header(
            num_tokens=info.num_tokens,
            num_sentences=info.num_sentences,
            num_documents=info.num_documents,
            vocab_size=vocab_size,
        )
        if header != expected:
            raise ShardError(
                f"token shard {path} is altered: its header contradicts the index; encode again to make it anew"
            )
        data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        arrays, start = {}, HEADER.itemsize
        for name, dtype, count in sections(expected):
            arrays[name] = data[start : start + count * dtype.itemsize].view(dtype)
            start = aligned(start + count * dtype.itemsize)
        return cls(path=path, **arrays)


class TokenShards:
    """All parts of a shard directory, in the order of the corpus.

    Attributes:
        directory: Where they are.
        index: What ``index.json`` says.
        parts: The memory-mapped parts; sentences and documents never cross from one part into the next.
        vocab_size, tokenizer_fingerprint: Of the tokenizer that made the ids.
        num_tokens, num_sentences, num_documents: Totals.
    """

    def __init__(self, directory: Path, index: ShardIndex, parts: Sequence[ShardPart]):
        self.directory = directory
        self.index = index
        self.parts = list(parts)
        self.vocab_size = index.vocab_size
        self.tokenizer_fingerprint = index.tokenizer_fingerprint
        self.num_tokens = sum(part.num_tokens for part in self.parts)
        self.num_sentences = sum(part.num_sentences for part in self.parts)
        self.num_documents = sum(part.num_documents for part in self.parts)

    @classmethod
    def open(cls, directory: str | Path, *, tokenizer: Tokenizer | None = None) -> TokenShards:
        """Map the shards of a directory; reads the index and the headers only.

        Args:
            directory: Where ``fastssl data encode`` wrote them.
            tokenizer: If given, must be the one that made the ids.

        Raises:
            FileNotFoundError: The directory has no index.
            ShardError: A file is missing, truncated, altered or unfinished, or the tokenizer is another.
        """
        directory = Path(directory)
        index = ShardIndex.read(directory)
        if not index.complete:
            raise ShardError(f"the token shards in {directory} are unfinished; encode again to go on where it stopped")
        parts = [ShardPart.open(directory / info.file, info, index.vocab_size) for info in index.parts]
        shards = cls(directory, index, parts)
        if tokenizer is not None:
            shards.check_tokenizer(tokenizer)
        return shards

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ShardError unless ``tokenizer`` is the one that made the ids."""
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise ShardError(
                f"the token shards in {self.directory} were made with another tokenizer than the one given: expected "
                f"a vocabulary of {self.vocab_size} (fingerprint {self.tokenizer_fingerprint[:12]}), got one "
                f"of {tokenizer.vocab_size} (fingerprint {tokenizer.fingerprint[:12]}); give that one, or encode again"
            )

    def verify(self) -> None:
        """Read every part and compare its checksum with the index.

        Raises:
            ShardError: A part was altered after it had been written.
        """
        for part, info in zip(self.parts, self.index.parts, strict=True):
            found = sha256_of_file(part.path)
            if found != info.sha256:
                raise ShardError(
                    f"token shard {part.path} is altered: expected SHA-256 {info.sha256[:12]}, found {found[:12]}; "
                    "encode again to make it anew"
                )

    @property
    def is_exact(self) -> bool:
        """Whether documents are text as it was, and not cut into sentences."""
        return self.index.options.get("text_form") == "exact"

    @cached_property
    def fingerprint(self) -> str:
        """One checksum over all parts: equal exactly for the same ids in the same order."""
        return hashlib.sha256(json.dumps([info.sha256 for info in self.index.parts]).encode()).hexdigest()

    def remark_on_unknown(self, tokenizer: Tokenizer) -> str | None:
        """Return words on what the tokenizer did not know, where that is more than one token in a hundred."""
        spelling = tokenizer.special_names.get("unk")
        unknown = None if spelling is None else tokenizer.token_to_id(spelling)
        if unknown is None or self.num_tokens == 0:
            return None
        share = sum(int(np.count_nonzero(part.tokens == unknown)) for part in self.parts) / self.num_tokens
        if share <= _NOTABLE_SHARE:
            return None
        return (
            f"{share:.1%} of the tokens are {spelling}: the tokenizer does not know their characters, and a model will "
            "learn nothing of them; give a larger --vocab-size, or another --tokenizer"
        )

    def sentence_lengths(self) -> np.ndarray:
        """Return ``(num_sentences)`` int64: the tokens of every sentence."""
        lengths = [np.diff(part.sentence_offsets) for part in self.parts]
        return np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)

    def document_lengths(self) -> np.ndarray:
        """Return ``(num_documents)`` int64: the tokens of every document."""
        lengths = [np.diff(part.sentence_offsets[part.document_offsets]) for part in self.parts]
        return np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)

    def documents(self) -> Iterator[list[np.ndarray]]:
        """Iterate over the documents, each a list of its sentences' ids."""
        for part in self.parts:
            for first, last in itertools.pairwise(part.document_offsets):
                bounds = part.sentence_offsets[first : last + 1]
                yield [part.tokens[a:b] for a, b in itertools.pairwise(bounds)]
