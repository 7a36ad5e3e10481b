"""The objective's choices, and their integer tables."""

import dataclasses

import numpy as np
import pytest

from fastssl.data.objectives import (
    ObjectiveConfig,
    masking_rules,
    prediction_count,
    probability_threshold,
    span_length_weights,
)
from fastssl.data.tokenizer import SpecialTokens
from tests.data.in_memory_shards import SPECIAL, VOCAB_SIZE


@pytest.mark.parametrize(("length", "count"), [(3, 1), (9, 1), (10, 2), (30, 4), (50, 8), (128, 19), (512, 77)])
def test_prediction_counts_round_halves_to_even(length, count):
    assert prediction_count(length, 0.15) == count
    rules = masking_rules(ObjectiveConfig(max_seq_length=512), SPECIAL, VOCAB_SIZE)
    assert rules.prediction_counts[length] == count


def test_ngram_lengths_are_as_in_albert():
    weights = span_length_weights("ngram")
    assert [weight / sum(weights) for weight in weights] == pytest.approx([6 / 11, 3 / 11, 2 / 11])


def test_span_lengths_are_as_in_spanbert():
    weights = np.array(span_length_weights("span"), dtype=float)
    shares = weights / weights.sum()
    assert len(shares) == 10
    assert shares[0] == pytest.approx(0.2 / (1 - 0.8**10))
    assert shares @ np.arange(1, 11) == pytest.approx(3.8, abs=0.01)  # the mean that the paper prints


@pytest.mark.parametrize("strategy", ["token", "word", "ngram", "span"])
def test_thresholds_end_at_certainty(strategy):
    thresholds = masking_rules(ObjectiveConfig(mask_strategy=strategy), SPECIAL, VOCAB_SIZE).span_thresholds
    assert thresholds[-1] == 2**32
    assert (np.diff(thresholds.astype(float)) > 0).all()


def test_thresholds_of_certain_and_impossible():
    assert probability_threshold(0) == 0 and probability_threshold(1) == 2**32
    rules = masking_rules(ObjectiveConfig(mask_token_rate=0.7, random_token_rate=0.3), SPECIAL, VOCAB_SIZE)
    assert rules.random_threshold == 2**32


def test_special_tokens_may_share_an_id():
    special = dataclasses.replace(SPECIAL, pad=SPECIAL.unk)
    assert masking_rules(ObjectiveConfig(), special, VOCAB_SIZE).special_ids.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "clm"}, "objective must be one of mlm; got 'clm'"),
        ({"mask_strategy": "words"}, "mask_strategy must be one of token, word, ngram, span"),
        ({"sentence_objective": "NSP"}, "sentence_objective must be one of none, nsp, sop"),
        ({"mask_rate": 0}, "mask_rate must be above 0"),
        ({"mask_rate": 15}, "mask_rate must be between 0 and 1, got 15"),
        ({"random_token_rate": 0.3}, r"must not exceed 1, got 0.8 \+ 0.3"),
        ({"short_sequence_rate": -0.1}, "short_sequence_rate must be between"),
        ({"max_seq_length": 3}, "max_seq_length must be at least 4"),
        ({"max_seq_length": 4, "sentence_objective": "sop"}, "max_seq_length must be at least 5"),
    ],
)
def test_wrong_choices_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**change)


def test_vocabulary_must_hold_the_special_tokens_and_more():
    with pytest.raises(ValueError, match="vocabulary has 4"):
        masking_rules(ObjectiveConfig(), SPECIAL, 4)
    with pytest.raises(ValueError, match="nothing but its 5 special tokens"):
        masking_rules(ObjectiveConfig(), SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4), 5)
