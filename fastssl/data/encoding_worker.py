"""What a process of the encoding pool does: documents in, tokens out."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastssl.data.corpus import SENTENCES, TextForm
from fastssl.data.sentences import split_sentences
from fastssl.data.shard_format import token_dtype
from fastssl.data.text_pieces import pieces_between_spaces, text_pieces
from fastssl.data.tokenizer import Tokenizer

_CHARACTERS_AT_ONCE = 1 << 20


class EncodedText(NamedTuple):
    """Documents as arrays, in the form that ``ShardWriter.add_documents`` takes."""

    tokens: np.ndarray
    """``(n)`` ids in the type of ``token_dtype``."""
    word_starts: np.ndarray
    """``(n)`` bool."""
    sentence_lengths: np.ndarray
    """``(s)`` int64, tokens."""
    document_lengths: np.ndarray
    """``(d)`` int64, sentences."""


def encode_documents(
    documents: list[str], tokenizer: Tokenizer, *, form: TextForm = SENTENCES, parallel: bool
) -> EncodedText:
    """Turn documents into tokens, with the library's threads if ``parallel``.

    They are split into sentences, or, where ``form`` is exact, kept as they are: then a document is one sentence.
    """
    if form.exact:
        return _encode_exactly(documents, tokenizer, parallel=parallel)
    sentences = [split_sentences(document) for document in documents]
    encoded = tokenizer.encode_batch([s for document in sentences for s in document], parallel=parallel)
    dtype = token_dtype(tokenizer.vocab_size)
    return EncodedText(
        tokens=np.concatenate([np.zeros(0, dtype), *(ids for ids, _ in encoded)], dtype=dtype, casting="unsafe"),
        word_starts=np.concatenate([np.zeros(0, bool), *(starts for _, starts in encoded)]),
        sentence_lengths=np.array([len(ids) for ids, _ in encoded], dtype=np.int64),
        document_lengths=np.array([len(document) for document in sentences], dtype=np.int64),
    )


def _encode_exactly(documents: list[str], tokenizer: Tokenizer, *, parallel: bool) -> EncodedText:
    dtype = token_dtype(tokenizer.vocab_size)
    tokens, word_starts = [np.zeros(0, dtype)], [np.zeros(0, bool)]
    lengths = np.zeros(len(documents), dtype=np.int64)
    for pieces in _numbered_pieces(documents, tokenizer):
        encoded = tokenizer.encode_batch([piece for _, piece in pieces], parallel=parallel)
        for (number, _), (ids, starts) in zip(pieces, encoded, strict=True):
            tokens.append(ids.astype(dtype))
            word_starts.append(starts)
            lengths[number] += len(ids)
    return EncodedText(
        tokens=np.concatenate(tokens),
        word_starts=np.concatenate(word_starts),
        sentence_lengths=lengths,
        document_lengths=np.ones(len(documents), dtype=np.int64),
    )


def _numbered_pieces(documents: list[str], tokenizer: Tokenizer) -> Iterator[list[tuple[int, str]]]:
    """Yield pieces behind the numbers of their documents, not too many at once.

    The library's encodings take some hundred bytes per token, so a long document must not be encoded in one go; it is
    nevertheless where the tokenizer gives the pieces other tokens than the document.
    """
    cut = {"nothing": text_pieces, "space": pieces_between_spaces}.get(tokenizer.put_in_front, lambda text: (text,))
    pieces, num_characters = [], 0
    for number, document in enumerate(documents):
        for piece in cut(document):
            pieces.append((number, piece))
            num_characters += len(piece)
            if num_characters >= _CHARACTERS_AT_ONCE:
                yield pieces
                pieces, num_characters = [], 0
    if pieces:
        yield pieces


def serve() -> None:
    """Read a pickled tokenizer and text form, then lists of documents from standard input; answer each, encoded."""
    requests = sys.stdin.buffer
    # Nothing that a library prints may come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tokenizer, form = pickle.load(requests)
    while True:
        try:
            documents = pickle.load(requests)
        except EOFError:
            return
        encoded = encode_documents(documents, tokenizer, form=form, parallel=False)
        pickle.dump(encoded, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
