"""How fast batches are planned and drawn, on one core: `python -m benchmarks.data_loader`.

The corpus is synthetic (sentences of about 25 tokens, words of about 1.3 pieces, 30,000 ids) and lies in memory, so the
numbers tell what the code costs and not what the disk does. Before anything is timed, the compiled code is checked
against its numpy twin. A rate counts every token of a batch, special ones included. Rates are the best of several runs.
"""

import argparse
import csv
import importlib.util
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from fastssl import extension
from fastssl.data import numpy_host
from fastssl.data.dataset import PretrainingData
from fastssl.data.loader import Loader
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.tokenizer import SpecialTokens

VOCAB_SIZE, TOKENS_PER_BATCH, MAX_SEQ_LENGTH = 30_000, 16_384, 128
SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
TARGET_TOKENS_PER_S = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SyntheticPart:
    """A part of a corpus, as `fastssl.data.shards.ShardPart`."""

    tokens: np.ndarray
    word_starts: np.ndarray
    sentence_offsets: np.ndarray
    document_offsets: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SyntheticShards:
    """A corpus, as far as batches need one."""

    parts: list[SyntheticPart]
    vocab_size: int = VOCAB_SIZE


def synthetic_shards(num_tokens: int) -> SyntheticShards:
    """Return a corpus of about `num_tokens` tokens in documents of about 25 sentences."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 50, num_tokens // 25)
    sentences = np.concatenate(([0], np.cumsum(lengths)))
    documents = np.unique(np.concatenate(([0], rng.integers(0, len(lengths), len(lengths) // 25), [len(lengths)])))
    part = SyntheticPart(
        tokens=rng.integers(5, VOCAB_SIZE, sentences[-1], dtype=np.uint16),
        word_starts=(rng.random(sentences[-1], dtype=np.float32) < 0.77).astype(np.uint8),
        sentence_offsets=sentences,
        document_offsets=documents,
    )
    return SyntheticShards(parts=[part])


def best_rate(batches: Callable[[], Iterator], repeats: int = 5) -> float:
    """Return tokens/s of drawing an iterator of batches to its end, best of `repeats`."""
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        tokens = sum(batch.num_tokens for batch in batches())
        rates.append(tokens / (time.perf_counter() - start))
    return max(rates)


def draw_first_batch(code: ModuleType, shards: SyntheticShards, data: PretrainingData) -> tuple[np.ndarray, ...]:
    """Draw the first batch with the compiled code or with its numpy twin."""
    part, numbers = shards.parts[0], data.plan(0).examples_of_batch(0)
    arrays = [part.tokens], [part.word_starts], np.array([0, len(part.tokens)]), data.plan(0).segments[numbers], numbers
    return code.draw_examples(*arrays, seed=data.seed, epoch=0, rules=data.rules)


def check_against_twin(shards: SyntheticShards, data: PretrainingData) -> None:
    """Stop unless the compiled code and numpy draw the same batch."""
    drawn = [draw_first_batch(code, shards, data) for code in (extension.host(), numpy_host)]
    if not all(np.array_equal(ours, twin) for ours, twin in zip(*drawn, strict=True)):
        sys.exit("the compiled code and its numpy twin disagree; no numbers")


def measure(shards: SyntheticShards, strategy: str, sentences: str) -> dict[str, object]:
    """Plan an epoch, draw 200 batches, draw them through the background loader."""
    objective = ObjectiveConfig(mask_strategy=strategy, sentence_objective=sentences, max_seq_length=MAX_SEQ_LENGTH)
    data = PretrainingData(shards, SPECIAL, objective, seed=0, tokens_per_batch=TOKENS_PER_BATCH)
    start = time.perf_counter()
    plan = data.plan(0)
    plan_s = time.perf_counter() - start
    check_against_twin(shards, data)
    count = min(200, plan.num_batches)

    def through_the_loader() -> Iterator:
        with Loader(data) as loader:
            yield from (batch for _, _, batch in itertools.islice(loader, count))

    return {
        "strategy": strategy,
        "sentences": sentences,
        "plan_s": round(plan_s, 3),
        "plan_tokens_per_s": round(plan.num_tokens / plan_s),
        "budget_fill": round(plan.num_tokens / (plan.num_batches * TOKENS_PER_BATCH), 4),
        "draw_tokens_per_s": round(best_rate(lambda: (data.batch(0, index) for index in range(count)))),
        "loader_tokens_per_s": round(best_rate(through_the_loader)),
    }


def twin_rate(shards: SyntheticShards) -> float:
    """Return tokens/s of the numpy twin, whole-word masking."""
    objective = ObjectiveConfig(mask_strategy="word", max_seq_length=MAX_SEQ_LENGTH)
    data = PretrainingData(shards, SPECIAL, objective, seed=0, tokens_per_batch=TOKENS_PER_BATCH)
    data.plan(0)
    start = time.perf_counter()
    input_ids = draw_first_batch(numpy_host, shards, data)[0]
    return len(input_ids) / (time.perf_counter() - start)


def hugging_face_rate(shards: SyntheticShards) -> float | None:
    """Return real tokens/s of transformers' masked-LM collator (token masking, padded), None where not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB_SIZE - 5))]
    tokenizer = BertTokenizerFast(vocab={name: i for i, name in enumerate(names)})
    collate = DataCollatorForLanguageModeling(tokenizer)
    objective = ObjectiveConfig(max_seq_length=MAX_SEQ_LENGTH)
    data = PretrainingData(shards, SPECIAL, objective, seed=0, tokens_per_batch=TOKENS_PER_BATCH)
    examples = []
    for index in range(4):
        batch = data.batch(0, index)
        ids = batch.input_ids.clone()
        ids[batch.masked_positions] = batch.masked_labels
        examples.append([{"input_ids": part.tolist()} for part in ids.split(batch.cu_seqlens.diff().tolist())])
    collate(examples[0])
    start = time.perf_counter()
    tokens = sum(int(collate(batch)["attention_mask"].sum()) for batch in examples)
    return tokens / (time.perf_counter() - start)


