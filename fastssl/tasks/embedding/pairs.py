"""Pairs of texts that belong together: read from files, and in batches whose texts are each other's negatives."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from fastssl.data.batch import PackedBatch
from fastssl.data.bytes_of_file import read_lines
from fastssl.data.table import Table
from fastssl.tasks.encoded_texts import EncodedTexts
from fastssl.tasks.labelled_texts import ColumnConfig, LabelledTexts, read_labelled_texts

_NEGATIVES = ("negative", "hard_negative")
_MOST_OPEN_BATCHES = 64


@dataclass(frozen=True, kw_only=True)
class PairTexts:
    """The examples of one file to train on."""

    table: Table
    """Where they come from."""
    anchors: list[str]
    """One a row."""
    positives: list[str] | None
    """The text that belongs to each; None: the anchor itself, under another dropout."""
    negatives: list[str] | None
    """A text for each that does not belong to it; None without them."""
    num_empty: int
    """Rows that were left out because a text is empty."""
    has_labels: bool
    """Whether the file has a column of labels, which is not read: every pair counts as one that belongs together."""

    def __len__(self) -> int:
        return len(self.anchors)

    @property
    def columns(self) -> list[list[str]]:
        """The texts, column by column."""
        return [column for column in (self.anchors, self.positives, self.negatives) if column is not None]


def read_pair_texts(path: str | Path, columns: ColumnConfig, negative_column: str | None = None) -> PairTexts:
    """Read pairs, pairs with hard negatives, or bare sentences.

    A table (see `fastssl.data.table.read_table`) has two texts a row, or one; a .txt file whose first line has no tab
    has one sentence a line.

    Args:
        path: the file.
        columns: the names of its columns, as far as they are given; the others are found by well-known names.
        negative_column: name of the column of hard negatives; None looks for "negative" and "hard_negative".

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a column that is not there, a damaged file, a text that is none, hard negatives without
            pairs, or a file without any text.
    """
    found = _lines(Path(path)) or read_labelled_texts(path, columns, needs_labels=False)
    negatives = _negatives(found.table, negative_column)
    if negatives is not None and found.pairs is None:
        raise ValueError(f"{path} has hard negatives but no second text that belongs to the first; name its column")
    chosen = [column for column in (found.texts, found.pairs, negatives) if column is not None]
    rows = [row for row, texts in enumerate(zip(*chosen, strict=True)) if all(text.strip() for text in texts)]
    if not rows:
        raise ValueError(f"{path}: every row has an empty text")
    kept = [[column[row] for row in rows] for column in chosen] + [None, None]
    return PairTexts(
        table=found.table,
        anchors=kept[0],
        positives=kept[1],
        negatives=kept[2],
        num_empty=len(found) - len(rows),
        has_labels=found.labels is not None,
    )


class PairData:
    """Pairs in batches, shuffled anew in each epoch; safe to use from several threads.

    No text stands twice in a batch, as far as that can be: what belongs to one anchor would be held against another.

    Args:
        examples: the encoded texts: X anchors, then the X that belong to them, then X hard negatives; or X sentences
            alone, each of which is then its own partner.
        texts: (X, K) integers: equal exactly for equal texts.
        seed: of the order.
        batch_size: pairs per batch; the last batch of an epoch has what is left.
    """

    def __init__(self, examples: EncodedTexts, texts: np.ndarray, *, seed: int, batch_size: int) -> None:
        if batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, got {batch_size}: a pair is told apart from the others of its batch"
            )
        self.examples, self.texts, self.seed, self.batch_size = examples, texts, seed % 2**64, batch_size
        self._lock = threading.Lock()
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def __len__(self) -> int:
        return len(self.texts)

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches, the same in every epoch."""
        return -(-len(self) // self.batch_size)

    def batch(self, epoch: int, index: int) -> PackedBatch:
        """Return batch `index` of `epoch`, a function of the seed and the two: anchors, partners, hard negatives."""
        if not 0 <= index < self.num_batches(epoch):
            raise ValueError(f"epoch {epoch} has batches 0 to {self.num_batches(epoch) - 1}, got index {index}")
        numbers = self.plan(epoch)[index]
        columns = max(2, len(self.examples) // len(self))
        shift = len(self) if len(self.examples) > len(self) else 0
        rows = np.concatenate([numbers + column * shift for column in range(columns)])
        return replace(self.examples.batch(rows), num_pairs=len(numbers))

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Return the numbers of the pairs of each batch of an epoch, int64; the last two asked for are kept."""
        with self._lock:
            return self._plan(epoch)

    def _make_plan(self, epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self))
        return batches_without_repeats(order, self.texts, self.batch_size)


def batches_without_repeats(order: np.ndarray, texts: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut an order of examples into batches of `batch_size` in which no text stands twice, as far as that can be.

    Each example joins the oldest batch that has none of its texts; what finds none among 64, or is left in the end,
    stands together whatever it holds.

    Args:
        order: (X) int64.
        texts: (X, K) integers: the texts of each example.
        batch_size: of all batches but the last.
    """
    full: list[np.ndarray] = []
    opened: list[tuple[list[int], set[int]]] = []
    for number, own in zip(order.tolist(), texts[order].tolist(), strict=True):
        place = next((i for i, (_, seen) in enumerate(opened) if seen.isdisjoint(own)), len(opened))
        if place == len(opened) and len(opened) < _MOST_OPEN_BATCHES:
            opened.append(([], set()))
        place = min(place, len(opened) - 1)
        batch, seen = opened[place]
        batch.append(number)
        seen.update(own)
        if len(batch) == batch_size:
            del opened[place]
            full.append(np.array(batch))
    rest = np.array([number for batch, _ in opened for number in batch], dtype=np.int64)
    return full + [rest[start : start + batch_size] for start in range(0, len(rest), batch_size)]


def text_numbers(columns: Sequence[Sequence[str]]) -> np.ndarray:
    """Return (X, K) integers for K columns of X texts, equal exactly for equal texts."""
    known: dict[str, int] = {}
    return np.array([[known.setdefault(text, len(known)) for text in column] for column in columns]).T


def _lines(path: Path) -> LabelledTexts | None:
    """Return the lines of a text file as sentences; None for any other file, which is a table."""
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in (".gz", ".zst")]
    if endings[-1:] != [".txt"] or not path.is_file():
        return None
    lines, texts = [], []
    for number, (_, line) in enumerate(read_lines(path, lambda _: None), start=1):
        if number == 1 and b"\t" in line:
            return None
        try:
            texts.append(line.decode().rstrip("\r"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
        lines.append(number)
    table = Table(path=path, columns={"text": texts}, lines=lines)
    return LabelledTexts(table=table, texts=texts, pairs=None, labels=None)


def _negatives(table: Table, wanted: str | None) -> list[str] | None:
    if wanted is not None and wanted not in table.columns:
        raise ValueError(f"{table.path} has no column {wanted!r} (negative_column); it has {', '.join(table.columns)}")
    name = wanted or next((column for column in table.columns if column.lower() in _NEGATIVES), None)
    if name is None:
        return None
    for row, value in enumerate(table.columns[name]):
        if not isinstance(value, str):
            raise ValueError(f"{table.place(row)}: column {name!r} must hold a text, got {value!r}")
    return table.columns[name]
