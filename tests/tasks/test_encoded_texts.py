"""Encoded texts equal those of Hugging Face's tokenizer, truncation included, and batches hold what they should."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from fastssl import PackedBatch, Tokenizer
from fastssl.tasks.encoded_texts import encode_texts

TEXTS = ["a cat sees a dog", "", "the old house by the river is large", "cat", "a b c d e f g"]
PAIRS = ["the dog likes it", "a tree", "a", "small birds find the river under the old tree", "g f e d c b a a"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train_wordpiece(TEXTS + PAIRS, vocab_size=80, min_frequency=1).save(directory)
    return Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("length", [4, 5, 8, 11, 12, 64])
@pytest.mark.parametrize("paired", [False, True])
def test_encoding_and_truncation_are_hugging_faces(tokenizers, length, paired):
    ours, theirs = tokenizers
    arguments = (TEXTS, PAIRS) if paired else (TEXTS,)
    expected = theirs(*arguments, truncation="longest_first", max_length=length)
    encoded = encode_texts(ours, *arguments, max_seq_length=length)
    batch = encoded.batch(np.arange(len(TEXTS)))
    lengths = batch.cu_seqlens.diff().tolist()
    assert [ids.tolist() for ids in batch.input_ids.split(lengths)] == expected["input_ids"]
    assert [types.tolist() for types in batch.token_type_ids.split(lengths)] == expected["token_type_ids"]
    whole = theirs(*arguments)["input_ids"]
    assert encoded.num_truncated == sum(len(ids) > length for ids in whole)


def test_batches_are_those_of_packed_sequences(tokenizers):
    encoded = encode_texts(tokenizers[0], TEXTS, max_seq_length=64)
    labels = torch.arange(5)
    batch = encoded.batch(np.array([3, 0]), labels)
    rows = [encoded.tokens[encoded.offsets[i] : encoded.offsets[i + 1]] for i in (3, 0)]
    expected = PackedBatch.from_sequences(rows, sequence_labels=torch.tensor([3, 0]))
    for name in ("input_ids", "cu_seqlens", "position_ids", "token_type_ids", "sequence_labels"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
        assert getattr(batch, name).dtype == getattr(expected, name).dtype, name
    assert batch.max_seqlen == expected.max_seqlen


@pytest.mark.parametrize("tokens_per_batch", [1, 9, 1000])
def test_by_length_holds_every_example_once(tokenizers, tokens_per_batch):
    encoded = encode_texts(tokenizers[0], TEXTS * 3, max_seq_length=64)
    groups = list(encoded.by_length(tokens_per_batch))
    numbers = np.concatenate(groups)
    assert sorted(numbers) == list(range(15)) and (np.diff(encoded.lengths[numbers]) <= 0).all()
    assert all(len(group) for group in groups)


def test_special_tokens_in_a_text_are_ordinary_characters(tokenizers):
    special = tokenizers[0].special
    ids = encode_texts(tokenizers[0], ["a [SEP] b [MASK]"], max_seq_length=64).tokens.tolist()
    assert ids.count(special.sep) == 1 and special.mask not in ids


def test_special_tokens_in_a_text_count_where_that_is_asked_for(tokenizers):
    ours, theirs = tokenizers
    texts = ["a [SEP] b [MASK]", "", "a cat [MASK] a dog likes"]
    encoded = encode_texts(ours, texts, max_seq_length=6, reads_special=True)
    expected = theirs(texts, truncation=True, max_length=6)["input_ids"]
    assert encoded.tokens.tolist() == [token for row in expected for token in row] and encoded.tokens.dtype == np.int32


def test_a_length_without_room_is_refused(tokenizers):
    with pytest.raises(ValueError, match="room for text"):
        encode_texts(tokenizers[0], TEXTS, PAIRS, max_seq_length=3)
