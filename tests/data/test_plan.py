"""Which stretches of the corpus an epoch shows: nothing lost, documents kept apart, pairs as published."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.plan import EpochPlan, LengthIndex
from tests.data.in_memory_shards import InMemoryShards, make_part, make_shards, shards_strategy


def make_plan(shards, objective, *, seed=0, epoch=0, **size):
    lengths = LengthIndex.of(shards, objective.text_room)
    return EpochPlan.make(lengths, objective, seed=seed, epoch=epoch, **(size or {"batch_size": 4}))


def document_bounds(shards) -> np.ndarray:
    """First token of every document, and the end of the corpus."""
    starts, begin = [0], 0
    for part in shards.parts:
        starts += (part.sentence_offsets[part.document_offsets] + begin).tolist()
        begin += len(part.tokens)
    return np.unique(starts)


def document_of(shards, tokens: np.ndarray) -> np.ndarray:
    return np.searchsorted(document_bounds(shards), tokens, side="right")


@settings(deadline=None)
@given(shards_strategy(), st.integers(2, 50))
def test_pieces_fit_the_room_and_keep_every_boundary(shards, room):
    index = LengthIndex.of(shards, room)
    assert index.num_tokens == len(shards.tokens)
    lengths = np.diff(index.piece_offsets)
    assert not len(lengths) or (lengths.min() >= 1 and lengths.max() <= room)
    assert np.array_equal(index.piece_offsets[index.document_offsets], document_bounds(shards))
    begin = 0
    for part in shards.parts:
        assert np.isin(part.sentence_offsets + begin, index.piece_offsets).all()
        begin += len(part.tokens)


def test_long_sentences_are_cut_between_words():
    part = make_part([[20]], seed=0)
    part.word_starts[:] = 0
    part.word_starts[[0, 6, 9, 18]] = 1
    index = LengthIndex.of(InMemoryShards(parts=[part]), 8)
    assert index.piece_offsets.tolist() == [0, 6, 9, 17, 20]  # 17: a word of nine pieces has to be cut itself


@settings(deadline=None)
@given(shards_strategy(), st.integers(0, 9), st.integers(0, 3), st.integers(4, 60), st.floats(0, 1))
def test_windows_show_every_token_once(shards, seed, epoch, max_seq_length, short_rate):
    objective = ObjectiveConfig(max_seq_length=max_seq_length, short_sequence_rate=short_rate)
    plan = make_plan(shards, objective, seed=seed, epoch=epoch)
    bounds = plan.segments[:, 0]
    assert bounds[:, 0].tolist() == [0, *bounds[:-1, 1].tolist()][: len(bounds)]
    assert (bounds[-1, 1] if len(bounds) else 0) == len(shards.tokens)
    assert plan.num_examples == 0 or plan.example_lengths.max() <= max_seq_length
    assert np.array_equal(document_of(shards, bounds[:, 0]), document_of(shards, bounds[:, 1] - 1))
    assert sorted(plan.batch_examples.tolist()) == list(range(plan.num_examples))
    assert plan.labels is None


def test_windows_are_as_full_as_whole_sentences_allow():
    shards = make_shards(num_documents=60)
    plan = make_plan(shards, ObjectiveConfig(max_seq_length=64, short_sequence_rate=0.0))
    pieces = LengthIndex.of(shards, 62).piece_offsets
    for (begin, end), document_end in zip(
        plan.segments[:, 0], document_bounds(shards)[document_of(shards, plan.segments[:, 0, 0])], strict=True
    ):
        following = pieces[np.searchsorted(pieces, end) + 1] if end < document_end else None
        assert following is None or following - begin > 62


def test_short_sequences_have_their_rate():
    shards = InMemoryShards(parts=[make_part([[1] * 400_000], seed=0)])
    plan = make_plan(shards, ObjectiveConfig(max_seq_length=102, short_sequence_rate=0.1))
    lengths = plan.example_lengths - 2
    n = len(lengths)
    assert abs((lengths < 100).sum() - 0.1 * n * 98 / 99) < 5 * (0.09 * n) ** 0.5
    assert lengths[lengths < 100].mean() == pytest.approx(50.5, abs=5)


@settings(deadline=None)
@given(shards_strategy(min_documents=2), st.integers(0, 9), st.integers(5, 60), st.sampled_from(["nsp", "sop"]))
def test_pairs_fit_and_come_from_the_right_documents(shards, seed, max_seq_length, objective):
    plan = make_plan(shards, ObjectiveConfig(max_seq_length=max_seq_length, sentence_objective=objective), seed=seed)
    a, b = plan.segments[:, 0], plan.segments[:, 1]
    assert (a[:, 1] > a[:, 0]).all() and (b[:, 1] > b[:, 0]).all()
    assert plan.num_examples == 0 or plan.example_lengths.max() <= max_seq_length
    document_a, document_b = document_of(shards, a[:, 0]), document_of(shards, b[:, 0])
    assert np.array_equal(document_a, document_of(shards, a[:, 1] - 1))
    assert np.array_equal(document_b, document_of(shards, b[:, 1] - 1))
    if objective == "nsp":
        assert np.array_equal(document_a != document_b, plan.labels == 1)
        assert (a[:, 1] <= b[:, 0])[plan.labels == 0].all()
    else:
        assert np.array_equal(document_a, document_b)
        assert np.array_equal(b[:, 1] <= a[:, 0], plan.labels == 1)
        assert np.array_equal(a[:, 1] <= b[:, 0], plan.labels == 0)


def test_unused_sentences_are_put_back():
    shards = make_shards(num_documents=30)
    room = len(shards.tokens)  # so large that nothing is truncated
    plan = make_plan(shards, ObjectiveConfig(max_seq_length=room + 3, sentence_objective="nsp"))
    own = np.concatenate((plan.segments[:, 0], plan.segments[plan.labels == 0, 1]))
    own = own[np.argsort(own[:, 0])]
    assert own[:, 0].tolist() == [0, *own[:-1, 1].tolist()] and own[-1, 1] == room


def test_sentence_order_loses_nothing_but_what_it_truncates():
    shards = make_shards(num_documents=30, sentences=(2, 12))
    room = len(shards.tokens)
    plan = make_plan(shards, ObjectiveConfig(max_seq_length=room + 3, sentence_objective="sop"))
    own = plan.segments.reshape(-1, 2)
    own = own[np.argsort(own[:, 0])]
    assert own[:, 0].tolist() == [0, *own[:-1, 1].tolist()] and own[-1, 1] == room


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_labels_are_balanced(objective):
    shards = make_shards(num_documents=2000, sentences=(6, 20))
    labels = make_plan(shards, ObjectiveConfig(max_seq_length=64, sentence_objective=objective)).labels
    n = len(labels)
    # A lone last sentence always gets a random successor, as published, so next-sentence labels lean to 1.
    lean = 0.0 if objective == "sop" else 0.08
    assert -5 * 0.5 / n**0.5 < labels.mean() - 0.5 < lean + 5 * 0.5 / n**0.5


def test_single_sentences_are_split_for_sentence_order():
    plan = make_plan(
        InMemoryShards(parts=[make_part([[10], [1], [7]], seed=0)]), ObjectiveConfig(sentence_objective="sop")
    )
    bounds = [sorted(example) for example in plan.segments.tolist()]
    assert [(low[0], high[1]) for low, high in bounds] == [(0, 10), (11, 18)]  # one token cannot be two segments
    assert all(low[1] == high[0] for low, high in bounds)


def test_truncation_takes_from_both_ends_of_the_longer_segment():
    shards = InMemoryShards(parts=[make_part([[30, 35]] * 400, seed=0)])
    plan = make_plan(shards, ObjectiveConfig(max_seq_length=43, sentence_objective="sop", short_sequence_rate=0.0))
    lengths = np.diff(plan.segments, axis=2)[..., 0]
    assert (lengths.sum(1) == 40).all() and (abs(lengths[:, 0] - lengths[:, 1]) <= 1).all()
    first = plan.segments.min(axis=1)[:, 0] % 65
    assert first.min() == 0 or first.min() < 4
    assert 3 < first.mean() < 7  # ten tokens removed, half of them at the front


@pytest.mark.parametrize("objective", ["none", "nsp", "sop"])
def test_plans_are_a_function_of_seed_and_epoch(objective):
    shards, config = make_shards(), ObjectiveConfig(max_seq_length=64, sentence_objective=objective)
    same, again = make_plan(shards, config, seed=3, epoch=1), make_plan(shards, config, seed=3, epoch=1)
    assert np.array_equal(same.segments, again.segments) and np.array_equal(same.batch_examples, again.batch_examples)
    for other in (make_plan(shards, config, seed=3, epoch=2), make_plan(shards, config, seed=4, epoch=1)):
        assert not np.array_equal(same.batch_examples, other.batch_examples)
        assert not np.array_equal(same.segments, other.segments)


def test_a_document_is_planned_alike_in_any_company():
    documents = [[5, 9, 3, 8], [4, 4, 4], [9, 2, 7, 7, 7]]
    config = ObjectiveConfig(max_seq_length=16, sentence_objective="sop")
    alone = make_plan(InMemoryShards(parts=[make_part(documents[:1], seed=0)]), config)
    together = make_plan(InMemoryShards(parts=[make_part(documents, seed=0)]), config)
    assert np.array_equal(together.segments[: alone.num_examples], alone.segments)


def test_batches_of_a_fixed_size_keep_the_rest():
    plan = make_plan(make_shards(), ObjectiveConfig(max_seq_length=32), batch_size=7)
    sizes = np.diff(plan.batch_offsets)
    assert (sizes[:-1] == 7).all() and 1 <= sizes[-1] <= 7
    assert plan.batch_tokens().sum() == plan.num_tokens
