"""The classifier equals the one of `transformers`: numbers, gradients, names and files."""

import json

import pytest
import torch
from torch.nn import functional as F

from fastssl import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, PackedBatch
from fastssl.nn.backend import set_backend
from tests.models.peers import ODD_SIZES, padded_inputs, peer_model
from tests.models.test_bert_peer import CLOSE, HEADLESS, check_gradients

SINGLE, MULTI, REGRESSION = (
    ("single_label_classification", 3),
    ("multi_label_classification", 4),
    ("regression", 2),
)


def inputs_of(problem_type: str | None, num_labels: int) -> dict[str, torch.Tensor]:
    inputs = {name: value for name, value in padded_inputs().items() if name in HEADLESS}
    generator = torch.Generator().manual_seed(3)
    if problem_type == "multi_label_classification":
        labels = (torch.rand(4, num_labels, generator=generator) < 0.5).float()
    elif problem_type == "regression" or num_labels == 1:
        labels = torch.randn(4, num_labels, generator=generator).squeeze(-1)
    else:
        labels = torch.randint(num_labels, (4,), generator=generator)
    return {**inputs, "labels": labels}


@pytest.mark.parametrize(
    ("problem_type", "num_labels"), [(None, 2), (None, 5), (None, 1), SINGLE, MULTI, REGRESSION, ("regression", 1)]
)
def test_logits_loss_and_gradients(tmp_path, problem_type, num_labels):
    theirs = peer_model("BertForSequenceClassification", num_labels=num_labels, problem_type=problem_type)
    theirs.save_pretrained(tmp_path)
    ours = BertForSequenceClassification.from_pretrained(tmp_path)
    assert not ours.load_report.fresh and ours.config.num_labels == num_labels
    inputs = inputs_of(problem_type, num_labels)
    expected, got = theirs(**inputs), ours(**inputs)
    torch.testing.assert_close(got.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(got.loss, expected.loss, **CLOSE)
    # The peer's own float32 gradients are the less exact ones here: both are held to its float64.
    theirs.double()(**{n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}).loss.backward()
    for parameter in theirs.float().parameters():
        parameter.grad = None if parameter.grad is None else parameter.grad.float()
    got.loss.backward()
    check_gradients(theirs, ours)
    packed = ours(PackedBatch.from_padded(sequence_labels=inputs.pop("labels"), **inputs))
    torch.testing.assert_close(packed.logits, got.logits)
    torch.testing.assert_close(packed.loss, got.loss)
    assert packed.metrics["sequence_count"] == 4


def test_several_labels_without_a_problem_type_are_told_by_their_dtype(tmp_path):
    theirs = peer_model("BertForSequenceClassification", num_labels=4)
    theirs.save_pretrained(tmp_path)
    inputs = inputs_of(*MULTI)
    got = BertForSequenceClassification.from_pretrained(tmp_path)(**inputs)
    torch.testing.assert_close(got.loss, theirs(**inputs).loss, **CLOSE)
    right = ((got.logits > 0) == (inputs["labels"] > 0.5)).all(1).sum()
    assert got.metrics["sequence_correct"] == right


@pytest.mark.parametrize(
    ("labels", "problem_type"), [(("bad", "good"), None), (("neg", "0", "pos"), SINGLE[0]), (("x",), "regression")]
)
def test_what_we_save_loads_there(tmp_path, labels, problem_type):
    import transformers

    torch.manual_seed(1)
    config = BertConfig(
        **ODD_SIZES, initializer_range=0.3, labels=labels, problem_type=problem_type, classifier_dropout=0.25
    )
    ours = BertForSequenceClassification(config).eval()
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert theirs.config.id2label == dict(enumerate(labels))
    assert theirs.config.label2id == {name: number for number, name in enumerate(labels)}
    assert theirs.config.problem_type == problem_type and theirs.dropout.p == 0.25
    inputs = {name: value for name, value in padded_inputs().items() if name in HEADLESS}
    torch.testing.assert_close(ours(**inputs).logits, theirs.eval()(**inputs).logits, **CLOSE)
    again = BertForSequenceClassification.from_pretrained(tmp_path)
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_body_gets_a_head_and_other_heads_are_listed(tmp_path):
    peer_model("BertForPreTraining").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"no weights for classifier\.weight, classifier\.bias: they start fresh"):
        model = BertForSequenceClassification.from_pretrained(tmp_path, labels=("a", "b", "c"))
    assert model.load_report.fresh == ("classifier.weight", "classifier.bias")
    assert "cls.seq_relationship.weight" in model.load_report.skipped
    assert model.classifier.weight.shape == (3, 36) and model.classifier.bias.abs().max() == 0
    model.save_pretrained(tmp_path / "ours")
    with pytest.warns(UserWarning, match="fresh"):
        assert "classifier.weight" in BertForMaskedLM.from_pretrained(tmp_path / "ours").load_report.skipped
    body = BertModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(body.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_a_head_for_other_labels_is_drawn_anew_and_one_for_the_same_is_kept(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(**ODD_SIZES, labels=("no", "yes"))
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    kept = BertForSequenceClassification.from_pretrained(tmp_path, labels=("no", "yes"))
    assert not kept.load_report.fresh
    for labels in (("yes", "no"), ("a", "b", "c")):
        with pytest.warns(UserWarning, match="another task or other labels for classifier.weight"):
            model = BertForSequenceClassification.from_pretrained(tmp_path, labels=labels)
        assert model.config.labels == labels and model.classifier.weight.shape[0] == len(labels)
        assert not torch.equal(model.classifier.weight[:2], kept.classifier.weight)
        assert torch.equal(model.bert.pooler.dense.weight, kept.bert.pooler.dense.weight)


def test_the_head_of_a_tagger_is_not_taken_for_ours(tmp_path):
    peer_model("BertForTokenClassification", num_labels=2).save_pretrained(tmp_path)
    with pytest.warns(UserWarning):
        model = BertForSequenceClassification.from_pretrained(tmp_path)
    assert "classifier.weight" in model.load_report.fresh


def test_class_weights_are_those_of_cross_entropy():
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**ODD_SIZES, labels=("a", "b", "c"))).eval()
    inputs = inputs_of(*SINGLE)
    weights = torch.tensor([0.5, 2.0, 0.25])
    model.set_class_weights(weights)
    got = model(**inputs)
    expected = F.cross_entropy(got.logits, inputs["labels"], weights, reduction="none").mean()
    torch.testing.assert_close(got.loss, expected)
    assert "class_weights" not in model.state_dict()
    with pytest.raises(ValueError, match="one number for each of the 3 labels a, b, c"):
        model.set_class_weights([1.0, 2.0])


