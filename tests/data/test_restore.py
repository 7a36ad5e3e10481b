"""Putting the targets back restores the text, for every strategy and sentence objective: 100 %."""

import itertools

import numpy as np
import pytest

from fastssl.data.dataset import PretrainingData
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.restore import describe_example, restore_segments
from fastssl.data.tokenizer import Tokenizer
from tests.data.in_memory_shards import SPECIAL, make_shards
from tests.data.text_shards import documents_of, shards_of_text

STRATEGIES, SENTENCES = ("token", "word", "ngram", "span"), ("none", "nsp", "sop")
EVERY_OBJECTIVE = list(itertools.product(STRATEGIES, SENTENCES))


@pytest.fixture(scope="module")
def tokenizer(test_data):
    return Tokenizer.load(test_data / "tokenizers" / "bert-base-uncased")


@pytest.fixture(scope="module")
def real_text(test_data, tokenizer):
    corpus = test_data / "corpus"
    documents = documents_of(corpus / "kjv.txt", 150) + documents_of(corpus / "wikitext2.valid.txt", 150)
    return shards_of_text(documents, tokenizer)


def check_restoration(shards, special, strategy, sentences, max_seq_length):
    objective = ObjectiveConfig(mask_strategy=strategy, sentence_objective=sentences, max_seq_length=max_seq_length)
    data = PretrainingData(shards, special, objective, seed=1, tokens_per_batch=1000)
    text, plan = shards.tokens.astype(np.int64), data.plan(0)
    shown = np.zeros(len(text), dtype=int)
    targets = 0
    for index in range(data.num_batches(0)):
        batch = data.batch(0, index)
        targets += len(batch.masked_positions)
        for place, example in enumerate(plan.examples_of_batch(index)):
            bounds = plan.segments[example]
            if sentences == "sop":
                bounds = bounds[np.argsort(bounds[:, 0])]
            restored = restore_segments(batch, place, sentences)
            assert len(restored) == len(bounds)
            assert np.concatenate(restored).tolist() == np.concatenate([text[a:b] for a, b in bounds]).tolist()
            for a, b in bounds:
                shown[a:b] += 1
    assert targets > 0.1 * plan.num_tokens
    return shown


@pytest.mark.parametrize(("strategy", "sentences"), EVERY_OBJECTIVE)
def test_any_tokens_are_restored(strategy, sentences):
    shown = check_restoration(make_shards(), SPECIAL, strategy, sentences, 40)
    assert sentences != "none" or (shown == 1).all()


@pytest.mark.parametrize(("strategy", "sentences"), EVERY_OBJECTIVE)
def test_real_text_is_restored(real_text, tokenizer, strategy, sentences):
    shown = check_restoration(real_text, tokenizer.special, strategy, sentences, 128)
    if sentences == "none":
        assert (shown == 1).all()
    else:
        assert (shown > 0).mean() > 0.75  # pairs that are too long lose their ends, as published


@pytest.mark.parametrize("sentences", SENTENCES)
def test_examples_in_words(real_text, tokenizer, sentences):
    objective = ObjectiveConfig(mask_strategy="word", sentence_objective=sentences)
    data = PretrainingData(real_text, tokenizer.special, objective, seed=1, batch_size=64)
    batch = data.batch(0, 0)
    meanings = {
        "none": {None},
        "nsp": {"the second segment follows the first", "the second segment is from another document"},
        "sop": {"in order", "swapped"},
    }[sentences]
    kinds, found = set(), set()
    for index in range(batch.num_sequences):
        example = describe_example(batch, index, tokenizer, sentences)
        assert example.input_tokens[0] == "[CLS]" and example.input_tokens[-1] == "[SEP]"
        assert len(example.restored_segments) == (1 if sentences == "none" else 2)
        for target in example.targets:
            assert example.input_tokens[target.position] == target.input_token
            kinds.add(target.kind)
        found.add(example.sentence_target)
        if sentences == "none":
            words = [target.token for target in example.targets if not target.token.startswith("##")]
            assert all(word in example.restored_segments[0] for word in words)
    assert kinds == {"masked", "random", "kept"}
    assert found == meanings


def test_whole_words_of_real_text_are_chosen_together(real_text, tokenizer):
    data = PretrainingData(real_text, tokenizer.special, ObjectiveConfig(mask_strategy="word"), seed=1, batch_size=64)
    batch = data.batch(0, 0)
    restored = batch.input_ids.clone()
    restored[batch.masked_positions] = batch.masked_labels
    names = [tokenizer.id_to_token(i) for i in restored.tolist()]
    chosen = set(batch.masked_positions.tolist())
    first = set(batch.cu_seqlens.tolist())
    pieces = [i for i, name in enumerate(names) if name.startswith("##") and i - 1 not in first]
    assert len(pieces) > 100
    assert all((i in chosen) == (i - 1 in chosen) for i in pieces)
