"""What masking does to a sequence, whichever implementation does it (test_same_bits.py says that they agree)."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.data.host import host_code
from fastssl.data.objectives import ObjectiveConfig, masking_rules
from tests.data.in_memory_shards import SPECIAL

VOCAB = 1000
STRATEGIES = ["token", "word", "ngram", "span"]


@dataclasses.dataclass
class Drawn:
    ids: np.ndarray
    originals: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    word_of: np.ndarray  # number of the word that a token belongs to, -1 for special tokens

    @property
    def counts(self) -> np.ndarray:
        """Predictions of each sequence."""
        return np.diff(np.searchsorted(self.positions, np.concatenate(([0], np.cumsum(self.lengths)))))


def draw(
    strategy="token", *, special=SPECIAL, examples=400, length=100, word_start_rate=0.7, lowest_id=0, **choices
) -> Drawn:
    """Mask random sequences of `length` text tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(lowest_id, VOCAB, examples * length).astype(np.uint16)
    word_starts = (rng.random(len(tokens)) < word_start_rate).astype(np.uint8)
    begins = np.arange(examples) * length
    objective = ObjectiveConfig(mask_strategy=strategy, max_seq_length=length + 2, **choices)
    ids, cu_seqlens, _, _, positions, labels = host_code().draw_examples(
        [tokens],
        [word_starts],
        np.array([0, len(tokens)]),
        np.stack((begins, begins + length), axis=1)[:, None],
        np.arange(examples),
        seed=0,
        epoch=0,
        rules=masking_rules(objective, special, VOCAB),
    )
    word_starts[begins] = 1
    frame = ((0, 0), (1, 1))
    originals = np.pad(tokens.reshape(examples, length).astype(np.int64), frame).reshape(-1)
    word_of = np.pad(np.cumsum(word_starts, dtype=np.int64).reshape(examples, length), frame).reshape(-1)
    framed = originals.reshape(examples, length + 2)
    framed[:, 0], framed[:, -1] = special.cls, special.sep
    word_of[np.isin(originals, special.ids)] = -1
    return Drawn(ids, originals, positions, labels, np.diff(cu_seqlens), word_of)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_targets_restore_the_text_and_special_tokens_are_left_alone(strategy):
    drawn = draw(strategy, random_token_rate=0.2)
    assert np.array_equal(drawn.labels, drawn.originals[drawn.positions])
    restored = drawn.ids.copy()
    restored[drawn.positions] = drawn.labels
    assert np.array_equal(restored, drawn.originals)
    assert (np.diff(drawn.positions) > 0).all()
    assert not np.isin(drawn.labels, SPECIAL.ids).any()
    replaced = drawn.ids[drawn.positions]
    assert not np.isin(replaced[replaced != SPECIAL.mask], SPECIAL.ids).any()


def test_token_masking_predicts_exactly_the_rounded_share():
    assert set(draw("token", length=98, examples=50).counts) == {15}
    assert set(draw("token", length=28, examples=50).counts) == {4}  # 4.5 rounds to even
    assert set(draw("token", length=3, examples=50).counts) <= {0, 1}  # 0 where all three are special


@pytest.mark.parametrize("strategy", ["word", "ngram", "span"])
def test_words_are_chosen_whole_and_the_share_is_never_exceeded(strategy):
    drawn = draw(strategy, lowest_id=5)
    chosen = np.zeros(len(drawn.ids), dtype=bool)
    chosen[drawn.positions] = True
    for word in np.unique(drawn.word_of[drawn.positions]):
        assert chosen[drawn.word_of == word].all()
    assert drawn.counts.max() == 15
    assert drawn.counts.mean() > 14.9


def test_a_word_longer_than_the_share_is_skipped():
    assert draw("word", length=20, word_start_rate=0.0, lowest_id=5).counts.sum() == 0


def test_replacements_are_80_10_10():
    drawn = draw("token", examples=2000)
    replaced = drawn.ids[drawn.positions]
    n = len(replaced)
    masked = (replaced == SPECIAL.mask).sum()
    kept = (replaced == drawn.labels).sum()
    assert abs(masked - 0.8 * n) < 5 * (n * 0.16) ** 0.5
    assert abs(kept - 0.1 * n * (1 + 1 / VOCAB)) < 5 * (n * 0.09) ** 0.5
    assert abs(n - masked - kept - 0.1 * n) < 5 * (n * 0.09) ** 0.5


def test_every_position_is_as_likely():
    drawn = draw("token", examples=4000, special=dataclasses.replace(SPECIAL, pad=1))
    columns = np.bincount(drawn.positions % 102, minlength=102)
    assert columns[0] == columns[101] == 0
    expected = columns[1:101].mean()
    assert abs(columns[1:101] - expected).max() < 5 * expected**0.5


def test_random_tokens_are_uniform_over_the_ordinary_vocabulary():
    drawn = draw("token", examples=2000, mask_token_rate=0.0, random_token_rate=1.0)
    counts = np.bincount(drawn.ids[drawn.positions], minlength=VOCAB)
    assert not counts[list(SPECIAL.ids)].any()
    ordinary = np.delete(counts, SPECIAL.ids)
    assert abs(ordinary - ordinary.mean()).max() < 6 * ordinary.mean() ** 0.5


def test_id_0_may_be_real():
    special = dataclasses.replace(SPECIAL, pad=7)
    drawn = draw("token", special=special, examples=2000, mask_token_rate=0.0, random_token_rate=1.0)
    assert (drawn.labels == 0).any()
    assert (drawn.ids[drawn.positions] == 0).any()
    assert not (drawn.ids[drawn.positions] == 7).any()


