"""Parameters by part, floating-point operations and memory, held against the model itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM, BertForPreTraining
from fastssl.models.bert_config import BertConfig
from fastssl.models.cost import (
    activation_bytes_per_token,
    flops_per_token,
    num_parameters,
    parameter_table,
    training_memory,
    training_memory_bytes,
)
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.models.presets import preset
from fastssl.nn.backend import set_backend
from tests.models.gpt_peers import sequences
from tests.models.peers import ODD_SIZES
from tests.models.test_bert import packed_batch

CONFIG = BertConfig(**ODD_SIZES)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForPreTraining])
def test_the_table_adds_up(model_class, norm_position):
    model = model_class(BertConfig(**ODD_SIZES, norm_position=norm_position))
    rows = parameter_table(model)
    assert sum(row.total for row in rows) == num_parameters(model) == sum(p.numel() for p in model.parameters())
    by_part = {row.part: row for row in rows}
    assert by_part["block: attention"].copies == 3
    assert by_part["block: attention"].parameters == 4 * 36 * 36 + 4 * 36
    assert by_part["embeddings: word"].parameters == 101 * 36
    assert ("final norm" in by_part) == (norm_position == "pre")


def test_flops_are_those_of_the_products():
    """Count a step's matrix products on one length; the count has the small heads too, so allow for them."""
    config = BertConfig(**{**ODD_SIZES, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 256})
    model = BertForMaskedLM(config).train()
    batch = packed_batch(lengths=(23, 23), length=23)
    set_backend(model, "reference")
    with FlopCounterMode(display=False) as counter:
        model(batch, seed=1).loss.backward()
    masked = batch.target_counts()["masked_lm"] / batch.num_tokens
    expected = flops_per_token(config, 23, masked) * batch.num_tokens
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_bert_base_at_512():
    # 6 x 84,934,656 matrix parameters of the blocks + 12 x 12 x 768 x 512 + 0.15 x 6 x 24,030,720 of the head
    assert flops_per_token(preset("bert-base"), 512, 0.15) == 6 * 84_934_656 + 12 * 12 * 768 * 512 + 0.9 * 24_030_720


def run_and_weigh(model, run):
    """Return what `run` returns, and the bytes that it keeps for the backward beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = run()
    return output, sum(kept.values())


@pytest.mark.native
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_activations_are_what_the_forward_keeps(gradient_checkpointing):
    config = BertConfig(
        vocab_size=101, hidden_size=64, num_hidden_layers=8, num_attention_heads=2, intermediate_size=256
    )
    model, batch = BertForMaskedLM(config).train(), packed_batch(lengths=(200, 300), length=300, num_types=2)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    output, kept_bytes = run_and_weigh(model, lambda: model.bert(batch, seed=1))
    assert output.last_hidden_state.requires_grad
    expected = batch.num_tokens * activation_bytes_per_token(config, gradient_checkpointing=gradient_checkpointing)
    if gradient_checkpointing:
        # One block's activations come and go in the backward.
        expected -= batch.num_tokens * 4 * (8 * 64 + 2 * 256 + 2 + 4)
    assert kept_bytes == pytest.approx(expected, rel=0.1)


def test_memory_adds_up():
    memory = training_memory(CONFIG, num_tokens=1000, num_predicted=150)
    parameters = num_parameters(CONFIG)
    assert memory.weights == 4 * parameters
    assert memory.optimizer == 8 * parameters
    assert memory.total == memory.weights + memory.gradients + memory.optimizer + memory.activations
    assert memory.total == training_memory_bytes(CONFIG, num_tokens=1000, num_predicted=150)
    less = training_memory(CONFIG, num_tokens=1000, num_predicted=150, gradient_checkpointing=True)
    assert less.activations < memory.activations


GPT_SIZES = {
    "vocab_size": 101,
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 300,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPTS = {
    "gpt2": GPTConfig(**GPT_SIZES),
    "modern": GPTConfig(
        **GPT_SIZES,
        num_key_value_heads=2,
        head_dim=24,
        mlp="gated",
        hidden_act="silu",
        intermediate_size=150,
        position_embedding="rotary",
        bias=False,
        tie_word_embeddings=False,
    ),
}


def causal_batch(*lengths: int) -> PackedBatch:
    return PackedBatch.from_sequences(sequences(lengths), predict_next=True)


@pytest.mark.parametrize("name", GPTS)
def test_the_table_of_a_gpt_adds_up(name: str):
    model = GPTForCausalLM(GPTS[name])
    rows = {row.part: row for row in parameter_table(GPTS[name])}
    assert sum(row.total for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["block: mlp"].copies == 8
    assert rows["embeddings: word"].parameters == 101 * 64
    assert ("embeddings: position" in rows, "head" in rows) == ((True, False), (False, True))[name == "modern"]


@pytest.mark.parametrize("name", GPTS)
def test_flops_of_a_gpt_are_those_of_the_products(name: str):
    config = GPTS[name]
    model, batch = GPTForCausalLM(config).train(), causal_batch(23, 23)
    set_backend(model, "reference")
    with FlopCounterMode(display=False) as counter:
        model(batch, seed=1).loss.backward()
    predicted = batch.target_counts()["causal_lm"] / batch.num_tokens
    expected = flops_per_token(config, 23, predicted) * batch.num_tokens
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_gpt2_at_1024():
    # 6 x 84,934,656 matrix parameters of the blocks + 12 x 12 x 768 x 1024 + 6 x 38,597,376 of the head
    assert flops_per_token(preset("gpt2"), 1024, 1.0) == 6 * 84_934_656 + 12 * 12 * 768 * 1024 + 6 * 38_597_376
    near = GPTConfig(sliding_window=256)
    assert flops_per_token(near, 1024, 1.0) == flops_per_token(preset("gpt2"), 256, 1.0)


@pytest.mark.native
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("name", GPTS)
def test_activations_of_a_gpt_are_what_the_forward_keeps(name: str, gradient_checkpointing: bool):
    config = GPTS[name]
    model, batch = GPTForCausalLM(config).train(), causal_batch(200, 300)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    _, kept_bytes = run_and_weigh(model, lambda: model(batch, seed=1))
    memory = training_memory(config, num_tokens=500, num_predicted=498, gradient_checkpointing=gradient_checkpointing)
    expected = memory.activations
    if gradient_checkpointing:
        # One block's activations come and go in the backward.
        one = GPTConfig(**GPT_SIZES | {"num_hidden_layers": 1}, **_options(config))
        none = GPTConfig(**GPT_SIZES | {"num_hidden_layers": 0}, **_options(config))
        expected -= 500 * (activation_bytes_per_token(one) - activation_bytes_per_token(none))
    assert kept_bytes == pytest.approx(expected, rel=0.1)


def _options(config: GPTConfig) -> dict[str, object]:
    return {name: value for name, value in vars(config).items() if name not in GPT_SIZES}
