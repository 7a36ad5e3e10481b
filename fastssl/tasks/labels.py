"""Labels: from the spelling of a file to the numbers of a head, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastssl.models.bert_config import ProblemType, default_label_names

_NAMES_SHOWN = 20
_MOST_COUNTED_CLASSES = 20
_WHOLE_WITH_POINT = re.compile(r"(-?\d+)\.0*")
_DECIMAL = re.compile(r"[-+]?(\d*[.,]\d+|\d+\.)([eE][-+]?\d+)?")
Place = Callable[[int], str]
"""Row -> where it stands, for errors."""


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """What a head tells apart."""

    names: tuple[str, ...]
    """One for each number that the head gives; a single one for regression."""
    problem_type: ProblemType
    """Whether a text has one of them, several, or a value."""

    @classmethod
    def of(cls, labels: Sequence[Any], place: Place, problem_type: ProblemType | None = None) -> LabelSet:
        """Return the labels of a training file: names in alphabetical order, numbers in theirs.

        Classes that are given by vectors of zeros and ones have no names but LABEL_0, LABEL_1 and so on.

        Args:
            labels: as the file spells them: text, numbers, or lists of them (several classes at once), which may also
                be vectors of zeros and ones, one number a class, as Hugging Face has several classes at once.
            place: says where a row stands.
            problem_type: None tells it from the labels: lists mean several classes at once; numbers of which one has a
                decimal point mean regression, unless they count classes (0.0, 1.0, ...); all else is one class a text.

        Raises:
            ValueError: for a row without label, a label that is no number in regression or among decimal numbers, a
                list that names a class twice, or one class only.
        """
        kind = problem_type or _kind_of(labels, place)
        if kind == "regression":
            for row, label in enumerate(labels):
                _number(label, place, row)
            return cls(names=default_label_names(1), problem_type=kind)
        if kind == "multi_label_classification" and (num_classes := num_positions(labels, place)):
            return cls(names=default_label_names(num_classes), problem_type=kind)
        found = {name for row, label in enumerate(labels) for name in _names(label, kind, place, row)}
        names = tuple(sorted(found, key=_order))
        if len(names) < 2:
            raise ValueError(
                f"all labels are {', '.join(names) or 'empty'}: a classifier needs at least two classes to tell apart"
            )
        return cls(names=names, problem_type=kind)

    def encode(self, labels: Sequence[Any], place: Place) -> Tensor:
        """Return (B) int64 classes, (B, C) float of zeros and ones, or (B) float values.

        A head whose labels have no names of their own (LABEL_0, LABEL_1, ...) takes their numbers; a head of several
        classes at once takes vectors of zeros and ones too, in the order of its names.

        Raises:
            ValueError: for a label that the head does not know, or that is none, or vectors of another length.
        """
        if self.problem_type == "regression":
            return torch.tensor([_number(label, place, row) for row, label in enumerate(labels)])
        if self.problem_type == "multi_label_classification" and (num_classes := num_positions(labels, place)):
            if num_classes != len(self.names):
                raise ValueError(
                    f"{place(0)}: the label is a vector of zeros and ones for {num_classes} classes, but the model "
                    f"knows {len(self.names)}: {listed(self.names)}"
                )
            return torch.tensor([[float(value) for value in label] for label in labels])
        numbers = self.numbers()
        rows = [
            [self._number_of(name, numbers, place, row) for name in _names(label, self.problem_type, place, row)]
            for row, label in enumerate(labels)
        ]
        if self.problem_type == "single_label_classification":
            return torch.tensor([row[0] for row in rows])
        several = torch.zeros(len(rows), len(self.names))
        for target, row in zip(several, rows, strict=True):
            target[row] = 1.0
        return several

    def numbers(self) -> dict[str, int]:
        """Return the number of each label by every spelling that means it."""
        # A head from elsewhere may spell its names 0.0 and 1.0.
        numbers = {spelled(name): number for number, name in enumerate(self.names)}
        numbers |= {name: number for number, name in enumerate(self.names)}
        if self.names == default_label_names(len(self.names)):
            numbers |= {str(number): number for number in range(len(self.names))}
        return numbers

    def balanced_weights(self, labels: Tensor) -> list[float]:
        """Return n / (C n_c) for each class c of (n) classes: rare classes count as much as frequent ones."""
        counts = torch.bincount(labels, minlength=len(self.names))
        return (len(labels) / (len(self.names) * counts.clamp(min=1))).tolist()

    def _number_of(self, name: str, numbers: dict[str, int], place: Place, row: int) -> int:
        if name not in numbers:
            more = "" if len(self.names) <= _NAMES_SHOWN else f" and {len(self.names) - _NAMES_SHOWN} more"
            raise ValueError(
                f"{place(row)}: the label {name!r} is not one that the model knows: "
                f"{', '.join(self.names[:_NAMES_SHOWN])}{more}"
            )
        return numbers[name]


def spelled(label: Any) -> str:
    """Return a label as text: 1, 1.0 and "1.0" are "1", true is "true"."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    text = str(label).strip()
    whole = _WHOLE_WITH_POINT.fullmatch(text)
    return whole[1] if whole else text