def test_dropout_repeats_with_the_seed_and_is_the_same_in_every_backend():
    torch.manual_seed(0)
    config = BertConfig(**ODD_SIZES, labels=("a", "b", "c"), initializer_range=0.3)
    model = BertForSequenceClassification(config).train()
    inputs = {name: value for name, value in padded_inputs().items() if name in HEADLESS}
    once, again, other = (model(**inputs, seed=seed).logits for seed in (5, 5, 6))
    assert torch.equal(once, again) and not torch.equal(once, other)
    set_backend(model, "reference")
    torch.testing.assert_close(model(**inputs, seed=5).logits, once, **CLOSE)


def test_the_heads_own_dropout_works_without_the_encoders():
    torch.manual_seed(0)
    sizes = {**ODD_SIZES, "hidden_size": 192}
    model = BertForSequenceClassification(
        BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.5)
    ).train()
    torch.nn.init.ones_(model.classifier.weight)
    batch = PackedBatch.from_sequences([[1, 2, 3]] * 64)
    dropped, whole = model(batch, seed=1).logits, model.eval()(batch).logits
    assert not torch.equal(dropped, whole)
    torch.testing.assert_close(dropped.mean(), whole.mean(), rtol=0, atol=0.5 * float(dropped.detach().std()))
    model.set_dropout(0.0)
    assert torch.equal(model.train()(batch, seed=1).logits, whole)


def test_accumulated_batches_have_the_gradient_of_one():
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**ODD_SIZES, initializer_range=0.3)).eval()
    sequences, labels = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]], torch.tensor([0, 1, 1, 0])

    def gradient(*parts: slice) -> torch.Tensor:
        model.zero_grad()
        for part in parts:
            batch = PackedBatch.from_sequences(sequences[part], sequence_labels=labels[part])
            model(batch, loss_denominators={"sequence": 4}).loss.backward()
        return model.classifier.weight.grad

    torch.testing.assert_close(gradient(slice(0, 1), slice(1, 4)), gradient(slice(0, 4)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 3]), "below 3.*got 3"),
        (torch.tensor([0.0, 1.0, 0.0, 1.0]), r"multi_label|shape of the logits"),
        (torch.tensor([0, 1, 2]), "one row per sequence"),
        ([0, 1, 2, 0], "labels must be a tensor, got list; make one with torch.tensor"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    model = BertForSequenceClassification(BertConfig(**ODD_SIZES, labels=("a", "b", "c")))
    inputs = {name: value for name, value in padded_inputs().items() if name in HEADLESS}
    with pytest.raises(ValueError, match=message):
        model(**inputs, labels=labels)


@pytest.mark.parametrize(
    ("id2label", "message"),
    [({"0": "a", "2": "b"}, "number the labels 0, 1, 2"), ({"0": "a", "1": "a"}, "distinct names")],
)
def test_damaged_label_names_are_told(tmp_path, id2label, message):
    BertForSequenceClassification(BertConfig(**ODD_SIZES)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": id2label}))
    with pytest.raises(ValueError, match=message):
        BertForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{}, {"norm_position": "pre"}, {"num_hidden_layers": 0}])
def test_first_tokens_alone_are_those_of_the_whole(options):
    torch.manual_seed(0)
    config = BertConfig(**{**ODD_SIZES, **options}, initializer_range=0.3, labels=("a", "b", "c"))
    model = BertForSequenceClassification(config).eval()
    inputs = inputs_of(*SINGLE)
    gradients = []
    for whole in (False, True):
        model.zero_grad()
        output = model(**inputs, output_hidden_states=whole)
        output.loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(output.hidden_states) == config.num_hidden_layers + 1
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=2e-5, msg=name)


def test_first_tokens_alone_drop_attention_as_the_whole_and_checkpoint():
    torch.manual_seed(0)
    sizes = {**ODD_SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.0}
    model = BertForSequenceClassification(BertConfig(**sizes, initializer_range=0.3)).train()
    inputs = {name: value for name, value in padded_inputs().items() if name in HEADLESS}
    first = model(**inputs, seed=4).logits
    torch.testing.assert_close(first, model(**inputs, seed=4, output_hidden_states=True).logits, **CLOSE)
    first.sum().backward()
    expected = model.bert.encoder.blocks[2].attention.qkv.weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**inputs, seed=4).logits.sum().backward()
    torch.testing.assert_close(model.bert.encoder.blocks[2].attention.qkv.weight.grad, expected)
