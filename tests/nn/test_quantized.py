"""Quantised models: near the original, for inference alone, the same on every backend."""

import pytest
import torch
from torch import nn

from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM, BertModel
from fastssl.models.bert_config import BertConfig
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.nn.backend import set_backend
from fastssl.nn.quantized import QuantizedLinear, quantize

SIZES = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}


class Adapter(nn.Linear):
    """What LoRA makes of a map, for example."""


@pytest.fixture
def batch() -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    return PackedBatch.from_sequences([torch.randint(0, 97, (n,), generator=generator).tolist() for n in (5, 1, 17)])


@pytest.mark.parametrize("options", [{}, {"norm_position": "pre"}, {"hidden_act": "relu"}, {"hidden_act": "gelu_new"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_the_original(options: dict, dtype: torch.dtype, batch: PackedBatch):
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES, **options, initializer_range=0.1)).eval().to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = quantize(model)
    assert sum(isinstance(part, QuantizedLinear) for part in quantized.modules()) == 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.inference_mode():
        exact, near = (one.encode(batch).float() for one in (model, quantized))
        assert torch.cosine_similarity(exact, near).min() > 0.995
        set_backend(quantized, "reference")
        assert torch.cosine_similarity(quantized.encode(batch).float(), near).min() > 0.999


def test_heads_stay_as_they_are(batch: PackedBatch):
    quantized = quantize(BertForMaskedLM(BertConfig(**SIZES)))
    assert isinstance(quantized.masked_lm_head.dense, nn.Linear)
    assert quantized(batch).logits.shape == (23, 97)


def test_training_is_refused(batch: PackedBatch):
    model = BertForMaskedLM(BertConfig(**SIZES))
    quantized = quantize(model.train())
    assert model.training
    assert not quantized.training
    assert not any(parameter.requires_grad for parameter in quantized.parameters())
    assert quantized.eval() is quantized
    with pytest.raises(ValueError, match="a quantised model cannot be trained; train the model that it was made of"):
        quantized.train()
    assert torch.equal(quantized(batch).logits, quantized.eval()(batch).logits)  # and nothing is dropped out
    with pytest.raises(ValueError, match="it has no gradient"):
        quantized.requires_grad_()(batch)


def test_what_has_8_bits_keeps_its_dtypes(batch: PackedBatch):
    quantized = quantize(BertForMaskedLM(BertConfig(**SIZES, initializer_range=0.1)))
    expected = quantized(batch).last_hidden_state
    near = quantized.to(torch.bfloat16)(batch).last_hidden_state.float()
    assert torch.cosine_similarity(near, expected).min() > 0.999
    assert quantized.bert.encoder.blocks[0].mlp.up.scale.dtype == torch.float32


def test_a_quantised_model_moves(batch: PackedBatch):
    model = BertModel(BertConfig(**SIZES))
    quantized = quantize(model)
    empty = quantize(model).to("meta").to_empty(device="cpu")
    empty.load_state_dict(quantized.state_dict())
    assert torch.equal(empty.encode(batch), quantized.encode(batch))


def test_a_head_that_is_more_than_its_weight_is_refused():
    sizes = {**SIZES, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    model = GPTForCausalLM(GPTConfig(**sizes))
    model.head.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="the head is a Linear with more to it than its weight"):
        quantize(model)


@pytest.mark.parametrize("part", ["mlp.up", "mlp.down", "attention.qkv"])
def test_what_wraps_a_map_stays_around_it(part: str, batch: PackedBatch):
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES, initializer_range=0.1)).eval()
    block = model.encoder.blocks[0]
    linear = block.get_submodule(part)
    owner, name = block.get_submodule(part.partition(".")[0]), part.partition(".")[2]
    setattr(owner, name, nn.Sequential(linear, nn.Tanh()))
    with torch.inference_mode():
        exact, near = model.encode(batch), quantize(model).encode(batch)
    assert torch.cosine_similarity(exact, near).min() > 0.995


@pytest.mark.parametrize("change", ["subclass", "forward", "hook"])
def test_what_is_more_than_a_linear_map_is_refused(change: str):
    model = BertModel(BertConfig(**SIZES))
    linear = model.encoder.blocks[1].attention.output
    if change == "subclass":
        model.encoder.blocks[1].attention.output = Adapter(48, 48)
    elif change == "forward":
        linear.forward = lambda x: x
    else:
        linear.register_forward_hook(lambda *_: None)
    with pytest.raises(
        ValueError, match=r"encoder\.blocks\.1\.attention\.output is a (Linear|Adapter) with more to it"
    ):
        quantize(model)


def test_saving_is_refused(tmp_path):
    """And leaves nothing behind: a directory without the 8-bit weights would be no model."""
    sizes = {**SIZES, "bos_token_id": None, "eos_token_id": None}
    for model in (BertModel(BertConfig(**SIZES)), GPTForCausalLM(GPTConfig(**sizes))):
        with pytest.raises(ValueError, match="quantised model cannot be saved; save the model that it was made of"):
            quantize(model).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_cannot_be_quantised():
    with pytest.raises(ValueError, match="Linear has no transformer blocks"):
        quantize(nn.Linear(3, 3))
    model = BertModel(BertConfig(**SIZES))
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantize(model))
    with torch.no_grad():
        model.encoder.blocks[0].mlp.up.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        quantize(model)
