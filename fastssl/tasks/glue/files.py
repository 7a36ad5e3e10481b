"""The files of GLUE in their official layouts: which tasks are there, and their examples in one layout for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastssl.data.table import read_table
from fastssl.tasks.glue.tasks import GLUE_TASKS, GlueTask, key_of
from fastssl.tasks.labelled_subsets import nested_order

_FEW_LINES = 10
_SHARE_OF_LINES = 0.01


@dataclass(frozen=True, kw_only=True)
class GlueExamples:
    """The examples of one file."""

    texts: tuple[list[str], ...]
    """One list, or the first and the second texts."""
    labels: list[str] | None
    """As the file spells them; None in a test file."""

    def __len__(self) -> int:
        return len(self.texts[0])

    def sample(self, number: int | None, seed: int, *, classes: bool) -> GlueExamples:
        """Return a random part with the classes in their proportions; all where there are no more, or for None."""
        if number is None or number >= len(self):
            return self
        rows = nested_order(np.array(self.labels) if classes else None, len(self), seed)[:number]
        return GlueExamples(
            texts=tuple([texts[row] for row in rows] for texts in self.texts),
            labels=[self.labels[row] for row in rows],
        )

    def write(self, path: Path) -> Path:
        """Write a table that `finetune` and `evaluate` read, and return its path."""
        names = ["sentence"] if len(self.texts) == 1 else ["sentence1", "sentence2"]
        rows = zip(*self.texts, self.labels, strict=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join("\t".join(row) + "\n" for row in [(*names, "label"), *rows]).encode())
        return path


def find_tasks(folder: str | Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return which tasks of GLUE a folder holds: name -> its folder; and name -> why it is left out.

    Folders have the names of the tasks, in any case and with or without hyphens.

    Raises:
        FileNotFoundError: for a folder that is not there.
        ValueError: for two folders of one task.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a directory; expected one with folders such as CoLA, SST-2, MRPC")
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    found, missing = {}, {}
    for task in GLUE_TASKS:
        own = [path for path in inside if key_of(path.name) == task.key]
        if len(own) > 1:
            raise ValueError(f"{folder} has {len(own)} folders for {task.name}: {', '.join(p.name for p in own)}")
        lacking = [f"{name}.tsv" for name in ("train", *task.splits) if own and not (own[0] / f"{name}.tsv").is_file()]
        if not own:
            missing[task.name] = "no folder"
        elif lacking:
            missing[task.name] = f"no {' and no '.join(lacking)} in {own[0]}"
        else:
            found[task.name] = own[0]
    return found, missing


def read_examples(folder: Path, task: GlueTask, split: str, say: Callable[[str], None]) -> GlueExamples:
    """Read a file of training or development examples. Quotation marks are ordinary characters.

    Lines that are damaged (as a few of QQP are) are left out, counted and told: another number of fields than the
    header, or a label that the task does not have.

    Args:
        folder: of the task.
        task: which one.
        split: name of the file without its ending, such as "train".
        say: takes remarks.

    Raises:
        ValueError: where columns are missing, or more than 10 lines and one in a hundred are damaged.
    """
    path, damaged = folder / f"{split}.tsv", []
    table = read_table(path, header=task.header, on_ragged=damaged.append)
    wanted = (*task.texts, task.label)
    _check_columns(path, list(table.columns), wanted)
    *texts, labels = (table.columns[name] for name in wanted)
    good = [row for row, label in enumerate(labels) if _is_label(label.strip(), task)]
    wrong = sorted(set(range(len(labels))) - set(good))
    expected = f"one of {', '.join(task.labels)}" if task.labels else "a number"
    damaged += [f"{table.place(row)}: the label {labels[row]!r}, expected {expected}" for row in wrong]
    if len(damaged) > max(_FEW_LINES, _SHARE_OF_LINES * (len(labels) + len(damaged))):
        raise ValueError(
            f"{path}: {len(damaged):,} damaged lines beside {len(good):,} good ones, the first being {damaged[0]}; "
            f"is it the official file of {task.name}?"
        )
    if damaged:
        say(f"left out {len(damaged):,} damaged lines of {path}, the first being {damaged[0]}")
    if not good:
        raise ValueError(f"{path} has no good line; is it the official file of {task.name}?")
    return GlueExamples(
        texts=tuple([column[row] for row in good] for column in texts), labels=[labels[row].strip() for row in good]
    )


def read_test(path: Path, task: GlueTask) -> GlueExamples:
    """Read a file of test examples, which have no labels; a damaged line is an error, since each needs an answer."""
    table = read_table(path)
    _check_columns(path, list(table.columns), task.texts)
    return GlueExamples(texts=tuple(table.columns[name] for name in task.texts), labels=None)


def _check_columns(path: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise ValueError(f"{path} has no column {', '.join(lacking)}; it has {', '.join(there)}")


def _is_label(label: str, task: GlueTask) -> bool:
    if task.labels:
        return label in task.labels
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