def main() -> None:
    """Measure, print a table, and write it as CSV where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="size of the synthetic corpus")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    if extension.host() is None:
        sys.exit("build the compiled data code first: python setup.py build_ext --inplace")
    torch.set_num_threads(1)
    shards = synthetic_shards(options.tokens)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    print(
        f"corpus of {len(shards.parts[0].tokens):,} tokens, {TOKENS_PER_BATCH:,} per batch, length {MAX_SEQ_LENGTH}\n"
    )
    rows = [
        measure(shards, strategy, sentences)
        for sentences in ("none", "nsp", "sop")
        for strategy in ("token", "word", "ngram", "span")
    ]
    print(f"{'sentences':<10}{'masking':<8}{'plan s':>8}{'fill':>8}{'draw Mtok/s':>13}{'loader Mtok/s':>15}")
    for row in rows:
        rates = row["draw_tokens_per_s"] / 1e6, row["loader_tokens_per_s"] / 1e6
        print(
            f"{row['sentences']:<10}{row['strategy']:<8}{row['plan_s']:>8.2f}{row['budget_fill']:>8.3f}"
            f"{rates[0]:>13.1f}{rates[1]:>15.1f}"
        )
    print(f"\nnumpy twin, word masking: {twin_rate(shards) / 1e6:.2f} Mtok/s")
    peer = hugging_face_rate(shards)
    if peer is not None:
        print(f"transformers' masked-LM collator (token masking, padded output): {peer / 1e6:.2f} Mtok/s")
    slowest = min(row["loader_tokens_per_s"] for row in rows)
    verdict = "reached" if slowest >= TARGET_TOKENS_PER_S else "missed"
    print(f"target {TARGET_TOKENS_PER_S / 1e6:.0f} Mtok/s per core: {verdict}, slowest {slowest / 1e6:.1f}")
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
