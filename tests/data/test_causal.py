"""Causal batches: every token is predicted once an epoch, from its own document alone, as a pure function of place."""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.data.causal import CausalData, CausalObjectiveConfig
from fastssl.data.corpus import EXACT
from fastssl.data.encode import encode_files
from fastssl.data.tokenizer import TextBounds, Tokenizer
from tests.data.in_memory_shards import InMemoryShards, make_part, make_shards, shards_strategy

BOUNDS = TextBounds(bos=2, eos=3)


def make_data(shards=None, *, length=16, seed=0, bounds=BOUNDS, moving_cuts=True, **size) -> CausalData:
    objective = CausalObjectiveConfig(max_seq_length=length)
    size = size or {"batch_size": 8}
    return CausalData(shards or make_shards(), bounds, objective, seed=seed, moving_cuts=moving_cuts, **size)


def documents_of(shards: InMemoryShards) -> list[list[int]]:
    found = []
    for part in shards.parts:
        bounds = part.sentence_offsets[part.document_offsets]
        found += [part.tokens[a:b].tolist() for a, b in itertools.pairwise(bounds) if b > a]
    return found


def sequences(data: CausalData, epoch: int) -> list[tuple[list[int], list[int]]]:
    """Return (input ids, next tokens) of each sequence of an epoch."""
    found = []
    for index in range(data.num_batches(epoch)):
        batch = data.batch(epoch, index)
        cuts = batch.cu_seqlens.tolist()
        inputs, following = batch.input_ids.tolist(), batch.next_tokens.tolist()
        found += [(inputs[a:b], following[a:b]) for a, b in itertools.pairwise(cuts)]
    return found


def digest(data: CausalData, epoch: int, index: int) -> str:
    batch = data.batch(epoch, index)
    return str([v.tolist() for v in vars(batch).values() if isinstance(v, torch.Tensor)])


@settings(deadline=None, max_examples=60)
@given(shards_strategy(min_documents=1), st.integers(2, 30), st.integers(0, 3), st.booleans(), st.booleans())
def test_every_token_is_predicted_once_and_documents_come_back(shards, length, epoch, moving_cuts, by_tokens):
    size = {"tokens_per_batch": 2 * length} if by_tokens else {"batch_size": 3}
    data = make_data(shards, length=length, moving_cuts=moving_cuts, **size)
    plan = data.plan(epoch)
    pieces = dict(zip(plan.batch_examples.tolist(), sequences(data, epoch), strict=True))
    restored = {}
    for number in range(plan.num_examples):
        inputs, following = pieces[number]
        assert 1 <= len(inputs) <= length
        assert inputs[1:] == following[:-1]
        document = restored.setdefault(int(plan.documents[number]), [BOUNDS.bos])
        assert inputs[0] == document[-1]
        document += following
    assert list(restored.values()) == [[BOUNDS.bos, *tokens, BOUNDS.eos] for tokens in documents_of(shards)]
    assert plan.num_tokens == sum(len(tokens) + 1 for tokens in documents_of(shards))


@pytest.mark.parametrize("size", [{"batch_size": 8}, {"tokens_per_batch": 50}], ids=lambda s: next(iter(s)))
def test_batches_are_packed_and_well_formed(size):
    data = make_data(**size)
    for index in range(data.num_batches(0)):
        batch = data.batch(0, index)
        lengths = batch.cu_seqlens.diff().tolist()
        assert batch.max_seqlen == max(lengths) <= 16
        assert batch.num_tokens <= size.get("tokens_per_batch", 8 * 16)
        assert batch.position_ids.tolist() == [p for n in lengths for p in range(n)]
        assert batch.target_counts() == {"causal_lm": batch.num_tokens}
        assert {batch.input_ids.dtype, batch.next_tokens.dtype, batch.position_ids.dtype} == {torch.int64}


def test_no_sequence_holds_two_documents():
    parts = [make_part([[9], [20], [3, 4]], 0), make_part([[40]], 1)]
    for number, part in enumerate(parts):
        part.tokens[:] = 10 + number
        part.tokens[part.sentence_offsets[part.document_offsets[1]] :] += 20
    for inputs, following in sequences(make_data(InMemoryShards(parts=parts)), 0):
        assert len({*inputs, *following} - {BOUNDS.bos, BOUNDS.eos}) == 1


