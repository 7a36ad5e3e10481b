"""Logits, losses and gradients of GPT equal those of `transformers`, and files go both ways."""

import json
from dataclasses import replace

import pytest
import torch

from fastssl.models import gpt_files
from fastssl.models.generation.published import read_published_generation
from fastssl.models.gpt import GPTModel
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.models.pretrained import file_tensors
from tests.models.gpt_peers import PEERS, padded_inputs, peer

CLOSE = {"rtol": 2e-4, "atol": 2e-5}
EVERY_PEER = pytest.mark.parametrize("name", PEERS)


def both(tmp_path, name: str, **changes):
    theirs = peer(name, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, GPTForCausalLM.from_pretrained(tmp_path / "theirs")


@EVERY_PEER
def test_logits_losses_and_gradients(tmp_path, name):
    theirs, ours = both(tmp_path, name)
    inputs = padded_inputs()
    real = inputs["attention_mask"] == 1
    expected = theirs(**inputs, output_hidden_states=True, output_attentions=True)
    got = ours(**inputs, output_logits=True, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(got.logits[real], expected.logits[real], **CLOSE)
    torch.testing.assert_close(got.loss, expected.loss, **CLOSE)
    assert len(got.hidden_states) == len(expected.hidden_states)
    for one, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one[real], other[real], **CLOSE)
    for one, other in zip(got.attentions, expected.attentions, strict=True):
        kept = real[:, None, :, None].expand_as(one)
        torch.testing.assert_close(one[kept], other[kept], **CLOSE)
    expected.loss.backward()
    got.loss.backward()
    check_gradients(theirs, ours)


def check_gradients(theirs, ours):
    for parameter in ours.parameters():
        parameter.data = parameter.grad
    found = file_tensors(ours, gpt_files.file_layout(ours))
    # The gradient of a key bias is zero but for rounding: no scale is below a twentieth of the largest gradient.
    floor = 0.05 * max(p.grad.abs().max() for p in theirs.parameters())
    named = dict(theirs.named_parameters())
    assert set(found) == set(named)
    for parameter_name, parameter in named.items():
        scale = parameter.grad.abs().max().clamp(min=floor)
        got, expected = found[parameter_name] / scale, parameter.grad / scale
        torch.testing.assert_close(got, expected, rtol=0, atol=3e-5, msg=parameter_name)


@EVERY_PEER
def test_files_go_both_ways(tmp_path, name):
    import transformers

    theirs, ours = both(tmp_path, name)
    ours.save_pretrained(tmp_path / "ours")
    back, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for (parameter_name, one), (_, other) in zip(theirs.named_parameters(), back.named_parameters(), strict=True):
        assert torch.equal(one, other), parameter_name
    inputs = padded_inputs()
    torch.testing.assert_close(back.eval()(**inputs).loss, theirs(**inputs).loss)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").model_type == theirs.config.model_type
    again = GPTForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.config == ours.config


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_body_alone(tmp_path, name):
    theirs = peer(name, kind="body")
    theirs.save_pretrained(tmp_path / "body")
    ours = GPTModel.from_pretrained(tmp_path / "body")
    inputs = padded_inputs()
    labels, real = inputs.pop("labels"), inputs["attention_mask"] == 1
    expected, got = theirs(**inputs).last_hidden_state, ours(**inputs).last_hidden_state
    torch.testing.assert_close(got[real], expected[real], **CLOSE)
    ours.save_pretrained(tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(back(**inputs).last_hidden_state[real], expected[real], **CLOSE)
    # The body of a model with a head, and a tied head on a body.
    peer(name).save_pretrained(tmp_path / "whole")
    whole = GPTModel.from_pretrained(tmp_path / "whole")
    assert bool(whole.load_report.skipped) == (name == "llama")
    if name == "gpt2":
        assert GPTForCausalLM.from_pretrained(tmp_path / "body")(**inputs, labels=labels).loss.isfinite()
    else:
        with pytest.warns(UserWarning, match="start fresh"):
            assert GPTForCausalLM.from_pretrained(tmp_path / "body").load_report.fresh == ("head.weight",)


def test_an_old_gpt2_directory(tmp_path):
    """Published files have mask buffers, no prefix, and a tied copy of the embedding."""
    _, ours = both(tmp_path, "gpt2")
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(3):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 31, 31).tril()
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = old["wte.weight"].clone()
    save_file(old, tmp_path / "theirs" / "model.safetensors")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["n_ctx"] = 31
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    loaded = GPTForCausalLM.from_pretrained(tmp_path / "theirs")
    for one, other in zip(loaded.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(loaded.load_report.skipped) == 7


def test_a_config_of_our_own_keeps_itself(tmp_path):
    config = GPTConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=16, position_embedding="rotary", norm="layer_norm", mlp="gated", hidden_act="gelu",
        sliding_window=3, bos_token_id=1, eos_token_id=(2, 3), hidden_dropout_prob=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPTForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "fastssl_gpt"
    loaded = GPTForCausalLM.from_pretrained(tmp_path)
    assert loaded.config == config
    ids = torch.arange(10)[None]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "a model of type 'bert', expected one of gpt2, llama"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True, .* expected False"),
        ({"n_head": 5}, "hidden_size must be a multiple of num_attention_heads=5"),
        ({"n_embd": 48}, "shapes that do not fit"),
        ({"n_layer": 2}, r"it has unknown transformer\.h\.2\."),
        ({"n_layer": 4}, r"it lacks transformer\.h\.3\."),
        ({"fastssl": [1]}, r"config\.json has fastssl=\[1\], expected an object of options"),
    ],
)
def test_bad_directories(tmp_path, changes, message):
    both(tmp_path, "gpt2")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        GPTForCausalLM.from_pretrained(tmp_path / "theirs")


