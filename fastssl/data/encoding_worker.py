"""What a process of the encoding pool does: documents in, tokens out."""

from __future__ import annotations

import os
import pickle
import sys
from typing import NamedTuple

import numpy as np

from fastssl.data.sentences import split_sentences
from fastssl.data.shard_format import token_dtype
from fastssl.data.tokenizer import Tokenizer


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


def encode_documents(documents: list[str], tokenizer: Tokenizer, *, parallel: bool) -> EncodedText:
    """Split documents into sentences and those into tokens, the latter with the library's threads if ``parallel``."""
    sentences = [split_sentences(document) for document in documents]
    encoded = tokenizer.encode_batch([s for document in sentences for s in document], parallel=parallel)
    dtype = token_dtype(tokenizer.vocab_size)
    return EncodedText(
        tokens=np.concatenate([np.zeros(0, dtype), *(ids for ids, _ in encoded)], dtype=dtype, casting="unsafe"),
        word_starts=np.concatenate([np.zeros(0, bool), *(starts for _, starts in encoded)]),
        sentence_lengths=np.array([len(ids) for ids, _ in encoded], dtype=np.int64),
        document_lengths=np.array([len(document) for document in sentences], dtype=np.int64),
    )


def serve() -> None:
    """Read a pickled tokenizer and then lists of documents from standard input; answer each with an ``EncodedText``."""
    requests = sys.stdin.buffer
    # Nothing that a library prints may come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tokenizer = pickle.load(requests)
    while True:
        try:
            documents = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(encode_documents(documents, tokenizer, parallel=False), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
