"""A little real text, ready to train on."""

from itertools import islice

import pytest
import torch

from fastssl.data.dataset import PretrainingData
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.python_documentation import python_documentation
from fastssl.data.sentences import split_sentences
from fastssl.data.tokenizer import Tokenizer
from fastssl.training.log import METRICS_FILE, MetricsFile
from tests.data.text_shards import shards_of_text


@pytest.fixture(scope="session")
def small_corpus():
    """Return (training data, held-out data, vocabulary size): Python's documentation, words masked, SOP."""
    documents = [split_sentences(text) for text in islice(python_documentation(), 60)]
    tokenizer = Tokenizer.train_wordpiece((" ".join(d) for d in documents), vocab_size=600, lowercase=True)
    objective = ObjectiveConfig(mask_strategy="word", sentence_objective="sop", max_seq_length=64)

    def data(part, seed):
        shards = shards_of_text(part, tokenizer)
        return PretrainingData(shards, tokenizer.special, objective, seed=seed, tokens_per_batch=512)

    return data(documents[:52], 0), data(documents[52:], 1), tokenizer.vocab_size


@pytest.fixture
def plain_run(monkeypatch):
    """Leave out TensorBoard and the picture, and give the threads back."""
    threads = torch.get_num_threads()
    only_metrics = lambda directory, start_step: [MetricsFile(directory / METRICS_FILE, start_step)]  # noqa: E731
    monkeypatch.setattr("fastssl.training.trainer.default_sinks", only_metrics)
    yield
    torch.set_num_threads(threads)
