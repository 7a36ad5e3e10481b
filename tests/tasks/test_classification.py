"""Batches, scores and predictions of classification."""

import json
import math

import numpy as np
import pytest
import torch

from fastssl import BertConfig, BertForMaskedLM, BertForSequenceClassification, Classifier, Tokenizer
from fastssl.tasks.classification.classifier import classify, metric_names, scores
from fastssl.tasks.encoded_texts import encode_texts
from fastssl.tasks.example_batches import ExampleBatches
from fastssl.tasks.labels import LabelSet

TEXTS = ["a cat sees a dog", "", "the old house by the river is large", "cat", "a b c d e f g", "dog"]
SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 53}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_wordpiece(TEXTS, vocab_size=80, min_frequency=1)


def make_model(tokenizer: Tokenizer, **options) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.3, **{**SIZES, **options})
    return BertForSequenceClassification(config)


@pytest.fixture
def data(tokenizer) -> ExampleBatches:
    examples = encode_texts(tokenizer, TEXTS, max_seq_length=64)
    return ExampleBatches(examples, torch.arange(6), seed=3, batch_size=4)


def test_every_epoch_holds_every_example_once_in_an_order_of_its_own(data):
    orders = []
    for epoch in range(3):
        assert data.num_batches(epoch) == 2
        batches = [data.batch(epoch, index) for index in range(2)]
        assert [batch.num_sequences for batch in batches] == [4, 2]
        orders.append(torch.cat([batch.sequence_labels for batch in batches]).tolist())
        assert sorted(orders[-1]) == list(range(6))
    assert orders[0] != orders[1] and data.batch(0, 0).sequence_labels.tolist() == orders[0][:4]
    with pytest.raises(ValueError, match="batches 0 to 1, got index 2"):
        data.batch(0, 2)


def test_classify_restores_the_order(tokenizer, monkeypatch):
    monkeypatch.setattr("fastssl.tasks.classification.classifier.TOKENS_PER_BATCH", 7)
    model = make_model(tokenizer).train()
    examples = encode_texts(tokenizer, TEXTS, max_seq_length=64)
    logits = classify(model, examples)
    assert model.training
    one_by_one = [model.eval()(examples.batch(np.array([number]))).logits[0] for number in range(6)]
    torch.testing.assert_close(logits, torch.stack(one_by_one).detach(), rtol=1e-4, atol=1e-5)
    assert classify(model, examples, cancelled=lambda: True) is None


def test_scores_of_two_classes():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    found = scores(logits, torch.tensor([0, 1, 0, 0]), "single_label_classification")
    # Of class 1: one true positive, one false positive, no false negative.
    assert found["accuracy"] == 0.75 and found["f1"] == pytest.approx(2 / 3)
    assert found["matthews"] == pytest.approx(2 / math.sqrt(12))
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 0]))))


def test_scores_of_more_classes_and_of_several_at_once():
    logits = torch.eye(3)[[0, 1, 2, 2]]
    found = scores(logits, torch.tensor([0, 1, 2, 1]), "single_label_classification")
    assert found["accuracy"] == 0.75 and found["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    several = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    found = scores(torch.tensor([[1.0, -1.0], [1.0, -1.0]]), several, "multi_label_classification")
    assert found["accuracy"] == 0.5 and found["micro_f1"] == pytest.approx(0.8)
    assert found["macro_f1"] == pytest.approx(0.5)


def test_scores_of_regression():
    labels = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = scores(torch.tensor([[1.0], [2.0], [3.0], [10.0]]), labels, "regression")
    assert found["spearman"] == pytest.approx(1.0) and 0.8 < found["pearson"] < 0.95 and found["loss"] == 9.0
    constant = scores(torch.ones(4, 1), labels, "regression")
    assert constant["pearson"] == constant["spearman"] == 0.0


def test_predictions_of_each_kind(tokenizer):
    one = Classifier(make_model(tokenizer, labels=("bad", "good", "so so")), tokenizer)(TEXTS)
    assert [p.text for p in one] == TEXTS
    for prediction in one:
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0)
        assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.get)
    kinds = {"problem_type": "multi_label_classification", "labels": ("x", "y", "z")}
    for prediction in Classifier(make_model(tokenizer, **kinds), tokenizer)(TEXTS, TEXTS[::-1]):
        assert set(prediction.label) == {name for name, p in prediction.probabilities.items() if p > 0.5}
        assert prediction.pair is not None
    value = Classifier(make_model(tokenizer, labels=("LABEL_0",)), tokenizer)(["cat"])[0]
    assert isinstance(value.label, float) and value.probabilities is None
    classifier = Classifier(make_model(tokenizer), tokenizer)
    assert classifier([]) == [] and classifier.logits([]).shape == (0, classifier.model.config.num_labels)


