"""The numbers that `fastssl data stats` prints."""

import numpy as np
import pytest

from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.statistics import length_statistics
from tests.data.in_memory_shards import InMemoryShards, make_part, make_shards


def test_counts_of_a_known_corpus():
    shards = InMemoryShards(parts=[make_part([[4, 4], [8], []], seed=0), make_part([[2]], seed=1)])
    objective = ObjectiveConfig(max_seq_length=12, short_sequence_rate=0.0)
    statistics = length_statistics(shards, objective, tokens_per_batch=12)
    assert (statistics.num_documents, statistics.num_sentences, statistics.num_tokens) == (3, 4, 18)
    assert statistics.example_lengths.tolist() == [10, 10, 4]
    assert statistics.padding_to_maximum == pytest.approx(1 - 24 / 36)
    assert statistics.num_batches == 3 and statistics.batch_fill == pytest.approx(24 / 36)
    counts, edges = statistics.histogram(3)
    assert counts.tolist() == [0, 1, 2] and edges.tolist() == [0, 4, 8, 12]


def test_packing_fills_what_padding_wastes():
    objective = ObjectiveConfig(max_seq_length=64, sentence_objective="sop")
    statistics = length_statistics(make_shards(num_documents=400), objective, tokens_per_batch=1024)
    assert statistics.batch_fill > 0.95 > 1 - statistics.padding_to_maximum
    assert statistics.histogram()[0].sum() == statistics.num_examples


def test_a_budget_below_the_longest_sequence_is_refused():
    with pytest.raises(ValueError, match="tokens_per_batch must hold the longest sequence, max_seq_length=128, got 64"):
        length_statistics(make_shards(), ObjectiveConfig(), tokens_per_batch=64)


def test_fixed_batches_have_no_budget_and_an_empty_corpus_no_examples():
    assert length_statistics(make_shards(), ObjectiveConfig(), batch_size=4).batch_fill is None
    empty = length_statistics(InMemoryShards(parts=[]), ObjectiveConfig(), tokens_per_batch=128)
    assert (empty.num_documents, empty.num_examples, empty.num_batches) == (0, 0, 0)
    assert empty.mean_example_length == 0 and not np.any(empty.histogram()[0])
