"""Spans of tags, and their scores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastssl.tasks.tagging.spans import are_span_tags, span_scores, spans_of

TAGS = ["O", *(f"{letter}-{label}" for letter in "BIES" for label in ("A", "B-C"))]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("I-PER I-PER B-PER O", [("PER", 0, 1), ("PER", 2, 2)]),
        ("I-PER I-LOC O I-LOC", [("PER", 0, 0), ("LOC", 1, 1), ("LOC", 3, 3)]),
        ("B-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("B-PER I-PER E-PER S-PER O", [("PER", 0, 2), ("PER", 3, 3)]),
        ("B-PER E-PER I-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("E-PER S-PER E-PER", [("PER", 0, 0), ("PER", 1, 1), ("PER", 2, 2)]),
        ("B-PER L-PER U-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("B-ORG-X I-ORG-X I-ORG", [("ORG-X", 0, 1), ("ORG", 2, 2)]),
        ("O O", []),
    ],
)
def test_spans_as_conlleval_finds_them(tags, spans):
    assert spans_of(tags.split()) == spans


@given(st.lists(st.sampled_from(TAGS), max_size=9))
def test_spans_hold_every_tagged_word_once(tags):
    covered = [number for _, first, last in spans_of(tags) for number in range(first, last + 1)]
    assert covered == [number for number, tag in enumerate(tags) if tag != "O"]
    assert all({tags[number][2:] for number in range(f, l + 1)} == {label} for label, f, l in spans_of(tags))


@given(st.lists(st.sampled_from([tag for tag in TAGS if tag[0] in "OBI"]), max_size=9))
def test_the_schemes_agree(tags):
    """What IOB2 spells is spelt in IOBES too."""
    spelt = ["O"] * len(tags)
    for label, first, last in spans_of(tags):
        spelt[first : last + 1] = [f"I-{label}"] * (last + 1 - first)
        spelt[first], spelt[last] = f"B-{label}", f"E-{label}"
        if first == last:
            spelt[first] = f"S-{label}"
    assert spans_of(spelt) == spans_of(tags)


def test_scores_by_hand():
    expected = ["B-A I-A O B-B".split(), "O O".split(), "B-A".split()]
    found = ["B-A I-A O B-A".split(), "O B-B".split(), "O".split()]
    # One of three expected spans is among the three that were found.
    assert span_scores(expected, found) == {
        "span_precision": pytest.approx(1 / 3),
        "span_recall": pytest.approx(1 / 3),
        "span_f1": pytest.approx(1 / 3),
    }
    borders = span_scores(["B-A I-A".split()], ["B-A O".split()])
    assert set(borders.values()) == {0.0} and set(span_scores([["O"]], [["O"]]).values()) == {0.0}
    assert span_scores(["B-A O B-A".split()], ["B-A O O".split()])["span_precision"] == 1.0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("B-PER", "I-PER", "O"), True),
        (("I-PER", "O"), True),
        (("B-A", "E-A", "I-A", "O", "S-A"), True),
        (("NOUN", "VERB"), False),
        (("O", "X"), False),
        (("B-PER", "O", "NOUN"), False),
        (("S-A", "O"), False),
        (("O",), False),
        (("0", "1"), False),
    ],
)
def test_which_tags_spell_spans(names, expected):
    assert are_span_tags(names) == expected
