"""The tagger equals the one of `transformers`: numbers, gradients, names and files."""

import pytest
import torch
from torch.nn import functional as F

from fastssl import BertConfig, BertForTokenClassification, BertModel, PackedBatch
from fastssl.nn.backend import set_backend
from tests.models.peers import ODD_SIZES, padded_inputs, peer_model
from tests.models.test_bert_peer import CLOSE, HEADLESS, check_gradients


def headless_inputs() -> dict[str, torch.Tensor]:
    return {name: value for name, value in padded_inputs().items() if name in HEADLESS}


def inputs_of(num_labels: int) -> dict[str, torch.Tensor]:
    inputs = headless_inputs()
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(num_labels, inputs["input_ids"].shape, generator=generator)
    unlabelled = (torch.rand(labels.shape, generator=generator) < 0.4) | (inputs["attention_mask"] == 0)
    return {**inputs, "labels": labels.masked_fill(unlabelled, -100)}


def packed(inputs: dict[str, torch.Tensor]) -> PackedBatch:
    inputs = dict(inputs)
    return PackedBatch.from_padded(token_labels=inputs.pop("labels"), **inputs)


@pytest.mark.parametrize("num_labels", [2, 17])
def test_logits_loss_and_gradients(tmp_path, num_labels):
    theirs = peer_model("BertForTokenClassification", num_labels=num_labels)
    theirs.save_pretrained(tmp_path)
    ours = BertForTokenClassification.from_pretrained(tmp_path)
    assert not ours.load_report.fresh and ours.config.num_labels == num_labels
    inputs = inputs_of(num_labels)
    real, labelled = inputs["attention_mask"] == 1, inputs["labels"] != -100
    expected, got = theirs(**inputs), ours(**inputs)
    torch.testing.assert_close(got.logits[real], expected.logits[real], **CLOSE)
    assert got.logits[~real].abs().max() == 0
    torch.testing.assert_close(got.loss, expected.loss, **CLOSE)
    for whole in (got, ours(packed(inputs))):
        theirs.zero_grad(), ours.zero_grad()
        theirs(**inputs).loss.backward()
        whole.loss.backward()
        check_gradients(theirs, ours)
        torch.testing.assert_close(whole.loss, got.loss)
    torch.testing.assert_close(whole.logits, got.logits[labelled])
    right = (got.logits.argmax(-1) == inputs["labels"])[labelled].sum()
    assert whole.metrics["token_correct"] == got.metrics["token_correct"] == right
    assert whole.metrics["token_count"] == labelled.sum()
    del inputs["labels"]
    torch.testing.assert_close(ours(PackedBatch.from_padded(**inputs)).logits, got.logits[real])


def test_only_labelled_tokens_go_through_the_head(monkeypatch):
    model = BertForTokenClassification(BertConfig(**ODD_SIZES)).eval()
    batch = PackedBatch.from_sequences([[1, 2, 3], [4, 5]], token_labels=[[-100, 1, -100], [0, -100]])
    assert batch.token_positions.tolist() == [1, 3] and batch.token_labels.tolist() == [1, 0]
    assert batch.target_counts() == {"token": 2}
    seen = []
    model.classifier.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[0]))
    assert model(batch).logits.shape == (2, 2) and seen == [2]


def test_without_any_label_the_loss_is_zero():
    model = BertForTokenClassification(BertConfig(**ODD_SIZES)).eval()
    output = model(PackedBatch.from_sequences([[1, 2]], token_labels=[[-100, -100]]))
    output.loss.backward()
    assert output.loss == 0 and output.logits.shape == (0, 2)
    assert model.classifier.weight.grad.abs().max() == 0


