"""The head for answers equals the one of `transformers`, its bias aside: numbers, gradients, names and files."""

import json

import pytest
import torch
from torch.nn import functional as F

from fastssl import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification, PackedBatch
from fastssl.models.bert_files import note_no_answer_threshold
from fastssl.nn.backend import set_backend
from tests.models.peers import ODD_SIZES, padded_inputs, peer_model
from tests.models.test_bert_peer import CLOSE, HEADLESS, check_gradients

SPANS = {"start_positions": torch.tensor([2, 0, 11, 3]), "end_positions": torch.tensor([4, 0, 11, 9])}


def padded(**options) -> dict[str, torch.Tensor]:
    return {name: value for name, value in padded_inputs(**options).items() if name in HEADLESS}


def make_model(**options) -> BertForQuestionAnswering:
    torch.manual_seed(0)
    return BertForQuestionAnswering(BertConfig(**ODD_SIZES, initializer_range=0.3, **options)).eval()


def document_mask(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The second half of each row, and its first token."""
    columns, lengths = torch.arange(inputs["input_ids"].shape[1]), inputs["attention_mask"].sum(1, keepdim=True)
    return ((columns >= lengths // 2) & (columns < lengths)) | (columns == 0)


def test_the_head_is_two_vectors():
    model = make_model()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model.bert.parameters()) + 2 * 36
    assert dict(model.qa_outputs.named_parameters()).keys() == {"weight"} and model.bert.pooler is None


def test_logits_loss_and_gradients(tmp_path):
    theirs = peer_model("BertForQuestionAnswering")
    theirs.save_pretrained(tmp_path)
    ours = BertForQuestionAnswering.from_pretrained(tmp_path)
    assert ours.load_report.skipped == ("qa_outputs.bias",) and not ours.load_report.fresh
    inputs = padded()
    real, bias = inputs["attention_mask"] == 1, theirs.qa_outputs.bias
    expected, got = theirs(**inputs), ours(**inputs)
    assert bias.abs().min() > 0.01 and expected.loss is got.loss is None
    torch.testing.assert_close(got.start_logits[real], expected.start_logits[real] - bias[0], **CLOSE)
    torch.testing.assert_close(got.end_logits[real], expected.end_logits[real] - bias[1], **CLOSE)
    # Their softmax takes padding in, so it is left out here.
    inputs = {name: value for name, value in padded(lengths=(23, 23, 23, 23)).items() if name != "attention_mask"}
    # A place beyond the row is none, for them and for us: the last row does not count.
    beyond = {name: torch.where(torch.arange(4) == 3, 23, value) for name, value in SPANS.items()}
    torch.testing.assert_close(ours(**inputs, **beyond).loss, theirs(**inputs, **beyond).loss, **CLOSE)
    expected, got = theirs(**inputs, **SPANS), ours(**inputs, **SPANS)
    torch.testing.assert_close(got.loss, expected.loss, **CLOSE)
    expected.loss.backward()
    got.loss.backward()
    assert theirs.qa_outputs.bias.grad.abs().max() < 1e-6
    theirs.qa_outputs.bias.grad = None
    check_gradients(theirs, ours)


def test_the_loss_is_the_plain_definition_over_the_mask():
    model, inputs = make_model(), padded()
    mask = document_mask(inputs)
    spans = {"start_positions": torch.tensor([3, 0, 11, 6]), "end_positions": torch.tensor([4, 0, 22, 9])}
    got = model(**inputs, **spans, answer_mask=mask)
    got.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    free = model(**inputs)
    starts, ends = (logits.masked_fill(~mask, -torch.inf) for logits in (free.start_logits, free.end_logits))
    expected = (F.cross_entropy(starts, spans["start_positions"]) + F.cross_entropy(ends, spans["end_positions"])) / 2
    torch.testing.assert_close(got.loss, expected)
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, msg=name)
    right = (starts.argmax(1) == spans["start_positions"]) & (ends.argmax(1) == spans["end_positions"])
    assert got.metrics["answer_correct"] == right.sum() and got.metrics["answer_count"] == 4


def test_packed_and_padded_on_either_side_are_the_same():
    model, inputs = make_model(), padded()
    mask = document_mask(inputs)
    spans = {"start_positions": torch.tensor([3, 0, 11, -100]), "end_positions": torch.tensor([6, 0, 22, 9])}
    expected = model(**inputs, **spans, answer_mask=mask)
    packed = model(PackedBatch.from_padded(**inputs, **spans, answer_mask=mask))
    assert packed.metrics["answer_count"] == 3
    torch.testing.assert_close(packed.loss, expected.loss)
    torch.testing.assert_close(packed.start_logits, expected.start_logits[inputs["attention_mask"] == 1])
    length = inputs["input_ids"].shape[1]
    shift = length - inputs["attention_mask"].sum(1)
    columns = (torch.arange(length) - shift[:, None]) % length
    left = {name: value.gather(1, columns) for name, value in inputs.items()}
    moved = {name: torch.where(value < 0, value, value + shift) for name, value in spans.items()}
    got = model(**left, **moved, answer_mask=mask.gather(1, columns))
    torch.testing.assert_close(got.loss, expected.loss)


def test_a_sequence_without_anything_to_answer_leaves_the_gradients_finite():
    model, inputs = make_model(), padded()
    mask = inputs["attention_mask"].bool() & (torch.arange(4) != 1)[:, None]
    spans = {name: torch.where(torch.arange(4) == 1, -100, value) for name, value in SPANS.items()}
    output = model(**inputs, **spans, answer_mask=mask)
    output.loss.backward()
    assert output.metrics["answer_count"] == 3
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    none = {name: torch.full((4,), -100) for name in SPANS}
    assert model(**inputs, **none).loss == 0


def test_accumulated_batches_have_the_gradient_of_one():
    model = make_model()
    sequences = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
    spans = torch.tensor([[1, 2], [0, 0], [0, 0], [2, 3]])

    def gradient(*parts: slice) -> torch.Tensor:
        model.zero_grad()
        for part in parts:
            batch = PackedBatch.from_sequences(sequences[part])
            starts, ends = (batch.cu_seqlens[:-1] + spans[part].T).long()
            batch = PackedBatch(**{**vars(batch), "answer_starts": starts, "answer_ends": ends})
            model(batch, loss_denominators={"answer": 4}).loss.backward()
        return model.qa_outputs.weight.grad

    torch.testing.assert_close(gradient(slice(0, 1), slice(1, 4)), gradient(slice(0, 4)))


def test_what_we_save_loads_there(tmp_path):
    import transformers

    ours = make_model(labels=("a", "b", "c"), no_answer_threshold=-0.5)
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert theirs.qa_outputs.bias.tolist() == [0.0, 0.0]
    inputs = padded()
    real = inputs["attention_mask"] == 1
    expected, got = theirs.eval()(**inputs), ours(**inputs)
    torch.testing.assert_close(got.start_logits[real], expected.start_logits[real], **CLOSE)
    torch.testing.assert_close(got.end_logits[real], expected.end_logits[real], **CLOSE)
    again = BertForQuestionAnswering.from_pretrained(tmp_path)
    assert again.config == ours.config and again.config.no_answer_threshold == -0.5 and again.config.labels is None
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_threshold_is_noted_beside_all_else(tmp_path):
    make_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text()) | {"of_others": 1, "fastssl": None}
    path.write_text(json.dumps(values))
    note_no_answer_threshold(tmp_path, -0.5)
    assert json.loads(path.read_text()) == values | {"fastssl": {"no_answer_threshold": -0.5}}


def test_a_body_gets_a_head_and_other_heads_are_listed(tmp_path):
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**ODD_SIZES, labels=("a", "b", "c"))).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"no weights for qa_outputs\.weight: they start fresh"):
        model = BertForQuestionAnswering.from_pretrained(tmp_path)
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= set(model.load_report.skipped)
    assert model.config.labels is None and model.qa_outputs.weight.shape == (2, 36)
    model.save_pretrained(tmp_path / "ours")
    kept = BertForQuestionAnswering.from_pretrained(tmp_path / "ours")
    assert torch.equal(kept.qa_outputs.weight, model.qa_outputs.weight)
    with pytest.warns(UserWarning, match="fresh"):
        anew = BertForQuestionAnswering.from_pretrained(tmp_path / "ours", fresh_head=True)
    assert not torch.equal(anew.qa_outputs.weight, model.qa_outputs.weight)
    with pytest.warns(UserWarning, match="fresh"):
        assert "qa_outputs.weight" in BertForMaskedLM.from_pretrained(tmp_path / "ours").load_report.skipped


def test_a_head_of_another_shape_is_told(tmp_path):
    from safetensors.torch import load_file, save_file

    make_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "qa_outputs.weight": torch.zeros(5, 36)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"qa_outputs.weight \(5, 36\), expected \(2, 36\)"):
        BertForQuestionAnswering.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForQuestionAnswering"]


def test_dropout_repeats_with_the_seed_and_is_the_same_in_every_backend():
    model = make_model().train()
    inputs = padded()
    once, again, other = (model(**inputs, seed=seed).start_logits for seed in (5, 5, 6))
    assert torch.equal(once, again) and not torch.equal(once, other)
    set_backend(model, "reference")
    torch.testing.assert_close(model(**inputs, seed=5).start_logits, once, **CLOSE)
    model.set_dropout(0.0)
    assert torch.equal(model(**inputs).end_logits, model.eval()(**inputs).end_logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_positions": None}, "start_positions and end_positions belong together"),
        ({"start_positions": torch.tensor([2, 1, 11, 3])}, "the answer of row 1, 1 to 0, ends in padding"),
        ({"start_positions": torch.tensor([2, 0, 11])}, r"start_positions must have shape \(4,\)"),
        ({"answer_mask": torch.zeros(4, 23)}, "answer is token 2 to 4 of the batch, but answer_mask lets none"),
        ({"answer_mask": torch.zeros(4, 22)}, r"answer_mask must have the shape of input_ids"),
        ({"start_positions": [2, 0, 11, 3]}, "start_positions must be a tensor, got list"),
    ],
)
def test_answers_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**{**padded(), **SPANS, **changes})
