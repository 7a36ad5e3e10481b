"""Spans from tags such as B-PER I-PER O: where names, phrases and the like begin and end, and how many are right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_TAG = re.compile(r"[BIESLUM]-.+")
_OUTSIDE = "O"
_SAME = {"L": "E", "U": "S", "M": "I"}
"""Other letters for the same: last, unit, middle."""


class Span(NamedTuple):
    """Some words of a sentence that have a label together."""

    label: str
    """What they are, such as PER."""
    first: int
    """Number of the first word, from 0."""
    last: int
    """Number of the last one."""


def are_span_tags(names: Sequence[str]) -> bool:
    """Whether tags spell spans: each is "O" or has a letter before a hyphen, and B- or I- is among them."""
    return all(name == _OUTSIDE or _TAG.fullmatch(name) for name in names) and any(
        name.startswith(("B-", "I-")) for name in names
    )


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Return the spans that the tags of a sentence spell: in IOB2 (BIO), IOB1, IOBES or BILOU.

    A word goes on with the span of the word before it if it is tagged inside or end (I-X, E-X), and the word before it
    begin or inside (B-X, I-X) of the same X. Every other word that is not tagged O begins a span: also I-X behind O,
    as IOB1 has it, and also where a strict reading of the scheme finds no span. Of IOB2, IOB1 and IOBES these are the
    spans that seqeval finds in its default mode, and the conlleval script of the CoNLL shared tasks before it; the
    default mode does not know the letters of BILOU.

    Source: Tjong Kim Sang and Buchholz 2000 (cs/0009008) §4; Ramshaw and Marcus 1995 (cmp-lg/9505040) §4.1.
    """
    spans: list[Span] = []
    before, label_before = _OUTSIDE, ""
    for number, tag in enumerate(tags):
        letter, _, label = tag.partition("-")
        letter = _SAME.get(letter, letter)
        if letter in ("I", "E") and before in ("B", "I") and label == label_before:
            spans[-1] = spans[-1]._replace(last=number)
        elif letter != _OUTSIDE:
            spans.append(Span(label, number, number))
        before, label_before = letter, label
    return spans


def span_scores(expected: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the precision, recall and F1 of spans over all sentences; a span is right if label and borders are.

    Precision is the share of found spans that are right, recall the share of expected spans that were found, F1 their
    harmonic mean; each is 0 where it would divide by 0.

    Args:
        expected: the true tags of each sentence.
        found: those of the model.

    Returns:
        "span_precision", "span_recall", "span_f1".
    """
    num_expected = num_found = num_right = 0
    for true, given in zip(expected, found, strict=True):
        true_spans, given_spans = set(spans_of(true)), set(spans_of(given))
        num_expected += len(true_spans)
        num_found += len(given_spans)
        num_right += len(true_spans & given_spans)
    return {
        "span_precision": num_right / max(num_found, 1),
        "span_recall": num_right / max(num_expected, 1),
        "span_f1": 2 * num_right / max(num_expected + num_found, 1),
    }
