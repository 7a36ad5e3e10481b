"""A step of fine-tuning for tagging: our Trainer beside Hugging Face's, each in its own loop."""

import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import real_data
from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import LinearShape, sgemm_of
from benchmarks.models.finetuning_step import (
    BATCH_SIZE,
    EFFORT,
    LEARNING_RATE,
    QUICK_EFFORT,
    assert_same_gradients,
    minilm,
    steps_of_our_trainer,
)
from benchmarks.own_process import OwnProcess
from benchmarks.peers import hugging_face_trainer
from benchmarks.step_by_step import StepByStep
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch
from fastssl.data.batch import IGNORED_LABEL, PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert_config import BertConfig
from fastssl.models.bert_files import load_config
from fastssl.models.bert_tagger import BertForTokenClassification
from fastssl.tasks.example_batches import ExampleBatches
from fastssl.tasks.labelled_texts import ColumnConfig
from fastssl.tasks.labels import LabelSet
from fastssl.tasks.tagging.encoded_words import encode_words
from fastssl.tasks.tagging.scores import number_tags
from fastssl.tasks.tagging.tagged_sentences import read_tagged_sentences


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the step of MiniLM-L6 on parts of speech."""
    return {"MiniLM-L6, UD English, batch 32": partial(comparison, QUICK_EFFORT if run.quick else EFFORT)}


def comparison(effort: Effort) -> Comparison:
    """Compare whole steps of the two Trainers, from the same body, on the same batches in the same order."""
    directory, treebank = minilm(), real_data.file("ud_en_ewt/en_ewt-ud-train.conllu")
    _, data = sentences(directory, treebank)
    measured = [data.batch(0, index) for index in range(effort.max_rounds)]
    config = load_config(directory)
    return Comparison(
        contenders={
            OURS: OwnProcess(partial(our_trainer, directory, treebank)),
            "HF Trainer": OwnProcess(partial(their_trainer, directory, treebank)),
        },
        check=partial(check, directory, treebank),
        work=sum(useful_flops(config, batch) for batch in measured) / len(measured),
        unit="FLOP",
        limit=sgemm_of(linear_shapes(config, sum(b.num_tokens for b in measured) // len(measured))),
        effort=effort,
    )


@lru_cache(maxsize=1)
def sentences(directory: Path, treebank: Path) -> tuple[tuple[str, ...], ExampleBatches]:
    """Return the tags of the treebank and its sentences, encoded whole."""
    found = read_tagged_sentences(treebank, ColumnConfig())
    names = tuple(sorted({tag for tags in found.tags for tag in tags}))
    encoded = encode_words(Tokenizer.load(directory), found.words, max_seq_length=512)
    tags = number_tags(found, LabelSet(names=names, problem_type="single_label_classification"))
    return names, ExampleBatches(encoded, tags.numbers, seed=0, batch_size=BATCH_SIZE)


def our_trainer(directory: Path, treebank: Path) -> Launch:
    """Return our Trainer, one step a launch."""
    names, data = sentences(directory, treebank)
    torch.manual_seed(0)
    return steps_of_our_trainer(BertForTokenClassification.from_pretrained(directory, labels=names), data)


def their_trainer(directory: Path, treebank: Path) -> Launch:
    """Return Hugging Face's Trainer, one step a launch, on the sentences in our order."""
    names, data = sentences(directory, treebank)
    rows = padded_examples(data, data.order(0))

    def train(pause: Callable[[], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="fastssl-benchmark-") as output_dir:
            hugging_face_trainer.train(
                directory,
                rows,
                pause,
                batch_size=BATCH_SIZE,
                learning_rate=LEARNING_RATE,
                output_dir=Path(output_dir),
                model_class="AutoModelForTokenClassification",
                collator_class="DataCollatorForTokenClassification",
                num_labels=len(names),
            )

    return StepByStep(train)


def padded_examples(data: ExampleBatches, order: np.ndarray) -> list[dict]:
    """Return sentences as Hugging Face's example script for token classification encodes them."""
    rows = []
    for number in order:
        batch = data.examples.batch(np.array([number]), data.labels)
        ids = batch.input_ids.tolist()
        labels = labels_of_tokens(batch).tolist()
        zeros, ones = [0] * len(ids), [1] * len(ids)
        rows.append({"input_ids": ids, "token_type_ids": zeros, "attention_mask": ones, "labels": labels})
    return rows


def labels_of_tokens(batch: PackedBatch) -> torch.Tensor:
    """Return the label of each token, (N), -100 where it has none."""
    return torch.full_like(batch.input_ids, IGNORED_LABEL).index_copy(0, batch.token_positions, batch.token_labels)


def check(directory: Path, treebank: Path) -> None:
    """Hold our tagger to Hugging Face's; see `assert_same_gradients`."""
    names, data = sentences(directory, treebank)
    batch = data.examples.batch(np.arange(4), data.labels)
    torch.manual_seed(0)
    model = BertForTokenClassification.from_pretrained(directory, labels=names).eval()
    assert_same_gradients(model, batch, batch.unpack(labels_of_tokens(batch), padding_value=IGNORED_LABEL))


def useful_flops(config: BertConfig, batch: PackedBatch) -> float:
    """Return the FLOPs that a step on real tokens needs, but for the small head."""
    squares = float(batch.cu_seqlens.diff().double().square().sum())
    shapes = linear_shapes(config, batch.num_tokens)
    return sum(shape.flops for shape in shapes) + 12 * config.hidden_size * config.num_hidden_layers * squares


def linear_shapes(config: BertConfig, tokens: int) -> list[LinearShape]:
    """Return the linear maps of a step's encoder."""
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return [
        LinearShape(rows=tokens, inputs=width, outputs=3 * width, count=layers),
        LinearShape(rows=tokens, inputs=width, outputs=width, count=layers),
        LinearShape(rows=tokens, inputs=width, outputs=inner, count=layers),
        LinearShape(rows=tokens, inputs=inner, outputs=width, count=layers),
    ]
