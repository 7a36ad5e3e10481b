"""Figures of tags: by hand, of spans, of words without a tag, of tags that the model does not know."""

from pathlib import Path

import pytest
import torch

from fastssl.tasks.labels import LabelSet
from fastssl.tasks.tagging.scores import number_tags, tag_metric_names, tag_scores
from fastssl.tasks.tagging.tagged_sentences import TaggedSentences

NAMES = ("ADJ", "NOUN", "VERB")


def sentences(*tags: list[str | None]) -> TaggedSentences:
    words = [["w"] * len(row) for row in tags]
    lines = [list(range(1, 1 + len(row))) for row in tags]
    return TaggedSentences(path=Path("dev.conllu"), words=words, tags=list(tags), tag_column="UPOS", lines=lines)


def label_set(*names: str) -> LabelSet:
    return LabelSet(names=names, problem_type="single_label_classification")


def test_scores_by_hand():
    logits = torch.eye(3)[[0, 1, 2, 1]]
    found = tag_scores(logits, torch.tensor([0, 1, 1, -100]), NAMES, [2, 2])
    assert found["accuracy"] == pytest.approx(2 / 3)
    # F1 of ADJ 1, of NOUN 2/3, of VERB, which was predicted and never right, 0.
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    expected = torch.nn.functional.cross_entropy(logits[:3], torch.tensor([0, 1, 1]))
    assert found["loss"] == pytest.approx(float(expected)) and set(found) == {"loss", "accuracy", "macro_f1"}


def test_spans_end_with_their_sentence():
    names = ("B-A", "I-A", "O")
    labels = torch.tensor([0, 1, 0, -100, 1])
    whole = tag_scores(torch.eye(3)[[0, 1, 0, 0, 1]], labels, names, [2, 3])
    assert whole["span_f1"] == 1.0
    # I-A behind O begins a span of its own; the two words of the first sentence are one.
    joined = tag_scores(torch.eye(3)[[0, 1, 1, 0, 1]], labels, names, [2, 3])
    assert joined["accuracy"] == 0.75 and joined["span_f1"] == 1.0
    parted = tag_scores(torch.eye(3)[[0, 0, 0, 0, 1]], labels, names, [2, 3])
    assert parted["span_precision"] == pytest.approx(1 / 3) and parted["span_recall"] == 0.5


def test_unknown_tags_count_as_wrong_but_for_the_loss():
    tags = number_tags(sentences(["NOUN", "INTJ", None], ["VERB", "ADJ", "X"]), label_set(*NAMES))
    assert tags.numbers.tolist() == [1, 3, -100, 2, 0, 4] and tags.names == (*NAMES, "INTJ", "X")
    assert tags.unknown == ("INTJ", "X") and tags.num_unknown == 2
    assert tags.remark == "words have tags that the model does not know (INTJ, X): they count as wrong"
    logits = torch.eye(3)[[1, 0, 0, 2, 0, 0]]
    found = tag_scores(logits, tags.numbers, tags.names, [3, 3])
    assert found["accuracy"] == 0.6
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(torch.eye(3), torch.arange(3))))


def test_unknown_spans_were_not_found():
    tags = number_tags(sentences(["B-A", "O", "B-B"]), label_set("B-A", "I-A", "O"))
    found = tag_scores(torch.eye(3)[[0, 2, 2]], tags.numbers, tags.names, [3])
    assert found["span_precision"] == 1.0 and found["span_recall"] == 0.5
    other = number_tags(sentences(["B-A", "O", "_"]), label_set("B-A", "I-A", "O"))
    assert tag_scores(torch.eye(3)[[0, 2, 2]], other.numbers, other.names, [3])["span_precision"] == 1.0


def test_tags_of_another_task_are_refused():
    with pytest.raises(ValueError, match=r"dev\.conllu, line 2: the tag 'NN' in column 'UPOS' is not one .* ADJ, NOUN"):
        number_tags(sentences(["NOUN", "NN"], ["VBZ", "VERB", "JJ"]), label_set(*NAMES))


def test_numbers_are_the_tags_of_a_nameless_head():
    tags = number_tags(sentences(["1", "0", "LABEL_1", "7"]), label_set("LABEL_0", "LABEL_1"))
    assert tags.numbers.tolist() == [1, 0, 1, 2] and tags.unknown == ("7",)


def test_names_of_figures_are_known_beforehand(recwarn):
    assert tag_metric_names(NAMES) == ("loss", "accuracy", "macro_f1")
    spans = ("span_precision", "span_recall", "span_f1")
    assert tag_metric_names(("B-A", "O")) == ("loss", "accuracy", "macro_f1", *spans)
    assert not recwarn