def test_what_we_save_loads_there(tmp_path):
    import transformers

    torch.manual_seed(1)
    labels = ("B-PER", "I-PER", "O")
    config = BertConfig(**ODD_SIZES, initializer_range=0.3, labels=labels, classifier_dropout=0.25)
    ours = BertForTokenClassification(config).eval()
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert theirs.config.id2label == dict(enumerate(labels)) and theirs.dropout.p == 0.25
    inputs = headless_inputs()
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(ours(**inputs).logits[real], theirs.eval()(**inputs).logits[real], **CLOSE)
    again = BertForTokenClassification.from_pretrained(tmp_path)
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_body_gets_a_head_and_its_pooler_is_listed(tmp_path):
    peer_model("BertForPreTraining").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"no weights for classifier\.weight, classifier\.bias: they start fresh"):
        model = BertForTokenClassification.from_pretrained(tmp_path, labels=("a", "b", "c"))
    assert model.load_report.fresh == ("classifier.weight", "classifier.bias")
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.weight"} <= set(model.load_report.skipped)
    assert model.classifier.weight.shape == (3, 36) and model.bert.pooler is None
    body = BertModel.from_pretrained(tmp_path)
    assert torch.equal(body.embeddings.word.weight, model.bert.embeddings.word.weight)


@pytest.mark.parametrize(
    ("class_name", "fresh"), [("BertForSequenceClassification", True), ("BertForTokenClassification", False)]
)
def test_the_head_of_a_classifier_is_not_taken_for_ours(tmp_path, class_name, fresh, recwarn):
    peer_model(class_name, num_labels=2).save_pretrained(tmp_path)
    model = BertForTokenClassification.from_pretrained(tmp_path)
    assert ("classifier.weight" in model.load_report.fresh) == fresh == bool(recwarn)
    with pytest.warns(UserWarning, match=r"another task or other labels for classifier\.weight"):
        other = BertForTokenClassification.from_pretrained(tmp_path, labels=("x", "y"))
    assert other.config.labels == ("x", "y")


def test_class_weights_are_those_of_cross_entropy():
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(**ODD_SIZES, labels=("a", "b", "c"))).eval()
    inputs = inputs_of(3)
    weights = torch.tensor([0.5, 2.0, 0.25])
    model.set_class_weights(weights)
    got, labelled = model(**inputs), inputs["labels"] != -100
    losses = F.cross_entropy(got.logits[labelled], inputs["labels"][labelled], weights, reduction="none")
    torch.testing.assert_close(got.loss, losses.mean())


def test_dropout_repeats_with_the_seed_and_is_the_same_in_every_backend():
    torch.manual_seed(0)
    sizes = {**ODD_SIZES, "initializer_range": 0.3, "classifier_dropout": 0.5}
    model = BertForTokenClassification(BertConfig(**sizes, labels=("a", "b", "c"))).train()
    inputs = headless_inputs()
    once, again, other = (model(**inputs, seed=seed).logits for seed in (5, 5, 6))
    assert torch.equal(once, again) and not torch.equal(once, other)
    set_backend(model, "reference")
    torch.testing.assert_close(model(**inputs, seed=5).logits, once, **CLOSE)


def test_accumulated_batches_have_the_gradient_of_one():
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(**ODD_SIZES, initializer_range=0.3)).eval()
    sequences, labels = [[1, 2, 3], [4, 5], [6], [7, 8]], [[0, 1, -100], [1, -100], [0], [1, 1]]

    def gradient(*parts: slice) -> torch.Tensor:
        model.zero_grad()
        for part in parts:
            batch = PackedBatch.from_sequences(sequences[part], token_labels=labels[part])
            model(batch, loss_denominators={"token": 6}).loss.backward()
        return model.classifier.weight.grad

    torch.testing.assert_close(gradient(slice(0, 1), slice(1, 4)), gradient(slice(0, 4)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((4, 23), 3), "labels must be at least 0 and below 3, the labels of the head, got 3"),
        (torch.zeros(4, 23), r"labels must be \(B, T\) int64 classes below 3"),
        (torch.zeros(4, 22, dtype=torch.long), "labels must have the shape of input_ids"),
        ([0, 1], "labels must be a tensor, got list"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    model = BertForTokenClassification(BertConfig(**ODD_SIZES, labels=("a", "b", "c")))
    with pytest.raises(ValueError, match=message):
        model(**headless_inputs(), labels=labels)


def test_positions_and_labels_belong_together():
    batch = vars(PackedBatch.from_sequences([[1, 2]], token_labels=[[0, 1]]))
    with pytest.raises(ValueError, match="token_positions and token_labels belong together"):
        PackedBatch(**{**batch, "token_labels": None})
    with pytest.raises(ValueError, match="token_labels must have the lengths of the sequences"):
        PackedBatch.from_sequences([[1, 2]], token_labels=[[0]])
