"""Labels and columns: what is found in a file, and what is refused."""

import json

import pytest
import torch

from fastssl.tasks.labelled_texts import ColumnConfig, read_labelled_texts
from fastssl.tasks.labels import LabelSet


def place(row: int) -> str:
    return f"file, line {row + 2}"


def test_classes_are_sorted_and_encoded():
    found = LabelSet.of(["pos", "neg", " pos "], place)
    assert found == LabelSet(names=("neg", "pos"), problem_type="single_label_classification")
    assert found.encode(["pos", "neg"], place).tolist() == [1, 0]


def test_numbers_are_sorted_by_value_and_json_numbers_are_their_names():
    assert LabelSet.of(["10", "9", "-1"], place).names == ("-1", "9", "10")
    assert LabelSet.of([1, 0, True], place).names == ("0", "1", "true")
    assert LabelSet.of([2, 10, 1], place).encode([10, 1.0], place).tolist() == [2, 0]


def test_decimal_numbers_mean_regression_and_lists_mean_several():
    assert LabelSet.of(["5.000", "3"], place).problem_type == "regression"
    assert LabelSet.of([0.5, 1], place).encode(["2.25", 1], place).tolist() == [2.25, 1.0]
    several = LabelSet.of([["a", "b"], [], "c"], place)
    assert several == LabelSet(names=("a", "b", "c"), problem_type="multi_label_classification")
    assert several.encode([["c", "a"], []], place).tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("numbers", [(0, 1), (0.0, 1.0), (False, True)])
def test_vectors_of_zeros_and_ones_tell_of_classes_by_position(numbers):
    rows = [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    vectors = [[numbers[value] for value in row] for row in rows]
    found = LabelSet.of(vectors, place)
    assert found == LabelSet(names=("LABEL_0", "LABEL_1", "LABEL_2"), problem_type="multi_label_classification")
    assert found.encode(vectors, place).tolist() == rows
    named = LabelSet.of([["b", "c"], ["a"]], place)
    assert named.encode(vectors, place).tolist() == rows and named.encode(vectors, place).is_floating_point()
    with pytest.raises(ValueError, match=r"line 2: the label is a vector .* for 2 classes, but the model knows 3"):
        named.encode([[1, 1]], place)


def test_lists_of_numbers_that_are_no_vectors_name_classes():
    assert LabelSet.of([[0], [1]], place).names == ("0", "1")
    assert LabelSet.of([[0, 1], [2, 3]], place).names == ("0", "1", "2", "3")
    found = LabelSet.of([[0, 1], [1]], place)
    assert found.names == ("0", "1") and found.encode([["0", "1"]], place).tolist() == [[1, 1]]
    assert LabelSet.of([[0, 1], [1, 0]], place).encode([[0, 1], [1, 0]], place).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match=r"line 2: the label \[0, 1\] is either a vector .* or names the classes"):
        found.encode([[0, 1], [0, 1]], place)


def test_counted_classes_may_carry_a_decimal_point_in_every_format():
    for labels in (["1.0", "0.0", "1"], [1.0, 0.0, 1]):
        found = LabelSet.of(labels, place)
        assert found == LabelSet(names=("0", "1"), problem_type="single_label_classification")
        assert found.encode(labels, place).tolist() == [1, 0, 1]
        assert found.encode(["1.0", 1.0, "1", 0], place).tolist() == [1, 1, 1, 0]
        assert LabelSet.of(labels, place, "regression").problem_type == "regression"
    for labels in (["1.0", "2.0"], ["0.0", "2.0"], [0.0, 0.5, 1.0]):
        assert LabelSet.of(labels, place).problem_type == "regression"
    spelt = LabelSet(names=("0.0", "1.0"), problem_type="single_label_classification")
    assert spelt.encode(["1.0", 1, "0"], place).tolist() == [1, 1, 0]


@pytest.mark.parametrize("wrong", ["nan", "NA", "", "2,5", None, float("nan"), "inf"])
def test_among_decimal_numbers_no_other_label_becomes_a_class(wrong):
    with pytest.raises(ValueError, match=f"line 3: expected a number as label.*got {wrong!r}; .*--problem-type"):
        LabelSet.of(["1.5", wrong, "2.0"], place)
    with pytest.raises(ValueError, match=r"line 2: expected a number as label.*got '1,5'"):
        LabelSet.of(["1,5", "2,5", "2,0"], place)
    if wrong not in ("", None) and wrong == wrong:
        assert wrong in LabelSet.of(["1.5", wrong, "2.0"], place, "single_label_classification").names
    assert LabelSet.of(["1.5", "a", "b"], place).names == ("1.5", "a", "b")


