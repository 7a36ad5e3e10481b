"""The benchmark of embeddings counts real tokens alone, and its peers give the same numbers."""

import numpy as np

from benchmarks.models.sentence_embedding import forward_sgemm, useful_flops
from benchmarks.peers import onnx_runtime, sentence_transformers
from fastssl.tasks.embedding.embedder import SentenceEmbedder

TEXTS = ["A man is eating food.", "rain", "Someone eats something tasty, and it rains. " * 60]


def test_peers_agree(minilm_directory):
    ours = SentenceEmbedder.load(minilm_directory)(TEXTS)
    for encode in (onnx_runtime.encoder(minilm_directory, TEXTS), sentence_transformers.encoder(minilm_directory)):
        np.testing.assert_allclose(encode(TEXTS), ours, atol=1e-5)


def test_work_is_that_of_the_tokens_read(minilm_directory):
    embedder = SentenceEmbedder.load(minilm_directory)
    tokens, attended = 8 + 3 + 256, 8**2 + 3**2 + 256**2
    blocks = 2 * 6 * (4 * 384**2 + 2 * 384 * 1536) * tokens
    assert useful_flops(embedder, TEXTS) == blocks + 4 * 6 * 384 * attended
    assert forward_sgemm(embedder.model.config, 16).work == 2 * (4 * 384**2 + 2 * 384 * 1536) * 16
