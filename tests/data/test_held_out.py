"""Held-out documents: whole, disjoint, complete, and the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.data.held_out import ShardsView, hold_out, hold_out_end
from fastssl.data.shards import ShardPart, TokenShards


def shards_of(parts: list[list[list[int]]]) -> TokenShards:
    """Build shards of parts of documents of sentence lengths; every token is its own number in the corpus."""
    made, number = [], 0
    for documents in parts:
        sentences = [length for document in documents for length in document]
        total = sum(sentences)
        made.append(
            ShardPart(
                path=Path("in-memory"),
                tokens=np.arange(number, number + total, dtype=np.uint32),
                word_starts=np.ones(total, dtype=np.uint8),
                sentence_offsets=np.cumsum([0, *sentences], dtype=np.int64),
                document_offsets=np.cumsum([0, *map(len, documents)], dtype=np.int64),
            )
        )
        number += total
    shards = TokenShards.__new__(TokenShards)
    shards.parts, shards.vocab_size = made, 1 << 20
    shards.num_documents = sum(part.num_documents for part in made)
    return shards


def documents_of(view: ShardsView | TokenShards) -> list[tuple[tuple[int, ...], ...]]:
    return [
        tuple(
            tuple(part.tokens[part.sentence_offsets[s] : part.sentence_offsets[s + 1]].tolist())
            for s in range(part.document_offsets[d], part.document_offsets[d + 1])
        )
        for part in view.parts
        for d in range(part.num_documents)
    ]


corpora = st.lists(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=30), min_size=1, max_size=3
).filter(lambda parts: sum(map(len, parts)) >= 2)


@settings(deadline=None, max_examples=60)
@given(parts=corpora, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_every_document_is_on_exactly_one_side(parts, fraction, seed):
    shards = shards_of(parts)
    train, held_out = hold_out(shards, fraction, seed=seed)
    assert sorted(documents_of(train) + documents_of(held_out)) == documents_of(shards)
    assert train.num_documents
    assert held_out.num_documents


def test_fraction_and_limit_hold():
    shards = shards_of([[[10]] * 1000, [[10]] * 1000])
    _, held_out = hold_out(shards, 0.1, seed=0)
    assert 0.1 <= held_out.num_tokens / 20_000 < 0.11
    _, capped = hold_out(shards, 0.5, seed=0, max_tokens=300)
    assert 300 <= capped.num_tokens < 500
    again = hold_out(shards, 0.1, seed=0)[1]
    assert documents_of(again) == documents_of(held_out)
    assert documents_of(hold_out(shards, 0.1, seed=1)[1]) != documents_of(held_out)


def test_one_document_cannot_be_split():
    with pytest.raises(ValueError, match="one document"):
        hold_out(shards_of([[[5, 5]]]), 0.1, seed=0)
    with pytest.raises(ValueError, match="above 0 and below 1"):
        hold_out(shards_of([[[5], [5]], [[5]]]), 0.0, seed=0)


def tokens_of(view: ShardsView | TokenShards) -> list[int]:
    return [token for document in documents_of(view) for sentence in document for token in sentence]


@settings(deadline=None, max_examples=60)
@given(parts=corpora, fraction=st.floats(0.01, 0.99))
def test_the_end_of_the_text_is_held_out(parts, fraction):
    shards = shards_of(parts)
    total = sum(part.num_tokens for part in shards.parts)
    train, held_out = hold_out_end(shards, fraction)
    assert tokens_of(train) + tokens_of(held_out) == list(range(total))
    assert train.num_tokens == min(max(int(total * (1 - fraction)), 1), total - 1)
    whole = set(documents_of(shards))
    assert len(set(documents_of(train)) - whole) <= 1
    assert len(set(documents_of(held_out)) - whole) <= 1


def test_one_document_is_cut_in_two():
    train, held_out = hold_out_end(shards_of([[[7, 3]]]), 0.5)
    assert (documents_of(train), documents_of(held_out)) == ([((0, 1, 2, 3, 4),)], [((5, 6), (7, 8, 9))])
    assert hold_out_end(shards_of([[[100]]]), 0.5, max_tokens=9)[1].num_tokens == 9
    with pytest.raises(ValueError, match="1 tokens, of which nothing can be held out"):
        hold_out_end(shards_of([[[1]]]), 0.5)
    with pytest.raises(ValueError, match="above 0 and below 1"):
        hold_out_end(shards_of([[[5]]]), 1.0)
