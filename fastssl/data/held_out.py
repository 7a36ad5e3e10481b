"""Keeping some documents of a corpus away from training, to measure on them."""

from dataclasses import dataclass, replace

import numpy as np

from fastssl.data.shards import ShardPart, TokenShards

_MAX_BLOCKS = 200


@dataclass(frozen=True, kw_only=True)
class ShardsView:
    """Some documents of token shards; what training and evaluation read of `TokenShards`."""

    parts: list[ShardPart]
    """Runs of whole documents, memory-mapped like the parts that they come from."""
    vocab_size: int
    """Of the tokenizer that made the ids."""

    @property
    def num_documents(self) -> int:
        """Documents in the view."""
        return sum(part.num_documents for part in self.parts)

    @property
    def num_tokens(self) -> int:
        """Tokens in the view."""
        return sum(part.num_tokens for part in self.parts)


def hold_out(
    shards: TokenShards, fraction: float, *, seed: int, max_tokens: int = 500_000, least_documents: int = 1
) -> tuple[ShardsView, ShardsView]:
    """Split a corpus by whole documents into what is trained on and what is held out.

    The documents are cut, in their order, into at most 200 blocks of about as many documents, and blocks drawn by the
    seed are held out until they hold `fraction` of the tokens. Nothing is copied.

    Args:
        shards: the corpus.
        fraction: share of the tokens to hold out, above 0 and below 1.
        seed: of the draw.
        max_tokens: hold out no further block once there are as many tokens, however large the corpus.
        least_documents: hold out as many documents at least, and leave as many to train on.

    Returns:
        The documents to train on, and those held out; no document is in both.

    Raises:
        ValueError: for a fraction out of range, or a corpus of too few documents to split, such as one.
    """
    _check_fraction(fraction)
    if shards.num_documents < 2:
        raise ValueError(
            "the corpus has one document, which cannot be split into a part to train on and a part to measure on; "
            "give a file to measure on (--eval-files), or go without (--eval-fraction 0)"
        )
    lengths = np.concatenate([[0], np.cumsum(shards.document_lengths())])
    if shards.num_documents < 2 * least_documents:
        raise ValueError(
            f"the corpus has {shards.num_documents} documents, too few to hold out {least_documents} of them and to "
            "leave as many; give a file to measure on (--eval-files), or go without (--eval-fraction 0)"
        )
    bounds = np.unique(np.linspace(0, shards.num_documents, _MAX_BLOCKS + 1).round().astype(np.int64))
    block_tokens, block_documents = np.diff(lengths[bounds]), np.diff(bounds)
    wanted = min(fraction * lengths[-1], max_tokens)
    held: set[int] = set()
    for block in np.random.default_rng(seed).permutation(len(block_tokens)):
        num_held = sum(block_documents[b] for b in held)
        if num_held >= least_documents and sum(block_tokens[b] for b in held) >= wanted:
            break
        if shards.num_documents - num_held - block_documents[block] < least_documents:
            break
        held.add(int(block))
    runs = [(int(bounds[b]), int(bounds[b + 1]), b in held) for b in range(len(block_tokens))]
    return (
        _view(shards, [(begin, end) for begin, end, is_held in runs if not is_held]),
        _view(shards, [(begin, end) for begin, end, is_held in runs if is_held]),
    )


def hold_out_end(shards: TokenShards, fraction: float, *, max_tokens: int = 500_000) -> tuple[ShardsView, ShardsView]:
    """Split a corpus at one token, where need be inside a document, whose two parts are then documents.

    It is for corpora of few documents, such as one book, of which `hold_out` would take too much or nothing.

    Args:
        shards: the corpus.
        fraction: share of the tokens to hold out, at the end of the corpus; above 0 and below 1.
        max_tokens: hold out no more than as many tokens, however large the corpus.

    Returns:
        What comes before the token, to train on, and what is held out; neither is empty.

    Raises:
        ValueError: for a fraction out of range, or a corpus of fewer than two tokens.
    """
    _check_fraction(fraction)
    total = sum(part.num_tokens for part in shards.parts)
    if total < 2:
        raise ValueError(f"the corpus has {total} tokens, of which nothing can be held out; give more text")
    held = min(max(1, total - int((1 - fraction) * total)), max_tokens, total - 1)
    cut = total - held
    return _token_view(shards, 0, cut), _token_view(shards, cut, total)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must be above 0 and below 1, got {fraction}")


def _token_view(shards: TokenShards, begin: int, end: int) -> ShardsView:
    """Return the tokens from begin to end, numbered over all parts, with the documents and sentences that they cut."""
    parts, first = [], 0
    for part in shards.parts:
        low, high = max(begin - first, 0), min(end - first, part.num_tokens)
        if low < high:
            parts.append(_cut(part, low, high))
        first += part.num_tokens
    return ShardsView(parts=parts, vocab_size=shards.vocab_size)


def _cut(part: ShardPart, begin: int, end: int) -> ShardPart:
    sentences = np.unique(np.clip(part.sentence_offsets, begin, end)) - begin
    documents = np.unique(np.clip(part.sentence_offsets[part.document_offsets], begin, end)) - begin
    return replace(
        part,
        tokens=part.tokens[begin:end],
        word_starts=part.word_starts[begin:end],
        sentence_offsets=sentences,
        document_offsets=np.searchsorted(sentences, documents),
    )


def _view(shards: TokenShards, runs: list[tuple[int, int]]) -> ShardsView:
    """Return the documents of ascending runs (begin, end), numbered over all parts."""
    merged: list[list[int]] = []
    for begin, end in runs:
        if merged and merged[-1][1] == begin:
            merged[-1][1] = end
        else:
            merged.append([begin, end])
    parts, first = [], 0
    for part in shards.parts:
        for begin, end in merged:
            low, high = max(begin - first, 0), min(end - first, part.num_documents)
            if low < high:
                parts.append(_slice(part, low, high))
        first += part.num_documents
    return ShardsView(parts=parts, vocab_size=shards.vocab_size)


def _slice(part: ShardPart, begin: int, end: int) -> ShardPart:
    """Return documents begin to end of a part, its offsets counted anew."""
    documents = part.document_offsets[begin : end + 1]
    sentences = part.sentence_offsets[documents[0] : documents[-1] + 1]
    tokens = slice(int(sentences[0]), int(sentences[-1]))
    return replace(
        part,
        tokens=part.tokens[tokens],
        word_starts=part.word_starts[tokens],
        sentence_offsets=sentences - sentences[0],
        document_offsets=documents - documents[0],
    )
