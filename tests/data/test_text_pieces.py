"""Pieces of long texts: joined they are the text, and their tokens are the text's."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastssl.data.text_pieces import text_pieces
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


def test_text_without_spaces_is_cut_before_line_ends():
    assert list(text_pieces("台灣大\n學生\n很多", 6)) == ["台灣大", "\n學生\n很多"]