def num_positions(labels: Sequence[Any], place: Place) -> int | None:
    """Return how many classes labels tell of by position, as vectors of zeros and ones; None where they name them.

    They are vectors if all of them are lists of one length, at least two, of nothing but the numbers 0 and 1, or false
    and true.

    Raises:
        ValueError: where all are the same zero and one, which might as well be the names of two classes.
    """
    lists = all(isinstance(label, list) for label in labels)
    if not lists or len({len(label) for label in labels}) != 1 or len(labels[0]) < 2:
        return None
    if not all(isinstance(value, int | float) and value in (0, 1) for label in labels for value in label):
        return None
    if len(labels[0]) == 2 and labels[0][0] != labels[0][1] and all(label == labels[0] for label in labels):
        raise ValueError(
            f"{place(0)}: the label {labels[0]} is either a vector of zeros and ones or names the classes 0 and 1, and "
            "no other line tells which, as all are the same; name the classes that hold, as text"
        )
    return len(labels[0])


def listed(names: Sequence[str]) -> str:
    """Return names for a message, the first of them where they are many."""
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _kind_of(labels: Iterable[Any], place: Place) -> ProblemType:
    labels = list(labels)
    if any(isinstance(label, list) for label in labels):
        return "multi_label_classification"
    decimal = [_is_decimal(label) for label in labels]
    if not any(decimal):
        return "single_label_classification"
    values = [_as_number(label) for label in labels]
    if None not in values:
        return "single_label_classification" if _count_classes(values) else "regression"
    if 2 * sum(value is not None or point for value, point in zip(values, decimal, strict=True)) > len(labels):
        row = values.index(None)
        raise ValueError(
            f"{place(row)}: expected a number as label, with a decimal point, as most lines have; got {labels[row]!r}; "
            "mend it or leave the line out, or give --problem-type single_label_classification if they are names"
        )
    return "single_label_classification"


def _is_decimal(label: Any) -> bool:
    """Whether a label is a number that is written with a point, or with a comma for it."""
    if isinstance(label, str):
        return bool(_DECIMAL.fullmatch(label.strip())) and (_as_number(label) is not None or "," in label)
    return isinstance(label, float) and math.isfinite(label)


def _count_classes(values: Sequence[float]) -> bool:
    """Whether numbers are 0, 1, ... without a gap, as classes are counted, and few: spreadsheets add the ".0"."""
    found = set(values)
    return 2 <= len(found) <= _MOST_COUNTED_CLASSES and found == set(range(len(found)))


def _names(label: Any, kind: ProblemType, place: Place, row: int) -> list[str]:
    several = kind == "multi_label_classification"
    if isinstance(label, list) and not several:
        raise ValueError(f"{place(row)}: expected one label, got the list {label}")
    values = label if isinstance(label, list) else [label]
    names = [spelled(value) for value in values]
    missing = any(value is None or (isinstance(value, float) and not math.isfinite(value)) for value in values)
    if missing or not all(names):
        raise ValueError(f"{place(row)}: there is no label")
    if len(set(names)) < len(names):
        raise ValueError(
            f"{place(row)}: the label {label} names a class twice; name each class that holds once, or give vectors of "
            "zeros and ones, of one length in all lines"
        )
    return names


def _number(label: Any, place: Place, row: int) -> float:
    value = _as_number(label)
    if value is None:
        raise ValueError(f"{place(row)}: regression needs a number as label, got {label!r}")
    return value


def _as_number(label: Any) -> float | None:
    # Python reads 1_5 as 15; in a file it is a slip.
    if isinstance(label, bool) or not isinstance(label, str | int | float) or "_" in str(label):
        return None
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _order(name: str) -> tuple[int, float, str]:
    """Sort numbers by their value, before all other names."""
    value = _as_number(name)
    return (1, 0.0, name) if value is None else (0, value, name)
