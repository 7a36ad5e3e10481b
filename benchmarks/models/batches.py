"""Masked-LM batches of three kinds of text: dense random tokens, sentences as they come, and windows of a corpus."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import real_data
from benchmarks.peers import hugging_face
from fastssl.data.batch import IGNORED_LABEL, PackedBatch
from fastssl.data.tokenizer import Tokenizer

MASK_RATE = 0.15


def dense(
    num_batches: int, sequences: int, length: int, *, vocab_size: int, mask_rate: float = MASK_RATE
) -> list[PackedBatch]:
    """Return batches of random tokens whose sequences all have one length."""
    return of_lengths(num_batches, (length,) * sequences, vocab_size=vocab_size, mask_rate=mask_rate)


def of_lengths(
    num_batches: int, lengths: Sequence[int], *, vocab_size: int, mask_rate: float = MASK_RATE
) -> list[PackedBatch]:
    """Return batches of random tokens whose sequences have these lengths, in an order of each batch's own."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(num_batches):
        ids = [generator.integers(1000, vocab_size, length) for length in generator.permutation(lengths)]
        found.append(masked(ids, mask_id=103, generator=generator, rate=mask_rate))
    return found


def sst2(num_batches: int, sequences: int) -> list[PackedBatch]:
    """Return batches of film-review phrases (SST-2, training part) in random order."""
    lines = real_data.file("sst2/train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return _of_lines([line.rsplit("\t", 1)[0] for line in lines], num_batches, sequences, max_length=128)


def wikitext(num_batches: int, sequences: int) -> list[PackedBatch]:
    """Return batches of every non-empty line of wikitext2's validation part, headings too, cut at 128 tokens."""
    lines = real_data.file("corpus/wikitext2.valid.txt").read_text(encoding="utf-8").splitlines()
    return _of_lines([line for line in lines if line.strip()], num_batches, sequences, max_length=128)


def windows(path: Path, num_batches: int, sequences: int, *, length: int) -> list[PackedBatch]:
    """Return batches of consecutive text cut into sequences of one length, special tokens included."""
    tokenizer = tokenizer_of_bert()
    text = path.read_text(encoding="utf-8")[: num_batches * sequences * length * 8]
    ids = np.concatenate([ids for ids, _ in tokenizer.encode_batch(text.splitlines())])
    room = length - 2
    pieces = [ids[start : start + room] for start in range(0, num_batches * sequences * room, room)]
    return [_of_pieces(chunk, tokenizer) for chunk in _chunks(pieces, sequences)]


def tokenizer_of_bert() -> Tokenizer:
    """Return the published vocabulary of bert-base-uncased."""
    return Tokenizer.load(real_data.file("tokenizers/bert-base-uncased"))


def masked(
    sequences: Sequence[np.ndarray], *, mask_id: int, generator: np.random.Generator, rate: float = MASK_RATE
) -> PackedBatch:
    """Return a batch with a share of each sequence, but not its first and last token, masked and labelled."""
    inputs, labels = [], []
    for ids in sequences:
        count = min(max(1, round(rate * len(ids))), len(ids) - 2)
        chosen = 1 + generator.permutation(len(ids) - 2)[:count]
        inputs.append(np.array(ids, dtype=np.int64))
        labels.append(np.full(len(ids), IGNORED_LABEL))
        labels[-1][chosen] = inputs[-1][chosen]
        inputs[-1][chosen] = mask_id
    return PackedBatch.from_sequences(inputs, labels=labels)


def first_sequences(batch: PackedBatch, count: int) -> PackedBatch:
    """Return the first `count` sequences of a batch, as a batch."""
    padded = {name: tensor[:count] for name, tensor in hugging_face.inputs(batch).items()}
    return PackedBatch.from_padded(**padded)


def _of_lines(lines: list[str], num_batches: int, sequences: int, *, max_length: int) -> list[PackedBatch]:
    tokenizer = tokenizer_of_bert()
    order = np.random.default_rng(0).permutation(len(lines))[: num_batches * sequences]
    encoded = tokenizer.encode_batch([lines[index] for index in order])
    pieces = [ids[: max_length - 2] for ids, _ in encoded]
    return [_of_pieces(chunk, tokenizer) for chunk in _chunks(pieces, sequences)]


def _of_pieces(pieces: Sequence[np.ndarray], tokenizer: Tokenizer) -> PackedBatch:
    special = tokenizer.special
    sequences = [np.concatenate(([special.cls], ids, [special.sep])) for ids in pieces]
    return masked(sequences, mask_id=special.mask, generator=np.random.default_rng(len(pieces)))


def _chunks(pieces: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    return (pieces[start : start + size] for start in range(0, len(pieces), size))
