"""Pieces of long texts: joined they are the text, and their tokens are the text's."""

import functools
import random
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from fastssl.data import encoding_worker, lossless
from fastssl.data.corpus import EXACT
from fastssl.data.text_pieces import pieces_between_spaces, text_pieces
from fastssl.data.tokenizer import Tokenizer


@given(st.text(st.sampled_from("ab \n\u3000台"), max_size=60), st.integers(1, 12))
def test_pieces_are_the_text(text: str, max_characters: int):
    pieces = list(text_pieces(text, max_characters))
    assert "".join(pieces) == text
    assert all(len(piece) <= max_characters for piece in pieces)
    assert all(pieces) or text == ""


@pytest.mark.parametrize("name", ["tinyshakespeare", "wikitext2.valid", "kjv"])
def test_tokens_of_pieces_are_those_of_the_text(test_data: Path, name: str):
    tokenizer = Tokenizer.load(test_data / "tokenizers" / "gpt2")
    text = (test_data / "corpus" / f"{name}.txt").read_text(encoding="utf-8")[:60_000]
    pieces = list(text_pieces(text, 100))
    assert len(pieces) > 600
    in_pieces = np.concatenate([ids for ids, _ in tokenizer.encode_batch(pieces)])
    ((whole, _),) = tokenizer.encode_batch([text])
    assert in_pieces.tolist() == whole.tolist()


def test_text_without_spaces_is_cut_behind_line_ends():
    assert list(text_pieces("台灣大\n學生\n很多", 6)) == ["台灣大\n", "學生\n很多"]


@given(st.text(st.sampled_from("ab \n\u3000台"), max_size=60), st.integers(1, 12))
def test_spaces_between_pieces_are_the_rest_of_the_text(text: str, max_characters: int):
    pieces = list(pieces_between_spaces(text, max_characters))
    assert " ".join(pieces) == text
    assert all(pieces) or text == ""
    assert all(len(piece) <= max_characters or not re.search(r"\S \S", piece[1:-1]) for piece in pieces)


WORDS = (
    "the", "cat", "don't", "年", "台灣", "。", "!", "12345", "é", "e\u0301", "  ", "\r\n", "\n\n", "\n", " ", "，\n",
    "🙂",
)  # fmt: skip


def trained(pre_tokenizer, normalizer=None, decoder=None) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.normalizer = pre_tokenizer, normalizer
    rng = random.Random(1)
    texts = ["".join(rng.choices(WORDS, k=200)) for _ in range(40)]
    alphabet = [] if pre_tokenizer is None else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False, max_token_length=8)
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def qwen2() -> Tokenizer:
    made = lossless.byte_pair_tokenizer({}, [], cuts_as_qwen2=True)
    return trained(made.pre_tokenizer, made.normalizer)


@pytest.mark.parametrize("separator", ["", " ", "\n"])
@pytest.mark.parametrize(
    ("make", "in_front"),
    [
        (lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), "nothing"),
        (qwen2, "nothing"),
        (lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)), "space"),
        (lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="always")), "space"),
        (lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="first")), "space"),
        (lambda: trained(pre_tokenizers.Metaspace(), normalizers.Prepend("x")), "other"),
    ],
    ids=["gpt2", "qwen2", "gpt2-space", "always", "first", "prepend"],
)
def test_ids_of_long_documents_are_those_of_the_text(make, in_front: str, separator: str, monkeypatch):
    tokenizer, rng = make(), random.Random(0)
    assert tokenizer.put_in_front == in_front
    for name in ("text_pieces", "pieces_between_spaces"):
        shorter = functools.partial(getattr(encoding_worker, name), max_characters=300)
        monkeypatch.setattr(encoding_worker, name, shorter)
    documents = [separator.join(rng.choices(WORDS, k=2000)) for _ in range(4)]
    encoded = encoding_worker.encode_documents(documents, tokenizer, form=EXACT, parallel=True)
    wholes = [ids.tolist() for ids, _ in tokenizer.encode_batch(documents)]
    assert encoded.sentence_lengths.tolist() == list(map(len, wholes))
    assert encoded.tokens.tolist() == [token for whole in wholes for token in whole]
