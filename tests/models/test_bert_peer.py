"""Logits, losses and gradients equal those of `transformers`, and files go both ways."""

import pytest
import torch

from fastssl.data.batch import PackedBatch
from fastssl.models import bert, bert_files
from tests.models.peers import ODD_SIZES, padded_inputs, peer_config, peer_model

CLOSE = {"rtol": 2e-4, "atol": 2e-5}
HEADLESS = ("input_ids", "attention_mask", "token_type_ids")


def both(tmp_path, class_name: str, **changes):
    theirs = peer_model(class_name, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, getattr(bert, class_name).from_pretrained(tmp_path / "theirs").eval()


def gradients_in_their_names(model) -> dict[str, torch.Tensor]:
    layout = bert_files.file_layout(model)
    parameters = dict(model.named_parameters())
    found = {}
    for parameter, names in layout.tensors.items():
        gradient = parameters[parameter].grad
        if gradient is not None:
            found.update(
                zip((n.removeprefix(layout.saved_prefix) for n in names), gradient.chunk(len(names)), strict=True)
            )
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu_new", "num_attention_heads": 1},
        {"hidden_act": "relu", "num_attention_heads": 36, "layer_norm_eps": 1e-5},
        {"hidden_act": "silu", "num_hidden_layers": 1, "type_vocab_size": 1},
        {"hidden_act": "gelu_pytorch_tanh", "pad_token_id": None},
        {"tie_word_embeddings": False, "pad_token_id": 100},
    ],
)
def test_pretraining_logits_losses_and_gradients(tmp_path, changes):
    theirs, ours = both(tmp_path, "BertForPreTraining", **changes)
    inputs = padded_inputs(num_types=changes.get("type_vocab_size", 3))
    real = inputs["attention_mask"] == 1
    expected, got = theirs(**inputs), ours(**inputs, output_logits=True)
    torch.testing.assert_close(got.logits[real], expected.prediction_logits[real], **CLOSE)
    torch.testing.assert_close(got.prediction_logits[~real], torch.zeros_like(got.logits[~real]))
    torch.testing.assert_close(got.seq_relationship_logits, expected.seq_relationship_logits, **CLOSE)
    torch.testing.assert_close(got.loss, expected.loss, **CLOSE)
    expected.loss.backward()
    got.loss.backward()
    check_gradients(theirs, ours)


def check_gradients(theirs, ours):
    found = gradients_in_their_names(ours)
    unseen = []
    # The gradient of a key bias is zero but for rounding: no scale is below a twentieth of the largest gradient.
    floor = 0.05 * max(p.grad.abs().max() for p in theirs.parameters() if p.grad is not None)
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            unseen.append(name)
            continue
        scale = parameter.grad.abs().max().clamp(min=floor)
        torch.testing.assert_close(found.pop(name) / scale, parameter.grad / scale, rtol=0, atol=2e-5, msg=name)
    assert set(found) <= set(unseen) | {"cls.predictions.bias"}


@pytest.mark.parametrize("vocab_size", [101, 64])
def test_masked_lm(tmp_path, vocab_size):
    theirs, ours = both(tmp_path, "BertForMaskedLM", vocab_size=vocab_size)
    inputs = padded_inputs(vocab_size=vocab_size)
    del inputs["next_sentence_label"]
    expected, got = theirs(**inputs), ours(**inputs)
    assert got.logits is None
    torch.testing.assert_close(got.loss, expected.loss, **CLOSE)
    expected.loss.backward()
    got.loss.backward()
    check_gradients(theirs, ours)
    del inputs["labels"]
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(ours(**inputs).logits[real], theirs(**inputs).logits[real], **CLOSE)


