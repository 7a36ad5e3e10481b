"""A step of training sentence embeddings: our Trainer beside sentence-transformers in a plain loop."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks import real_data
from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import sgemm_of
from benchmarks.models.finetuning_step import EFFORT, LEARNING_RATE, QUICK_EFFORT, minilm, steps_of_our_trainer
from benchmarks.models.tagging_step import linear_shapes, useful_flops
from benchmarks.own_process import OwnProcess
from benchmarks.peers import sentence_transformers
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch
from fastssl.data.table import read_table
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert_embedder import BertForSentenceEmbedding
from fastssl.models.bert_files import load_config
from fastssl.tasks.embedding.pairs import PairData, text_numbers
from fastssl.tasks.encoded_texts import encode_texts

BATCH_SIZE, MAX_LENGTH = 32, 256
"""Pairs a batch, and tokens of a text, as the published weights say."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return the step of MiniLM-L6 on entailed pairs, a long text and a short one each."""
    return {"MiniLM-L6, entailed pairs of RTE, batch 32": partial(comparison, QUICK_EFFORT if run.quick else EFFORT)}


def comparison(effort: Effort) -> Comparison:
    """Compare whole steps from the same body on the same pairs in the same order.

    A step is everything from one end of a step to the next: batch, forward, backward, clipping at 1.0, fused AdamW. The
    Trainer of sentence-transformers cuts texts into tokens in each step, and so does the loop.
    """
    directory, rte = minilm(), real_data.file("rte/train.tsv")
    _, data = pairs(directory, rte)
    measured = [data.batch(0, index) for index in range(min(effort.max_rounds, data.num_batches(0)))]
    config = load_config(directory)
    return Comparison(
        contenders={
            OURS: OwnProcess(partial(our_trainer, directory, rte)),
            "sentence-transformers": OwnProcess(partial(their_loop, directory, rte)),
        },
        check=partial(check, directory, rte),
        work=sum(useful_flops(config, batch) for batch in measured) / len(measured),
        unit="FLOP",
        limit=sgemm_of(linear_shapes(config, sum(b.num_tokens for b in measured) // len(measured))),
        effort=effort,
    )


def pairs(directory: Path, rte: Path) -> tuple[list[list[str]], PairData]:
    """Return the two columns of texts, and their batches."""
    columns = read_table(rte).columns
    rows = [row for row, label in enumerate(columns["label"]) if label == "entailment"]
    texts = [[columns[name][row] for row in rows] for name in ("sentence1", "sentence2")]
    encoded = encode_texts(Tokenizer.load(directory), texts[0] + texts[1], max_seq_length=MAX_LENGTH)
    return texts, PairData(encoded, text_numbers(texts), seed=0, batch_size=BATCH_SIZE)


def our_trainer(directory: Path, rte: Path) -> Launch:
    """Return our Trainer, one step a launch."""
    _, data = pairs(directory, rte)
    return steps_of_our_trainer(BertForSentenceEmbedding.from_pretrained(directory), data)


def their_loop(directory: Path, rte: Path) -> Launch:
    """Return a step of sentence-transformers, on the pairs in our order."""
    texts, data = pairs(directory, rte)
    batches = [[[column[number] for number in numbers] for column in texts] for numbers in data.plan(0)]
    return sentence_transformers.training_steps(directory, batches, learning_rate=LEARNING_RATE)


def check(directory: Path, rte: Path) -> None:
    """Hold our loss, without dropout, to theirs."""
    texts, data = pairs(directory, rte)
    with torch.no_grad():
        ours = BertForSentenceEmbedding.from_pretrained(directory)(data.batch(0, 0)).loss.item()
    numbers = data.plan(0)[0]
    theirs = sentence_transformers.in_batch_loss(directory, [[column[i] for i in numbers] for column in texts])
    assert abs(ours - theirs) <= 1e-5, f"the losses differ: {ours} and {theirs}"
