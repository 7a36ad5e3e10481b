"""Batches are a pure function of (seed, epoch, index), and hold the corpus."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fastssl import extension
from fastssl.data import dataset, numpy_host
from fastssl.data.dataset import PretrainingData
from fastssl.data.encode import encode_files
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.tokenizer import Tokenizer
from tests.data.in_memory_shards import SPECIAL, InMemoryPart, InMemoryShards, make_part, make_shards

OBJECTIVES = [
    ObjectiveConfig(max_seq_length=48, sentence_objective=sentences, mask_strategy=strategy)
    for sentences, strategy in (("none", "token"), ("nsp", "word"), ("sop", "ngram"), ("none", "span"))
]


def make_data(objective=OBJECTIVES[0], *, shards=None, seed=0, **size) -> PretrainingData:
    return PretrainingData(shards or make_shards(), SPECIAL, objective, seed=seed, **(size or {"batch_size": 8}))


def tensors(batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def assert_same(first, second) -> None:
    assert tensors(first).keys() == tensors(second).keys()
    for name, tensor in tensors(first).items():
        assert torch.equal(tensor, tensors(second)[name]), name


def digest(data: PretrainingData, epoch: int, index: int) -> str:
    return str([tensor.tolist() for tensor in tensors(data.batch(epoch, index)).values()])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.sentence_objective}-{o.mask_strategy}")
@pytest.mark.parametrize("size", [{"batch_size": 8}, {"tokens_per_batch": 200}], ids=lambda s: next(iter(s)))
def test_batches_are_packed_and_well_formed(objective, size):
    data = make_data(objective, **size)
    sequences = 0
    for index in range(data.num_batches(0)):
        batch = data.batch(0, index)
        lengths = batch.cu_seqlens.diff().tolist()
        sequences += len(lengths)
        assert batch.max_seqlen == max(lengths) <= 48
        assert batch.num_tokens <= size.get("tokens_per_batch", 8 * 48)
        assert batch.position_ids.tolist() == [p for length in lengths for p in range(length)]
        assert (batch.input_ids[batch.cu_seqlens[:-1].long()] == SPECIAL.cls).all()
        assert (batch.input_ids[batch.cu_seqlens[1:].long() - 1] == SPECIAL.sep).all()
        separators = torch.isin(batch.input_ids, torch.tensor([SPECIAL.cls, SPECIAL.sep])).sum()
        assert separators == len(lengths) * objective.num_special_tokens
        restored = batch.input_ids.clone()
        restored[batch.masked_positions] = batch.masked_labels
        assert not (restored == SPECIAL.pad).any() and not (restored == SPECIAL.mask).any()
        for ids, types in zip(batch.input_ids.split(lengths), batch.token_type_ids.split(lengths), strict=True):
            first = int((ids == SPECIAL.sep).nonzero()[0])
            assert types.tolist() == [0] * (first + 1) + [1] * (len(ids) - first - 1)
        assert (batch.sentence_labels is None) == (objective.sentence_objective == "none")
        assert {t.dtype for n, t in tensors(batch).items() if n != "cu_seqlens"} == {torch.int64}
    assert sequences == data.plan(0).num_examples


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.sentence_objective}-{o.mask_strategy}")
def test_any_order_thread_or_process_draws_the_same(objective):
    data = make_data(objective, tokens_per_batch=200)
    wanted = [(epoch, index) for epoch in (0, 1, 2) for index in range(0, data.num_batches(epoch), 3)]
    expected = [digest(data, *place) for place in wanted]
    assert len(set(expected)) == len(expected)
    backwards = make_data(objective, tokens_per_batch=200)
    assert [digest(backwards, *place) for place in reversed(wanted)] == expected[::-1]
    shared = make_data(objective, tokens_per_batch=200)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda place: digest(shared, *place), wanted)) == expected


def test_another_process_draws_the_same():
    program = (
        "from tests.data.test_dataset import *\n"
        "print(digest(make_data(OBJECTIVES[2], seed=5, tokens_per_batch=200), 3, 4))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(make_data(OBJECTIVES[2], seed=5, tokens_per_batch=200), 3, 4)


def test_masks_change_with_epoch_and_seed():
    data, objective = make_data(), dataclasses.replace(OBJECTIVES[0], short_sequence_rate=0.0)
    data, other = make_data(objective, seed=1), make_data(objective, seed=2)
    examples = np.arange(20)
    first = data.examples(0, examples)
    assert_same(first, data.examples(0, examples))
    for changed in (data.examples(1, examples), other.examples(0, examples)):
        assert torch.equal(first.cu_seqlens, changed.cu_seqlens)
        assert not torch.equal(first.masked_positions, changed.masked_positions)


def test_seeds_of_any_sign_and_size():
    assert digest(make_data(seed=-1), 0, 0) == digest(make_data(seed=2**64 - 1), 0, 0)
    assert digest(make_data(seed=-1), 0, 0) != digest(make_data(seed=2**32 - 1), 0, 0)


def test_two_and_four_byte_tokens_are_the_same_text():
    parts = make_shards(num_parts=1).parts
    wide = [dataclasses.replace(part, tokens=part.tokens.astype(np.uint32)) for part in parts]
    narrow_data, wide_data = (make_data(shards=InMemoryShards(parts=p)) for p in (parts, wide))
    assert_same(narrow_data.batch(0, 1), wide_data.batch(0, 1))


@pytest.mark.host
def test_without_the_compiled_code_the_batches_are_the_same(monkeypatch):
    data = make_data(OBJECTIVES[1], tokens_per_batch=200)
    expected = digest(data, 1, 2)
    assert dataset.host_code() is extension.host()
    monkeypatch.setattr(extension, "host", lambda: None)
    assert dataset.host_code() is numpy_host
    assert digest(make_data(OBJECTIVES[1], tokens_per_batch=200), 1, 2) == expected


def test_shards_on_disk_in_many_parts_are_one_corpus(test_data, tmp_path):
    tokenizer = Tokenizer.load(test_data / "tokenizers" / "bert-base-uncased")
    for name, text in (("kjv", (100, 90_000)), ("wikitext2.valid", (0, 60_000))):
        content = (test_data / "corpus" / f"{name}.txt").read_text(encoding="utf-8")
        (tmp_path / f"{name}.txt").write_text(content[slice(*text)], encoding="utf-8")
    files = sorted(tmp_path.glob("*.txt"))
    on_disk = encode_files(files, tokenizer, tmp_path / "shards", num_processes=1, progress=False, tokens_per_part=7000)
    assert len(on_disk.parts) > 1
    sentences, documents = on_disk.sentence_lengths(), on_disk.document_lengths()
    offsets = np.concatenate(([0], np.cumsum(sentences)))
    in_memory = InMemoryPart(
        tokens=np.concatenate([part.tokens for part in on_disk.parts]),
        word_starts=np.concatenate([part.word_starts for part in on_disk.parts]),
        sentence_offsets=offsets,
        document_offsets=np.searchsorted(offsets, np.concatenate(([0], np.cumsum(documents)))),
    )
    together = InMemoryShards(parts=[in_memory], vocab_size=tokenizer.vocab_size)
    for objective in OBJECTIVES:
        split, whole = (
            PretrainingData(shards, tokenizer.special, objective, seed=0, tokens_per_batch=500)
            for shards in (on_disk, together)
        )
        for index in range(0, whole.num_batches(0), 5):
            assert_same(split.batch(0, index), whole.batch(0, index))


def test_only_the_last_plans_are_kept_and_their_counts_remembered():
    data = make_data()
    counts = [data.num_batches(epoch) for epoch in range(5)]
    assert data.plan(3) is data.plan(3)
    assert data.plan(0) is not None and [data.num_batches(epoch) for epoch in range(5)] == counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4, "tokens_per_batch": 100}, "either batch_size or tokens_per_batch"),
        ({"batch_size": None}, "either batch_size or tokens_per_batch"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"tokens_per_batch": 47}, "tokens_per_batch must hold the longest sequence, max_seq_length=48, got 47"),
        ({"shards": InMemoryShards(parts=[make_part([[], [0]], 0)])}, "no text"),
        ({"shards": InMemoryShards(parts=[])}, "no text"),
        ({"shards": InMemoryShards(parts=make_shards().parts, vocab_size=4)}, "vocabulary has 4"),
    ],
)
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        make_data(**change)


def test_next_sentences_need_two_documents():
    one = InMemoryShards(parts=[make_part([[3, 4, 5], [], [0]], 0)])
    with pytest.raises(ValueError, match="needs at least 2 documents"):
        make_data(OBJECTIVES[1], shards=one)
    assert make_data(OBJECTIVES[2], shards=one).num_batches(0) == 1


def test_a_corpus_without_examples_is_told():
    data = make_data(OBJECTIVES[2], shards=InMemoryShards(parts=[make_part([[1], [1]], 0)]))
    with pytest.raises(ValueError, match="finds no example"):
        data.num_batches(0)


def test_batches_out_of_range_are_told():
    data = make_data()
    last = data.num_batches(0) - 1
    for index in (-1, last + 1):
        with pytest.raises(ValueError, match=f"epoch 0 has batches 0 to {last}, got index {index}"):
            data.batch(0, index)
    with pytest.raises(ValueError, match="epoch must be between 0"):
        data.batch(-1, 0)
