"""Published sizes have their published numbers of parameters."""

import pytest
import torch

from fastssl.models.bert import BertForMaskedLM, BertForPreTraining, BertModel
from fastssl.models.cost import num_parameters
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.presets import PRESETS, preset

BODIES = {
    "bert-tiny": 4_385_920,
    "bert-mini": 11_170_560,
    "bert-small": 28_763_648,
    "bert-medium": 41_373_184,
    "bert-base": 109_482_240,
    "bert-base-uncased": 109_482_240,
    "bert-base-cased": 108_310_272,
    "bert-base-chinese": 102_267_648,
    "bert-base-multilingual-cased": 177_853_440,
    "bert-large": 335_141_888,
    "bert-large-uncased": 335_141_888,
}


GPTS = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


def parameters(model_class, name: str) -> int:
    with torch.device("meta"):
        model = model_class(preset(name))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", BODIES)
def test_bodies_with_pooler(name):
    assert parameters(BertModel, name) == BODIES[name]


def test_heads_of_bert_base():
    assert parameters(BertForPreTraining, "bert-base-uncased") == 110_106_428
    assert parameters(BertForMaskedLM, "bert-base-uncased") == 109_514_298
    assert num_parameters(preset("bert-base-uncased")) == 110_106_428


@pytest.mark.parametrize("name", GPTS)
def test_gpts_with_their_tied_head(name):
    assert parameters(GPTForCausalLM, name) == GPTS[name]


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("bert-minni", "bert-mini"),
        ("BERT-Tiny", "bert-tiny"),
        ("bert-base-uncasd", "bert-base-uncased"),
        ("bertlarge", "bert-large"),
        ("gpt-medium", "gpt2-medium"),
    ],
)
def test_an_unknown_preset_names_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"no preset '{wrong}'; did you mean '{nearest}'"):
        preset(wrong)


def test_heads_are_64_wide():
    published = [config for name, config in PRESETS.items() if name != "gpt2-nano"]
    assert all(config.hidden_size == 64 * config.num_attention_heads for config in published)