def test_cuts_move_from_epoch_to_epoch_unless_told_not_to():
    one = InMemoryShards(parts=[make_part([[1000]], 0)])
    moving, still = make_data(one), make_data(one, moving_cuts=False)
    firsts = {int(moving.plan(epoch).ends[0]) for epoch in range(30)}
    assert firsts <= set(range(1, 17))
    assert len(firsts) > 8
    assert all(np.array_equal(still.plan(epoch).begins, np.arange(0, 1001, 16)) for epoch in range(3))
    assert digest(moving, 0, 0) != digest(moving, 1, 0)
    assert digest(still, 0, 0) != digest(still, 1, 0)


def test_first_cuts_are_uniform():
    many = InMemoryShards(parts=[make_part([[60]] * 4000, 0)])
    data = make_data(many, length=8)
    plan = data.plan(0)
    counts = np.bincount(plan.ends[plan.begins == 0], minlength=9)[1:]
    assert counts.sum() == 4000
    assert (abs(counts - 500) < 5 * np.sqrt(500)).all()


def test_any_order_thread_or_process_draws_the_same():
    data = make_data(tokens_per_batch=60)
    wanted = [(epoch, index) for epoch in (0, 1, 2) for index in range(0, data.num_batches(epoch), 3)]
    expected = [digest(data, *place) for place in wanted]
    assert len(set(expected)) == len(expected)
    backwards = make_data(tokens_per_batch=60)
    assert [digest(backwards, *place) for place in reversed(wanted)] == expected[::-1]
    shared = make_data(tokens_per_batch=60)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda place: digest(shared, *place), wanted)) == expected
    code = "from tests.data.test_causal import *; print(digest(make_data(tokens_per_batch=60), 1, 3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(data, 1, 3)
    assert digest(make_data(seed=1, tokens_per_batch=60), 1, 3) != digest(data, 1, 3)


def test_files_come_back_byte_for_byte(test_data: Path, tmp_path: Path):
    content = (test_data / "corpus" / "tinyshakespeare.txt").read_bytes()
    for name, text in (("a", content[:70_000]), ("b", content[70_000:100_000].replace(b"\n", b"\r\n") + b"\n\n \n")):
        (tmp_path / f"{name}.txt").write_bytes(text)
    files = sorted(tmp_path.glob("*.txt"))
    for tokenizer in (Tokenizer.load(test_data / "tokenizers" / "gpt2"), Tokenizer.of_bytes()):
        shards = encode_files(
            files, tokenizer, tmp_path / str(tokenizer.vocab_size), form=EXACT, progress=False, tokens_per_part=1000
        )
        assert (len(shards.parts), shards.num_documents) == (2, 2)
        data = make_data(shards, length=64, bounds=tokenizer.bounds)
        plan = data.plan(1)
        pieces = dict(zip(plan.batch_examples.tolist(), sequences(data, 1), strict=True))
        for document, file in enumerate(files):
            tokens = [t for n in np.flatnonzero(plan.documents == document) for t in pieces[int(n)][1]]
            assert tokens.pop() == tokenizer.bounds.eos
            assert tokenizer.decode(tokens).encode() == file.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4, "tokens_per_batch": 100}, "either batch_size or tokens_per_batch"),
        ({"tokens_per_batch": 15}, "tokens_per_batch must hold the longest sequence, max_seq_length=16, got 15"),
        ({"shards": InMemoryShards(parts=[make_part([[], [0]], 0)])}, "no text"),
        ({"shards": InMemoryShards(parts=[])}, "no text"),
        ({"bounds": TextBounds(bos=2, eos=60)}, "ids 2 and 60, but the shards' vocabulary has 60"),
        ({"length": 1}, "max_seq_length must be at least 2, got 1"),
    ],
)
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        make_data(**change)


def test_batches_out_of_range_are_told():
    data = make_data()
    with pytest.raises(ValueError, match="epoch 0 has batches 0 to"):
        data.batch(0, data.num_batches(0))
    with pytest.raises(ValueError, match="epoch must be between 0"):
        data.batch(-1, 0)