def test_body_hidden_states_and_attentions(tmp_path):
    theirs = peer_model("BertModel")
    theirs.set_attn_implementation("eager")
    theirs.save_pretrained(tmp_path)
    ours = bert.BertModel.from_pretrained(tmp_path).eval()
    inputs = {name: value for name, value in padded_inputs().items() if name in HEADLESS}
    real = inputs["attention_mask"] == 1
    expected = theirs(**inputs, output_hidden_states=True, output_attentions=True)
    got = ours(**inputs, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, **CLOSE)
    assert len(got.hidden_states) == len(expected.hidden_states) == 4
    for one, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one[real], other[real], **CLOSE)
    torch.testing.assert_close(got.hidden_states[-1], got.last_hidden_state)
    assert len(got.attentions) == len(expected.attentions) == 3
    seen = (real[:, None, :, None] & real[:, None, None, :]).expand_as(got.attentions[0])
    for one, other in zip(got.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(one[seen], other[seen], **CLOSE)
        assert one[~seen].abs().max() == 0

    packed = ours(PackedBatch.from_padded(**inputs), output_hidden_states=True, output_attentions=True)
    assert [tuple(a.shape) for a in packed.attentions[0]] == [(3, n, n) for n in (7, 1, 23, 12)]
    torch.testing.assert_close(packed.hidden_states[1], got.hidden_states[1][real])


def test_attentions_have_gradients(tmp_path):
    theirs = peer_model("BertModel")
    theirs.set_attn_implementation("eager")
    theirs.save_pretrained(tmp_path)
    ours = bert.BertModel.from_pretrained(tmp_path).eval()
    ids = padded_inputs(lengths=(9, 9), length=9)["input_ids"]
    # The peer's own float32 gradients are about as inexact as ours: ours are held to its float64.
    for model in (theirs.double(), ours):
        model(input_ids=ids, output_attentions=True).attentions[-1].square().sum().backward()
    for parameter in theirs.float().parameters():
        parameter.grad = None if parameter.grad is None else parameter.grad.float()
    check_gradients(theirs, ours)


@pytest.mark.parametrize(
    ("class_name", "tied"),
    [
        ("BertModel", True),
        ("BertForMaskedLM", True),
        ("BertForPreTraining", True),
        ("BertForMaskedLM", False),
        ("BertForPreTraining", False),
    ],
)
def test_what_we_save_loads_there(tmp_path, class_name, tied):
    import transformers

    torch.manual_seed(1)
    config = bert.BertConfig(**ODD_SIZES, initializer_range=0.3, tie_word_embeddings=tied)
    ours = getattr(bert, class_name)(config).eval()
    ours.save_pretrained(tmp_path)
    theirs, report = getattr(transformers, class_name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert theirs.config.architectures == [class_name]
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is transformers.BertConfig
    inputs = {name: value for name, value in padded_inputs().items() if name in HEADLESS}
    real = inputs["attention_mask"] == 1
    expected, got = theirs.eval()(**inputs)[0], ours(**inputs)
    got = got.last_hidden_state if class_name == "BertModel" else got.logits
    torch.testing.assert_close(got[real], expected[real], **CLOSE)
    again = getattr(bert, class_name).from_pretrained(tmp_path)
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("class_name", "head"),
    [
        ("BertForNextSentencePrediction", "cls.seq_relationship.weight"),
        ("BertForSequenceClassification", "classifier.weight"),
        ("BertForTokenClassification", "classifier.weight"),
        ("BertForQuestionAnswering", "qa_outputs.weight"),
        ("BertForPreTraining", "cls.predictions.bias"),
    ],
)
def test_bodies_of_other_heads_load(tmp_path, class_name, head):
    theirs = peer_model(class_name)
    theirs.save_pretrained(tmp_path)
    has_pooler = hasattr(theirs.bert, "pooler") and theirs.bert.pooler is not None
    if has_pooler:
        ours = bert.BertModel.from_pretrained(tmp_path).eval()
    else:
        with pytest.warns(UserWarning, match=r"pooler\.dense\.weight.*fresh"):
            ours = bert.BertModel.from_pretrained(tmp_path).eval()
    assert head in ours.load_report.skipped
    ids = padded_inputs(lengths=(9, 9), length=9)["input_ids"]
    torch.testing.assert_close(
        ours(input_ids=ids).last_hidden_state, theirs.bert(input_ids=ids).last_hidden_state, **CLOSE
    )


def test_unpadded_inputs_need_no_mask(tmp_path):
    theirs, ours = both(tmp_path, "BertForMaskedLM")
    ids = padded_inputs(lengths=(9, 9), length=9)["input_ids"]
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, **CLOSE)


def test_defaults_are_theirs():
    theirs = peer_config().__class__().to_dict()
    ours = bert_files.config_to_dict(bert.BertConfig())
    assert {name: theirs[name] for name in ours if name in theirs and name != "architectures"} == {
        name: value for name, value in ours.items() if name in theirs
    }
