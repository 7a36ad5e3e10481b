"""Pairs: read from every kind of file, and in batches without repeats."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from fastssl import PackedBatch, Tokenizer
from fastssl.tasks.embedding.pairs import PairData, batches_without_repeats, read_pair_texts, text_numbers
from fastssl.tasks.encoded_texts import encode_texts
from fastssl.tasks.labelled_texts import ColumnConfig

ANCHORS = ["one cat", "two dogs", "three birds", "four fish", "five cows"]
POSITIVES = ["a cat", "some dogs", "birds", "many fish", "cows here"]


def write(path: Path, rows: list[tuple[str, ...]]) -> Path:
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_wordpiece(ANCHORS + POSITIVES, vocab_size=90, min_frequency=1)


def test_pairs_with_and_without_hard_negatives(tmp_path):
    rows = list(zip(ANCHORS, POSITIVES, ANCHORS[::-1], strict=True))
    path = write(tmp_path / "a.tsv", [("anchor", "positive", "negative"), *rows, ("x", " ", "y")])
    found = read_pair_texts(path, ColumnConfig())
    assert found.columns == [ANCHORS, POSITIVES, ANCHORS[::-1]] and found.num_empty == 1 and len(found) == 5
    path = write(tmp_path / "b.tsv", [("question", "answer", "wrong"), *rows])
    assert read_pair_texts(path, ColumnConfig()).negatives is None
    assert read_pair_texts(path, ColumnConfig(), "wrong").negatives == ANCHORS[::-1]
    with pytest.raises(ValueError, match=r"no column 'bad' \(negative_column\); it has question, answer, wrong"):
        read_pair_texts(path, ColumnConfig(), "bad")


def test_sentences_of_a_table_and_of_plain_lines(tmp_path):
    path = write(tmp_path / "a.tsv", [("sentence",), *((text,) for text in ANCHORS)])
    assert read_pair_texts(path, ColumnConfig()).columns == [ANCHORS]
    lines = tmp_path / "lines.txt"
    lines.write_text("\r\n".join([*ANCHORS, "", "  "]), encoding="utf-8-sig")
    found = read_pair_texts(lines, ColumnConfig())
    assert found.anchors == ANCHORS and found.positives is None and found.num_empty == 2
    tabbed = write(tmp_path / "tabbed.txt", [("anchor", "positive"), *zip(ANCHORS, POSITIVES, strict=True)])
    assert read_pair_texts(tabbed, ColumnConfig()).columns == [ANCHORS, POSITIVES]


def test_wrong_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.txt is not a file"):
        read_pair_texts(tmp_path / "nowhere.txt", ColumnConfig())
    path = tmp_path / "lines.txt"
    path.write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"lines.txt, line 2 is not UTF-8"):
        read_pair_texts(path, ColumnConfig())
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="every row has an empty text"):
        read_pair_texts(path, ColumnConfig())
    alone = write(tmp_path / "a.tsv", [("sentence", "negative"), ("a", "b")])
    with pytest.raises(ValueError, match="hard negatives but no second text"):
        read_pair_texts(alone, ColumnConfig())
    numbers = tmp_path / "a.jsonl"
    numbers.write_text('{"anchor": "a", "positive": "b", "negative": 3}\n')
    with pytest.raises(ValueError, match="line 1: column 'negative' must hold a text, got 3"):
        read_pair_texts(numbers, ColumnConfig())


@pytest.mark.parametrize("columns", [(ANCHORS,), (ANCHORS, POSITIVES), (ANCHORS, POSITIVES, ANCHORS[::-1])])
def test_a_batch_holds_anchors_their_partners_and_hard_negatives(tokenizer, columns):
    encoded = encode_texts(tokenizer, [text for column in columns for text in column], max_seq_length=16)
    data = PairData(encoded, text_numbers(columns[:2]), seed=3, batch_size=2)
    shown = columns if len(columns) > 1 else (ANCHORS, ANCHORS)
    seen = []
    for index in range(3):
        batch = data.batch(0, index)
        texts = [tokenizer.decode(ids[1:-1]) for ids in batch.input_ids.split(batch.cu_seqlens.diff().tolist())]
        first = texts[: batch.num_pairs]
        seen += first
        numbers = [ANCHORS.index(text) for text in first]
        assert texts == [column[number] for column in shown for number in numbers]
    assert sorted(seen) == sorted(ANCHORS)
    assert isinstance(batch, PackedBatch) and batch.num_pairs == 1 and data.num_batches(7) == 3
    assert torch.equal(data.batch(0, 0).input_ids, data.batch(0, 0).input_ids)
    with pytest.raises(ValueError, match="batches 0 to 2, got index 3"):
        data.batch(0, 3)
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        PairData(encoded, text_numbers(columns[:2]), seed=3, batch_size=1)


def test_epochs_have_orders_of_their_own(tokenizer):
    encoded = encode_texts(tokenizer, ANCHORS + POSITIVES, max_seq_length=16)
    data = PairData(encoded, text_numbers([ANCHORS, POSITIVES]), seed=0, batch_size=5)
    orders = {tuple(data.batch(epoch, 0).input_ids.tolist()) for epoch in range(4)}
    assert len(orders) == 4


def test_no_text_stands_twice_in_a_batch_but_the_last():
    random = np.random.default_rng(0)
    texts = random.integers(0, 400, (1000, 2))
    batches = batches_without_repeats(random.permutation(1000), texts, 16)
    assert [len(batch) for batch in batches] == [16] * 62 + [8]
    assert sorted(itertools.chain(*batches)) == list(range(1000))
    clean = [len(set(texts[batch].ravel())) == sum(len(set(row)) for row in texts[batch]) for batch in batches]
    assert sum(clean) >= 58


def test_texts_that_are_all_alike_still_make_batches():
    batches = batches_without_repeats(np.arange(200), np.zeros((200, 2), dtype=int), 32)
    assert [len(batch) for batch in batches] == [32] * 6 + [8]


def test_text_numbers_are_equal_for_equal_texts():
    np.testing.assert_array_equal(text_numbers([["a", "b"], ["b", "a"]]), [[0, 1], [1, 0]])