def test_kept_tokens_count_as_targets():
    drawn = draw("token", mask_token_rate=0.0, random_token_rate=0.0)
    assert np.array_equal(drawn.ids, drawn.originals)
    assert drawn.counts.min() == 15


def runs_of_each_sequence(drawn: Drawn) -> list[tuple[int, ...]]:
    """Lengths of the runs of neighbouring targets, longest first, per sequence."""
    sequences = np.split(drawn.positions, np.searchsorted(drawn.positions, np.cumsum(drawn.lengths)[:-1]))
    runs = [np.diff(np.flatnonzero(np.diff(places, prepend=-9, append=1 << 40) != 1)) for places in sequences]
    return [tuple(sorted(lengths.tolist(), reverse=True)) for lengths in runs]


def test_ngram_lengths_follow_their_distribution():
    # With three predictions the first n-gram is 3, or leaves room for others: the patterns' frequencies are known.
    n = 4000
    drawn = draw("ngram", examples=n, length=300, word_start_rate=1.0, mask_rate=3 / 302, lowest_id=5)
    patterns = Counter(runs_of_each_sequence(drawn))
    expected = {(3,): 2 / 11, (2, 1): 3 / 11 + 6 / 11 * 5 / 11, (1, 1, 1): (6 / 11) ** 2}
    for pattern, share in expected.items():
        assert patterns[pattern] / n == pytest.approx(share, abs=0.035), pattern


def test_span_lengths_follow_their_distribution():
    # All ten predictions are one run exactly where the first span is as long as spans get.
    n = 4000
    drawn = draw("span", examples=n, length=300, word_start_rate=1.0, mask_rate=10 / 302, lowest_id=5)
    runs = runs_of_each_sequence(drawn)
    longest = 0.2 * 0.8**9 / (1 - 0.8**10)
    assert sum(lengths == (10,) for lengths in runs) / n == pytest.approx(longest, abs=0.014)
    assert np.mean([lengths[0] for lengths in runs]) > 4.5  # the longest of about three spans, 3.8 on average


def test_spans_are_replaced_alike_and_ngrams_are_not():
    def mixed(strategy):
        drawn = draw(strategy, random_token_rate=0.0, mask_token_rate=0.5, word_start_rate=1.0)
        masked = drawn.ids[drawn.positions] == SPECIAL.mask
        neighbours = np.diff(drawn.positions) == 1
        return (masked[1:] != masked[:-1])[neighbours].mean()

    assert mixed("span") < 0.2  # only where two spans touch
    assert mixed("ngram") > 0.4


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.sampled_from(STRATEGIES))
def test_masks_belong_to_the_example_and_not_to_the_batch(seed, epoch, strategy):
    rng = np.random.default_rng(0)
    tokens, starts = rng.integers(5, VOCAB, 300).astype(np.uint16), np.ones(300, dtype=np.uint8)
    segments = np.array([[[0, 50]], [[50, 130]], [[200, 300]]])
    rules = masking_rules(ObjectiveConfig(mask_strategy=strategy), SPECIAL, VOCAB)

    def draw_some(numbers):
        numbers = np.array(numbers)
        return host_code().draw_examples(
            [tokens], [starts], np.array([0, 300]), segments[numbers], numbers, seed=seed, epoch=epoch, rules=rules
        )

    together, cu_seqlens = draw_some([2, 0, 1])[:2]
    for place, number in enumerate([2, 0, 1]):
        assert np.array_equal(draw_some([number])[0], together[cu_seqlens[place] : cu_seqlens[place + 1]])


def draw_pair(word_starts: list[int], segments: list[list[int]]) -> list[list[int]]:
    """The two segments of a sentence-order example over the tokens 10, 11, 12, ..."""
    tokens = np.arange(10, 10 + len(word_starts), dtype=np.uint16)
    rules = masking_rules(
        ObjectiveConfig(sentence_objective="sop", mask_token_rate=0.0, random_token_rate=0.0), SPECIAL, 99
    )
    ids, _, _, types, _, _ = host_code().draw_examples(
        [tokens],
        [np.array(word_starts, dtype=np.uint8)],
        np.array([0, len(tokens)]),
        np.array([segments]),
        np.array([0]),
        seed=0,
        epoch=0,
        rules=rules,
    )
    return [ids[types == 0][1:-1].tolist(), ids[types == 1][:-1].tolist()]


@pytest.mark.parametrize(
    ("word_starts", "boundary", "expected"),
    [
        ([1, 1, 0, 0, 1], 1, 1),  # already between two words
        ([1, 1, 0, 0, 1], 3, 1),  # back to the beginning of the word
        ([1, 0, 0, 1, 1], 2, 3),  # no word begins before it: on to the next
        ([1, 0, 0, 0, 0], 2, 2),  # one word alone is cut
    ],
)
def test_a_boundary_inside_a_word_moves_lest_it_tell_the_order(word_starts, boundary, expected):
    first, second = [0, boundary], [boundary, 5]
    texts = list(range(10, 10 + expected)), list(range(10 + expected, 15))
    assert draw_pair(word_starts, [first, second]) == [texts[0], texts[1]]
    assert draw_pair(word_starts, [second, first]) == [texts[1], texts[0]]


def test_boundaries_of_truncated_segments_stay():
    assert draw_pair([1, 0, 0, 0, 1, 1], [[0, 2], [3, 6]]) == [[10, 11], [13, 14, 15]]