def test_options_of_ours_may_be_null(tmp_path):
    _, ours = both(tmp_path, "gpt2")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fastssl": None}))
    assert GPTForCausalLM.from_pretrained(tmp_path / "theirs").config == ours.config


@pytest.mark.parametrize("several", [False, True])
def test_texts_end_where_transformers_ends_them(tmp_path, several):
    """By generation_config.json, not by config.json; and so do those of what is saved from it."""
    theirs, ours = both(tmp_path, "llama")
    prompt = [5, 6, 7]
    free = ours.generate([prompt], max_new_tokens=20)[0].tokens
    ends = [free[6], free[4]] if several else free[4]
    said = {"eos_token_id": ends, "bos_token_id": 3, "pad_token_id": 0, "max_length": 4}
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(said))
    ours = GPTForCausalLM.from_pretrained(tmp_path / "theirs")
    theirs = type(theirs).from_pretrained(tmp_path / "theirs")
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, 3:].tolist()
    assert len(expected) <= 5
    ours.save_pretrained(tmp_path / "ours")
    for model in (ours, GPTForCausalLM.from_pretrained(tmp_path / "ours")):
        (written,) = model.generate([prompt], max_new_tokens=20)
        assert (written.tokens, written.finish_reason) == (expected, "end_token")
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert again.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, 3:].tolist() == expected


@pytest.mark.parametrize(
    ("said", "ends", "sampling"),
    [
        ({}, (95,), {}),
        ({"eos_token_id": None, "max_length": 20}, (95,), {}),
        ({"eos_token_id": [5, 4000]}, (5,), {}),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.05}, (95,), {"repetition_penalty": 1.05}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0}, (95,), {"temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": True, "top_p": 1.0}, (95,), {"temperature": 1.0}),
    ],
)
def test_what_a_generation_config_says(tmp_path, said, ends, sampling):
    both(tmp_path, "llama")
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(said))
    assert gpt_files.load_config(tmp_path / "theirs").end_tokens == ends
    assert read_published_generation(tmp_path / "theirs").sampling == sampling


def test_tokens_beyond_the_vocabulary_are_none(tmp_path):
    """As configs of small vocabularies have them that were made with GPT-2's defaults."""
    theirs, ours = both(tmp_path, "gpt2", bos_token_id=50256, eos_token_id=50256)
    assert (ours.config.bos_token_id, ours.config.end_tokens) == (None, ())
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs(ids).logits, **CLOSE)
    changed = {"eos_token_id": [50256, None, 7, 9]}
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert gpt_files.load_config(tmp_path / "theirs").end_tokens == (7, 9)


def test_first_tokens_of_generation_configs_and_damaged_ones(tmp_path):
    both(tmp_path, "llama", bos_token_id=None)
    path = tmp_path / "theirs" / "generation_config.json"
    path.write_text('{"bos_token_id": 7}')
    assert gpt_files.load_config(tmp_path / "theirs").bos_token_id == 7
    path.write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id must be a token id, got \['</s>'\]"):
        GPTForCausalLM.from_pretrained(tmp_path / "theirs")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"generation_config.json is not JSON"):
        GPTForCausalLM.from_pretrained(tmp_path / "theirs")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "qwen2"])
def test_options_that_a_file_leaves_out_are_those_of_transformers(kind):
    from transformers import AutoConfig

    whole = AutoConfig.for_model(kind).to_dict()
    left_out = gpt_files.config_from_dict({"model_type": kind}, source="x")
    stated = gpt_files.config_from_dict(whole, source="x")
    widths = {"num_key_value_heads": stated.key_value_heads, "head_dim": stated.head_width}
    assert replace(left_out, **widths) == replace(stated, **widths)
    assert (left_out.key_value_heads, left_out.head_width) == (stated.key_value_heads, stated.head_width)


def test_unknown_scalings_of_rotary_positions_are_refused(tmp_path):
    both(tmp_path, "llama")
    path = tmp_path / "theirs" / "config.json"
    values = json.loads(path.read_text())
    wrong = {
        "scales rotary positions by 'yarn'": {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 8.0},
        "must hold rope_parameters by name, got \\[2.0\\]": [2.0],
        "rope_theta must be above 0, got 'x'": {"rope_theta": "x"},
    }
    for message, parameters in wrong.items():
        path.write_text(json.dumps(values | {"rope_parameters": parameters}))
        with pytest.raises(ValueError, match=message):
            GPTForCausalLM.from_pretrained(tmp_path / "theirs")
