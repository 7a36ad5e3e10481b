"""Token shards made of arrays: what the planning and drawing code reads, without files."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from fastssl.data.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
VOCAB_SIZE = 60


@dataclass(frozen=True, kw_only=True)
class InMemoryPart:
    tokens: np.ndarray
    word_starts: np.ndarray
    sentence_offsets: np.ndarray
    document_offsets: np.ndarray


@dataclass(frozen=True, kw_only=True)
class InMemoryShards:
    parts: Sequence[InMemoryPart]
    vocab_size: int = VOCAB_SIZE

    @property
    def tokens(self) -> np.ndarray:
        """All tokens of the corpus."""
        return np.concatenate([part.tokens for part in self.parts])


def make_part(documents: Sequence[Sequence[int]], seed: int, *, vocab_size=VOCAB_SIZE, dtype=np.uint16) -> InMemoryPart:
    """A part from the sentence lengths of its documents; ids 1 ([UNK]) and 5 ..., words of one to four pieces."""
    lengths = np.array([length for document in documents for length in document], dtype=np.int64)
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, vocab_size, lengths.sum())
    ids[rng.random(len(ids)) < 0.03] = SPECIAL.unk
    word_starts = rng.random(len(ids)) < 0.7
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    word_starts[offsets[:-1][lengths > 0]] = True
    return InMemoryPart(
        tokens=ids.astype(dtype),
        word_starts=word_starts.astype(np.uint8),
        sentence_offsets=offsets,
        document_offsets=np.concatenate(([0], np.cumsum([len(document) for document in documents]))).astype(np.int64),
    )


def make_shards(num_documents=40, seed=0, num_parts=2, longest_sentence=30, sentences=(1, 12)) -> InMemoryShards:
    """Some random text, spread over parts with uint16 and uint32 tokens in turn."""
    rng = np.random.default_rng(seed)
    documents = [rng.integers(1, longest_sentence, rng.integers(*sentences)).tolist() for _ in range(num_documents)]
    cuts = np.linspace(0, num_documents, num_parts + 1).astype(int)
    return InMemoryShards(
        parts=[
            make_part(documents[a:b], seed + i, dtype=(np.uint16, np.uint32)[i % 2])
            for i, (a, b) in enumerate(itertools.pairwise(cuts))
        ]
    )


@st.composite
def shards_strategy(draw, min_documents=0, max_sentence=40) -> InMemoryShards:
    """Any corpus: empty sentences, documents and parts, sentences longer than any room."""
    sentence = st.integers(0, max_sentence)
    part = st.lists(st.lists(sentence, max_size=8), max_size=6)
    seed = draw(st.integers(0, 1000))
    parts = draw(st.lists(part, min_size=1, max_size=3))
    shards = InMemoryShards(
        parts=[make_part(p, seed + i, dtype=(np.uint16, np.uint32)[i % 2]) for i, p in enumerate(parts)]
    )
    texts = sum(any(document) for p in parts for document in p)
    if texts < min_documents:
        fill = make_part([[3, 4]] * (min_documents - texts), seed)
        shards = InMemoryShards(parts=[*shards.parts, fill])
    return shards
