"""The compiled data code and its numpy twin give the same bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl import extension
from fastssl.data import numpy_host
from fastssl.data.numpy_host import examples, philox
from fastssl.data.objectives import ObjectiveConfig, masking_rules, probability_threshold
from fastssl.data.plan import LengthIndex, example_lengths
from tests.data.in_memory_shards import SPECIAL, VOCAB_SIZE, make_shards, shards_strategy

pytestmark = pytest.mark.host
SEEDS = st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 2**32 - 1)


def assert_same(ours: tuple[np.ndarray, ...], twins: tuple[np.ndarray, ...]) -> None:
    for mine, other in zip(ours, twins, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        assert np.array_equal(mine, other)


@settings(deadline=None, max_examples=60)
@given(shards_strategy(min_documents=2), SEEDS, EPOCHS, st.integers(2, 50), st.sampled_from([0, 1, 2]), st.floats(0, 1))
def test_plans(shards, seed, epoch, room, objective, short_rate):
    lengths = LengthIndex.of(shards, room)
    arguments = {
        "seed": seed,
        "epoch": epoch,
        "sentence_objective": objective,
        "room": room,
        "short_threshold": probability_threshold(short_rate),
    }
    arrays = lengths.piece_offsets, lengths.document_offsets
    assert_same(extension.host().plan_examples(*arrays, **arguments), numpy_host.plan_examples(*arrays, **arguments))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 500), SEEDS, EPOCHS, st.integers(1, 4))
def test_shuffles(count, seed, epoch, purpose):
    arguments = {"seed": seed, "epoch": epoch, "purpose": purpose}
    assert_same((extension.host().shuffled(count, **arguments),), (numpy_host.shuffled(count, **arguments),))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9000), st.lists(st.floats(0, 1), max_size=200), st.integers(0, 99))
def test_packings(capacity, shares, seed):
    lengths = np.array([round(share * capacity) for share in shares], dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(lengths))
    assert_same(
        (extension.host().pack_best_fit(lengths, order, capacity),),
        (numpy_host.pack_best_fit(lengths, order, capacity),),
    )


OBJECTIVES = st.builds(
    ObjectiveConfig,
    mask_strategy=st.sampled_from(["token", "word", "ngram", "span"]),
    sentence_objective=st.sampled_from(["none", "nsp", "sop"]),
    mask_rate=st.sampled_from([0.01, 0.15, 0.5, 1.0]),
    mask_token_rate=st.sampled_from([0.0, 0.5, 0.8]),
    random_token_rate=st.sampled_from([0.0, 0.1, 0.2]),
    max_seq_length=st.integers(5, 70),
)


@settings(deadline=None, max_examples=80)
@given(shards_strategy(min_documents=2), OBJECTIVES, SEEDS, EPOCHS, st.integers(0, 2**40))
def test_drawn_batches(shards, objective, seed, epoch, first_example):
    lengths = LengthIndex.of(shards, objective.text_room)
    code = {"none": examples.NONE, "nsp": examples.NEXT_SENTENCE, "sop": examples.SENTENCE_ORDER}
    segments, _ = numpy_host.plan_examples(
        lengths.piece_offsets,
        lengths.document_offsets,
        seed=seed,
        epoch=epoch,
        sentence_objective=code[objective.sentence_objective],
        room=lengths.room,
        short_threshold=0,
    )
    offsets = np.cumsum([0] + [len(part.tokens) for part in shards.parts])
    arguments = (
        [part.tokens for part in shards.parts],
        [part.word_starts for part in shards.parts],
        offsets,
        segments,
        first_example + np.arange(len(segments)),
    )
    rules = masking_rules(objective, SPECIAL, VOCAB_SIZE)
    drawn = extension.host().draw_examples(*arguments, seed=seed, epoch=epoch, rules=rules)
    assert_same(drawn, numpy_host.draw_examples(*arguments, seed=seed, epoch=epoch, rules=rules))
    assert len(drawn[0]) == example_lengths(segments).sum()


def test_the_compiled_code_guards_its_memory():
    shards = make_shards(num_documents=3, num_parts=1)
    part = shards.parts[0]
    rules = masking_rules(ObjectiveConfig(max_seq_length=10), SPECIAL, VOCAB_SIZE)

    def draw(segments, tokens=part.tokens):
        return extension.host().draw_examples(
            [tokens],
            [part.word_starts],
            np.array([0, len(tokens)]),
            np.array(segments),
            np.arange(len(segments)),
            seed=0,
            epoch=0,
            rules=rules,
        )

    end = len(part.tokens)
    for segments, message in [
        ([[[0, 9]]], "longer than"),
        ([[[5, 5]]], "empty"),
        ([[[0, 9], [8, 3]]], "empty"),
        ([[[end - 1, end + 1]]], "outside"),
        ([[[-2, 1]]], "outside"),
        ([[0, 1]], "shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            draw(segments)
    with pytest.raises(ValueError, match="uint16"):
        draw([[[0, 3]]], part.tokens.astype(np.int64))
    with pytest.raises(ValueError, match="capacity"):
        extension.host().pack_best_fit(np.array([5]), np.array([0]), 4)
    with pytest.raises(ValueError, match="capacity"):
        extension.host().pack_best_fit(np.array([5]), np.array([1]), 9)
    with pytest.raises(ValueError, match="two documents"):
        extension.host().plan_examples(
            np.array([0, 3]), np.array([0, 1]), seed=0, epoch=0, sentence_objective=1, room=9, short_threshold=0
        )


def test_purposes_give_different_orders():
    orders = [
        numpy_host.shuffled(50, seed=0, epoch=0, purpose=purpose).tolist()
        for purpose in (philox.EXAMPLE_ORDER, philox.BATCH_ORDER)
    ]
    assert orders[0] != orders[1]
