"""How fast an epoch is planned, and batches are drawn from it, in tokens per second.

The corpus is synthetic (sentences of about 25 tokens, words of about 1.3 pieces, 30,000 ids) and lies in memory, so the
numbers tell what the code costs and not what the disk does. Every token of a batch counts, special ones included.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType

import numpy as np

from benchmarks.comparison import OURS, Comparison
from benchmarks.peers import hugging_face
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.data import numpy_host
from fastssl.data.dataset import PretrainingData
from fastssl.data.host import host_code
from fastssl.data.loader import Loader
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.tokenizer import SpecialTokens
from fastssl.models.presets import preset
from fastssl.tasks.step_benchmark import StepConfig, measure_step, seconds_of

VOCAB_SIZE, CORPUS_TOKENS, TOKENS_PER_BATCH, MAX_SEQ_LENGTH = 30_000, 10_000_000, 16_384, 128
BATCHES = 16
SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)
OBJECTIVES = {
    f"{strategy}, {sentences}": ObjectiveConfig(
        mask_strategy=strategy, sentence_objective=sentences, max_seq_length=MAX_SEQ_LENGTH
    )
    for strategy, sentences in (("token", "none"), ("word", "sop"), ("ngram", "nsp"), ("span", "none"))
}


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the drawing of batches, and the planning of an epoch, for combinations of objectives."""
    objectives = dict(itertools.islice(OBJECTIVES.items(), 1)) if run.quick else OBJECTIVES
    drawn = {f"draw, {name}": partial(drawing, objective) for name, objective in objectives.items()}
    planned = {f"plan, {name}": partial(planning, objective) for name, objective in objectives.items()}
    return drawn | planned


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


@cache
def synthetic_shards(num_tokens: int = CORPUS_TOKENS) -> SyntheticShards:
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


def planning(objective: ObjectiveConfig) -> Comparison:
    """Measure the plan of an epoch, best-fit packing included; nothing else plans so."""
    plan = _data(objective).plan(0)
    fill = plan.num_tokens / (plan.num_batches * TOKENS_PER_BATCH)

    def check() -> None:
        assert plan.batch_tokens().max() <= TOKENS_PER_BATCH, "a batch above its budget"

    return Comparison(
        contenders={OURS: timed(lambda: _data(objective).plan(0))},
        check=check,
        work=plan.num_tokens,
        unit="token",
        finish=lambda: f"batches fill {fill:.2%} of their budget of {TOKENS_PER_BATCH} tokens",
    )


def drawing(objective: ObjectiveConfig) -> Comparison:
    """Compare drawing with the background loader, the numpy twin, and (masking single tokens) Hugging Face's collator.

    Hugging Face gets examples that are cut already, and masks and pads them.
    """
    data = _data(objective)
    numbers = [data.plan(0).examples_of_batch(index) for index in range(BATCHES)]
    batches = [data.batch(0, index) for index in range(BATCHES)]
    contenders: dict[str, Callable[[], object]] = {
        OURS: lambda: [data.batch(0, index) for index in range(BATCHES)],
        "own loader thread": lambda: _through_the_loader(data),
        "own numpy twin": lambda: [_draw(numpy_host, data, examples) for examples in numbers],
    }
    if objective.mask_strategy == "token":
        collate = hugging_face.masking_collator(VOCAB_SIZE)
        examples = [hugging_face.unmasked_examples(batch) for batch in batches]
        contenders["HF collator"] = lambda: [collate(batch) for batch in examples]

    def check() -> None:
        for drawn, twin in zip(*(_draw(code, data, numbers[0]) for code in (host_code(), numpy_host)), strict=True):
            np.testing.assert_array_equal(drawn, twin)

    return Comparison(
        contenders={name: timed(work) for name, work in contenders.items()},
        check=check,
        work=sum(batch.num_tokens for batch in batches),
        unit="token",
        finish=partial(_beside_a_step, objective),
    )


def _beside_a_step(objective: ObjectiveConfig) -> str:
    """Return what planning and drawing a batch costs beside training the smallest model on it."""
    data = _data(objective)
    seconds = seconds_of(lambda: data.plan(0)) / data.plan(0).num_batches
    seconds += statistics.median(seconds_of(partial(data.batch, 0, index)) for index in range(BATCHES))
    share = seconds / _seconds_of_a_step()
    return f"a batch is planned and drawn in {seconds * 1e3:.2f} ms, {share:.2%} of bert-tiny's step on as many tokens"


@cache
def _seconds_of_a_step() -> float:
    sizes = StepConfig(
        per_device_train_batch_size=TOKENS_PER_BATCH // MAX_SEQ_LENGTH, max_seq_length=MAX_SEQ_LENGTH, steps=3
    )
    return measure_step(preset("bert-tiny"), sizes).seconds


def _data(objective: ObjectiveConfig) -> PretrainingData:
    return PretrainingData(synthetic_shards(), SPECIAL, objective, seed=0, tokens_per_batch=TOKENS_PER_BATCH)


def _draw(code: ModuleType, data: PretrainingData, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    part, segments = synthetic_shards().parts[0], data.plan(0).segments[numbers]
    arrays = [part.tokens], [part.word_starts], np.array([0, len(part.tokens)]), segments, numbers
    return code.draw_examples(*arrays, seed=data.seed, epoch=0, rules=data.rules)


def _through_the_loader(data: PretrainingData) -> None:
    with Loader(data) as loader:
        for _ in itertools.islice(loader, BATCHES):
            pass
