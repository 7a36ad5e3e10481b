"""Which token stands for which word, in one window or several, whatever the tokenizer makes of a word."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fastssl import Tokenizer
from fastssl.tasks.tagging.encoded_words import encode_words, split_into_windows

SENTENCES = [["the", "unhappiest", "cat", "sees", "."], ["a", "dog", "in-between"], ["x"] * 30]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    text = " ".join("the cat sees a dog . un ##happy x in - between".replace("#", "").split() * 3)
    Tokenizer.train_wordpiece([text], vocab_size=60, min_frequency=1).save(directory)
    return Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)


def test_first_tokens_are_those_of_hugging_face(tokenizers):
    ours, theirs = tokenizers
    encoded = encode_words(ours, SENTENCES, max_seq_length=64)
    expected = theirs(SENTENCES, is_split_into_words=True)
    numbers = np.arange(3)
    batch = encoded.batch(numbers)
    lengths = batch.cu_seqlens.diff().tolist()
    assert [ids.tolist() for ids in batch.input_ids.split(lengths)] == expected["input_ids"]
    words, positions = encoded.words_of(numbers)
    assert words.tolist() == list(range(38)) and encoded.num_words == 38
    starts, found = batch.cu_seqlens.tolist(), []
    for row in range(3):
        ids = expected.word_ids(row)
        found += [starts[row] + ids.index(word) for word in range(len(SENTENCES[row]))]
    assert positions.tolist() == found
    assert (encoded.num_split, encoded.num_cut, encoded.num_unspelled) == (0, 0, 0)


def test_batches_carry_the_labels_of_their_own_words(tokenizers):
    encoded = encode_words(tokenizers[0], SENTENCES, max_seq_length=64)
    labels = torch.arange(38)
    labels[6] = -100
    batch = encoded.batch(np.array([1, 0]), labels)
    assert batch.token_labels.tolist() == [5, 7, 0, 1, 2, 3, 4]
    assert batch.target_counts() == {"token": 7}
    ids = [tokenizers[0].id_to_token(i) for i in batch.input_ids[batch.token_positions]]
    assert (ids[0], ids[2], ids[4]) == ("a", "the", "cat")
    assert encoded.batch(np.array([0])).token_labels is None


def test_words_of_nothing_are_unknown_ones(tokenizers):
    sentences = [["a", "\x01", "cat"], ["\u200b"], [], ["", "dog"]]
    encoded = encode_words(tokenizers[0], sentences, max_seq_length=16)
    assert (len(encoded), encoded.num_words, encoded.num_unspelled) == (3, 6, 3)
    batch = encoded.batch(np.arange(3), torch.arange(6))
    assert batch.token_labels.tolist() == list(range(6))
    tokens = [tokenizers[0].id_to_token(i) for i in batch.input_ids[batch.token_positions]]
    assert tokens == ["a", "[UNK]", "cat", "[UNK]", "[UNK]", "dog"]


def test_a_word_longer_than_a_window_keeps_its_first_tokens(tokenizers):
    encoded = encode_words(tokenizers[0], [["a", "x-" * 20, "dog"]], max_seq_length=8)
    assert encoded.num_cut == encoded.windows.num_truncated == 1 and encoded.num_split == 1
    assert encoded.windows.lengths.max() == 8 and encoded.num_words == 3


def test_special_tokens_are_ordinary_characters(tokenizers):
    special = tokenizers[0].special
    ids = encode_words(tokenizers[0], [["[SEP]", "[MASK]"]], max_seq_length=64).windows.tokens.tolist()
    assert ids.count(special.sep) == 1 and special.mask not in ids


def test_no_words_are_no_windows(tokenizers):
    encoded = encode_words(tokenizers[0], [[], []], max_seq_length=8)
    assert len(encoded) == encoded.num_words == 0


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["the cat"], "a sentence must be several words, got one"),
        ([["a", 3]], "words must be strings, got int: 3"),
        ([["a", "\ud800"]], "the word .* holds half a character"),
    ],
)
def test_what_are_no_words(tokenizers, sentences, message):
    with pytest.raises(ValueError, match=message):
        encode_words(tokenizers[0], sentences, max_seq_length=8)
    with pytest.raises(ValueError, match="room for words"):
        encode_words(tokenizers[0], [["a"]], max_seq_length=2)


def test_words_of_plain_texts(tokenizers):
    texts = ["I saw a  saw.", "", "Él no's [SEP]\u3000中国", "\x01"]
    found = [[text[a:b] for a, b in spans] for text, spans in zip(texts, tokenizers[0].find_words(texts), strict=True)]
    assert found == [["I", "saw", "a", "saw", "."], [], ["Él", "no", "'", "s", "[", "SEP", "]", "中", "国"], []]


@given(st.integers(1, 12).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=40))))
def test_windows_hold_every_word_once_and_fit(case):
    room, counts = case
    windows = split_into_windows(np.array(counts, dtype=np.int64), room)
    assert [n for w in windows for n in range(w.own_first, w.own_end)] == list(range(len(counts)))
    for window in windows:
        assert sum(counts[window.first : window.end]) <= room
        assert window.first <= window.own_first < window.own_end <= window.end
    if sum(counts) <= room:
        assert len(windows) <= 1


def test_words_in_an_overlap_belong_where_they_are_farther_from_the_border():
    windows = split_into_windows(np.ones(250, dtype=np.int64), 100)
    assert [(w.first, w.end) for w in windows] == [(0, 100), (75, 175), (150, 250)]
    assert [(w.own_first, w.own_end) for w in windows] == [(0, 88), (88, 163), (163, 250)]