def test_labels_without_names_take_numbers():
    nameless = LabelSet(names=("LABEL_0", "LABEL_1"), problem_type="single_label_classification")
    assert nameless.encode(["1", "LABEL_0", 0], place).tolist() == [1, 0, 0]


def test_balanced_weights_have_the_mean_one():
    label_set = LabelSet(names=("a", "b"), problem_type="single_label_classification")
    labels = torch.tensor([0, 0, 0, 1])
    weights = torch.tensor(label_set.balanced_weights(labels))
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 2.0]))
    torch.testing.assert_close(weights[labels].mean(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (["a", "a"], None, "all labels are a: a classifier needs at least two"),
        (["a", "b", ""], None, "line 4: there is no label"),
        (["a", None], None, "line 3: there is no label"),
        ([0, float("nan"), 1, "a"], None, "line 3: there is no label"),
        (["1.5", "x"], "regression", "line 3: regression needs a number as label, got 'x'"),
        ([1.5, float("nan")], "regression", "line 3: regression needs a number"),
        (["1.5", "1_5"], "regression", "line 3: regression needs a number as label, got '1_5'"),
        ([["a"], ["b", None]], None, "line 3: there is no label"),
        ([["a", "b"], ["b", "b"]], None, r"line 3: the label \['b', 'b'\] names a class twice"),
        ([[1, 0, 0], [1, 1]], None, r"line 2: the label \[1, 0, 0\] names a class twice; .* of one length in all"),
        ([["a"], ["b"]], "single_label_classification", "line 2: expected one label, got the list"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(labels, problem_type, message):
    with pytest.raises(ValueError, match=message):
        LabelSet.of(labels, place, problem_type)


def test_a_label_that_only_the_evaluation_has_is_named():
    with pytest.raises(ValueError, match="line 3: the label 'c' is not one that the model knows: a, b"):
        LabelSet.of(["a", "b"], place).encode(["a", "c"], place)


def write(path, header: str):
    path.write_text(f"{header}\n" + "\t".join("abcdefgh"[: len(header.split("\t"))]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("header", "options", "found"),
    [
        ("sentence\tlabel", {}, ("a", None, "b")),
        ("index\tsentence1\tsentence2\tlabel", {}, ("b", "c", "d")),
        ("Premise\tHypothesis\tgold_label", {}, ("a", "b", "c")),
        ("id\tquestion1\tquestion2\tlabel", {}, ("b", "c", "d")),
        ("stars\treview\tnote", {"label_column": "stars"}, ("b", None, "a")),
        ("x\ty\tz", {"text_column": "z", "text_pair_column": "x", "label_column": "y"}, ("c", "a", "b")),
        ("sentence1\tsentence2\tlabel", {"text_column": "sentence2"}, ("b", None, "c")),
    ],
)
def test_columns_are_found_by_name(tmp_path, header, options, found):
    texts = read_labelled_texts(write(tmp_path / "a.tsv", header), ColumnConfig(**options))
    assert (texts.texts[0], texts.pairs and texts.pairs[0], texts.labels[0]) == found


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("x\tlabel", {}, r"no column with a well-known name for texts; it has x, label: name one with --text-column"),
        ("text\tx", {}, r"for labels; it has text, x: name one with --label-column"),
        ("text\tlabel", {"text_column": "review"}, r"no column 'review' \(text_column\); it has text, label"),
        ("text\tlabel", {"label_column": "stars"}, r"no column 'stars' \(label_column\)"),
        ("text\tlabel", {"text_pair_column": "text"}, "without text_column"),
    ],
)
def test_columns_that_are_not_there_are_named_with_those_that_are(tmp_path, header, options, message):
    with pytest.raises(ValueError, match=message):
        read_labelled_texts(write(tmp_path / "a.tsv", header), ColumnConfig(**options))


def test_labels_may_be_missing_where_none_are_needed_and_texts_must_be_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n", encoding="utf-8")
    assert read_labelled_texts(path, ColumnConfig(), needs_labels=False).labels is None
    path.write_text(json.dumps({"text": 3}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: column 'text' must hold a text, got 3"):
        read_labelled_texts(path, ColumnConfig(), needs_labels=False)
