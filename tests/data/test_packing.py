"""Best fit: budgets kept, nothing lost, little room left."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.data.host import host_code
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.packing import consecutive_batches, packed_batches
from fastssl.data.plan import EpochPlan, LengthIndex
from tests.data.in_memory_shards import make_shards


@given(st.integers(1, 300), st.lists(st.integers(1, 300), max_size=100), st.randoms(use_true_random=False))
def test_bins_hold_every_item_once_within_their_capacity(capacity, lengths, random):
    lengths = np.array([min(length, capacity) for length in lengths], dtype=np.int64)
    order = np.array(random.sample(range(len(lengths)), len(lengths)), dtype=np.int64)
    bins = host_code().pack_best_fit(lengths, order, capacity)
    loads = np.bincount(bins, weights=lengths[order]) if len(bins) else np.zeros(0)
    assert (loads <= capacity).all()
    assert len(loads) < 2 or sum(loads <= capacity / 2) <= 1  # any two bins that fit into one would be one
    offsets, examples = packed_batches(bins, np.arange(len(loads))[::-1].copy(), order)
    assert sorted(examples.tolist()) == list(range(len(lengths)))
    batch_loads = [lengths[examples[a:b]].sum() for a, b in itertools.pairwise(offsets)]
    assert batch_loads == loads[::-1].tolist()


def test_an_item_goes_where_it_leaves_least():
    lengths = np.array([6, 7, 3, 4, 1])
    assert host_code().pack_best_fit(lengths, np.arange(5), 10).tolist() == [0, 1, 1, 0, 2]
    assert host_code().pack_best_fit(lengths, np.array([0, 1, 4, 2, 3]), 10).tolist() == [0, 1, 1, 0, 2]


def test_fixed_batches():
    assert consecutive_batches(7, 3).tolist() == [0, 3, 6, 7]
    assert consecutive_batches(6, 3).tolist() == [0, 3, 6]
    assert consecutive_batches(0, 3).tolist() == [0]


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([64, 100, 512, 4096]), st.integers(0, 5))
def test_token_budgets_are_kept_and_filled(budget, seed):
    objective = ObjectiveConfig(max_seq_length=64)
    lengths = LengthIndex.of(make_shards(num_documents=500), objective.text_room)
    plan = EpochPlan.make(lengths, objective, seed=seed, epoch=0, tokens_per_batch=budget)
    tokens = plan.batch_tokens()
    assert tokens.max() <= budget
    assert sorted(plan.batch_examples.tolist()) == list(range(plan.num_examples))
    optimum = -(-plan.num_tokens // budget)
    if budget >= 512:
        assert plan.num_batches <= 1.02 * optimum + 1


def test_well_filled_batches_do_not_come_first():
    objective = ObjectiveConfig(max_seq_length=64)
    lengths = LengthIndex.of(make_shards(num_documents=2000), objective.text_room)
    tokens = EpochPlan.make(lengths, objective, seed=0, epoch=0, tokens_per_batch=100).batch_tokens()
    correlation = np.corrcoef(tokens, np.arange(len(tokens)))[0, 1]
    assert abs(correlation) < 5 / len(tokens) ** 0.5