def test_predictions_equal_a_hugging_face_pipelines(tokenizer, tmp_path):
    from transformers import pipeline

    model = make_model(tokenizer, labels=("bad", "good"))
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path, model_max_length=8)
    classifier = Classifier.load(tmp_path)
    assert classifier.max_seq_length == 8
    peer = pipeline("text-classification", model=str(tmp_path), top_k=None, truncation=True)
    for ours, theirs in zip(classifier(TEXTS), peer(TEXTS), strict=True):
        assert [row["label"] for row in theirs] == list(ours.probabilities)
        assert [row["score"] for row in theirs] == pytest.approx(list(ours.probabilities.values()), abs=1e-5)


def test_a_model_of_another_task_is_refused(tokenizer, tmp_path):
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, **SIZES)).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(ValueError, match="was not fine-tuned for classification"):
        Classifier.load(tmp_path)
    make_model(tokenizer).save_pretrained(tmp_path)
    Classifier.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForTokenClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was not fine-tuned for classification"):
        Classifier.load(tmp_path)


def test_what_are_no_texts_is_told_and_generators_are_taken(tokenizer):
    classifier = Classifier(make_model(tokenizer), tokenizer)
    for texts, pairs, message in (
        ("one text", None, "texts must be several strings, got one"),
        (["a", "b"], "ab", "pairs must be several strings, got one"),
        (["a", None], None, "texts must be strings, got NoneType as number 1"),
        (["a"], [("b", "c")], "pairs must be strings, got tuple as number 0"),
        (["a"], ["b", "c"], "pairs must hold one text for each of the 1 texts, got 2"),
        (["\ud800"], None, "holds half a character"),
    ):
        for call in (classifier, classifier.logits):
            with pytest.raises(ValueError, match=message):
                call(texts, pairs)
    with pytest.raises(ValueError, match="tuples of two strings, got tuple as number 0"):
        list(classifier.stream([("a",)]))
    found = classifier((text for text in ("cat", "dog")), (text for text in ("dog", "cat")))
    assert [(one.text, one.pair) for one in found] == [("cat", "dog"), ("dog", "cat")]


def test_lengths_that_the_model_does_not_have_are_refused(tokenizer, tmp_path):
    model = make_model(tokenizer, max_position_embeddings=20)
    for wrong in (0, 3, 21, -1):
        with pytest.raises(ValueError, match=f"between 4 and the model's 20 positions, got {wrong}"):
            Classifier(model, tokenizer, max_seq_length=wrong)
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path, model_max_length=512)
    assert Classifier.load(tmp_path).max_seq_length == 20
    with pytest.raises(ValueError, match="got 512"):
        Classifier.load(tmp_path, max_seq_length=512)


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        (("a", "b"), "single_label_classification", ("loss", "accuracy", "matthews", "f1")),
        (("a", "b", "c"), "single_label_classification", ("loss", "accuracy", "matthews", "macro_f1")),
        (("a", "b"), "multi_label_classification", ("loss", "accuracy", "micro_f1", "macro_f1")),
        (("a",), "multi_label_classification", ("loss", "accuracy", "micro_f1", "macro_f1")),
        (("a",), "regression", ("loss", "pearson", "spearman")),
    ],
)
def test_names_of_figures_are_known_beforehand(names, kind, expected, recwarn):
    assert metric_names(LabelSet(names=names, problem_type=kind)) == expected
    assert not recwarn


def test_pairs_must_be_as_many_as_texts(tokenizer):
    with pytest.raises(ValueError, match="one text for each of the 2 texts, got 1"):
        Classifier(make_model(tokenizer), tokenizer)(["a", "b"], ["c"])
