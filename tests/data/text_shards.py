"""Real text as in-memory shards."""

from pathlib import Path

import numpy as np

from fastssl.data.tokenizer import Tokenizer
from tests.data.in_memory_shards import InMemoryPart, InMemoryShards


def shards_of_text(documents: list[list[str]], tokenizer: Tokenizer) -> InMemoryShards:
    """Encode documents, lists of sentences."""
    encoded = tokenizer.encode_batch([sentence for document in documents for sentence in document])
    lengths = [len(ids) for ids, _ in encoded]
    part = InMemoryPart(
        tokens=np.concatenate([np.asarray(ids) for ids, _ in encoded]).astype(np.uint16),
        word_starts=np.concatenate([np.asarray(starts) for _, starts in encoded]).astype(np.uint8),
        sentence_offsets=np.concatenate(([0], np.cumsum(lengths))),
        document_offsets=np.concatenate(([0], np.cumsum([len(document) for document in documents]))),
    )
    return InMemoryShards(parts=[part], vocab_size=tokenizer.vocab_size)


def documents_of(path: Path, limit: int | None = None) -> list[list[str]]:
    """Read a text file: a sentence a line, a blank line between documents."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    documents = [[line for line in block.split("\n") if line.strip()] for block in blocks]
    return [document for document in documents if document][:limit]
