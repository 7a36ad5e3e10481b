"""Blocks as one node of autograd's graph: the same model as by parts, and by parts wherever something asks for that."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.nn import block as block_module
from fastssl.nn import joined_block
from fastssl.nn.backend import set_backend
from tests.oracle import assert_within_budget

pytestmark = pytest.mark.native
CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
)
LENGTHS = (7, 20, 1, 13, 64)


def model_of(**changes) -> BertForMaskedLM:
    torch.manual_seed(0)
    model = BertForMaskedLM(replace(CONFIG, **changes)).train()
    for parameter in model.parameters():  # biases and norms begin as zeros and ones, which hide mistakes
        nn.init.normal_(parameter, std=0.3) if parameter.dim() == 1 else nn.init.normal_(parameter, std=0.1)
    return model


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> PackedBatch:
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(60, (length,), generator=generator).tolist() for length in lengths]
    batch = PackedBatch.from_sequences(sequences)
    rows = torch.arange(0, batch.num_tokens, 3)
    return replace(batch, masked_positions=rows, masked_labels=batch.input_ids[rows])


@pytest.fixture
def joined(monkeypatch) -> list:
    """The plans of the blocks that run as one node from now on."""
    ran, run = [], block_module.run_post_norm

    def counted(plan, *arguments):
        ran.append(plan)
        return run(plan, *arguments)

    monkeypatch.setattr(block_module, "run_post_norm", counted)
    return ran


@pytest.fixture
def by_parts(monkeypatch):
    """Call it, and blocks run by their parts."""
    return lambda: monkeypatch.setattr(block_module.PostNormBlock, "_plan", lambda *_: None)


def loss_and_gradients(model: BertForMaskedLM, batch: PackedBatch, bf16: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(batch, seed=5).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3},
        {"hidden_act": "gelu_new", "attention_probs_dropout_prob": 0.0},
    ],
    ids=str,
)
def test_joined_blocks_are_the_model_that_their_parts_are(joined, by_parts, changes):
    model, batch = model_of(**changes), batch_of()
    found = loss_and_gradients(model, batch)
    assert len(joined) == CONFIG.num_hidden_layers
    by_parts()
    expected = loss_and_gradients(model, batch)
    assert len(joined) == CONFIG.num_hidden_layers
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_against_float64(joined, by_parts, bf16, p):
    model, batch = model_of(hidden_dropout_prob=p, attention_probs_dropout_prob=p), batch_of()
    found = loss_and_gradients(model, batch, bf16)
    assert len(joined) == CONFIG.num_hidden_layers
    by_parts()
    same = loss_and_gradients(model, batch, bf16)
    set_backend(model.double(), "reference")
    exact = loss_and_gradients(model, batch)
    dtype = torch.bfloat16 if bf16 else torch.float32
    assert found.keys() == same.keys() == exact.keys()
    for name, value in found.items():
        assert_within_budget(name, value, same[name], exact[name], dtype)


def test_gradients_of_rows_and_of_frozen_parameters(joined, by_parts):
    model = model_of()
    block, seeds = model.bert.encoder.blocks[0], joined_block.BlockSeeds(*torch.arange(3).unbind())
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
    frozen = (block.attention.qkv.weight, block.mlp.down.bias, block.attention_norm.weight, block.mlp.up.weight)
    for parameter in frozen:
        parameter.requires_grad_(False)
    rows = torch.randn(9, 32)

    def run(wanted: bool) -> list[torch.Tensor | None]:
        block.zero_grad(set_to_none=True)
        leaf = rows.clone().requires_grad_(wanted)
        out = block(leaf, cu_seqlens, 5, seeds)
        out.square().sum().backward()
        return [out.detach(), leaf.grad, *(p.grad for p in block.parameters())]

    found = [run(True), run(False)]
    assert len(joined) == 2
    by_parts()
    for one, other in zip(found, [run(True), run(False)], strict=True):
        assert [x is None for x in one] == [x is None for x in other]
        pairs = [(x, y) for x, y in zip(one, other, strict=True) if x is not None]
        torch.testing.assert_close(*zip(*pairs, strict=True), rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_expanded_or_transposed(joined, by_parts):
    block = model_of().bert.encoder.blocks[0]
    cu_seqlens, rows = torch.tensor([0, 4, 9], dtype=torch.int32), torch.randn(9, 32)

    def run(gradient: torch.Tensor) -> torch.Tensor:
        leaf = rows.clone().requires_grad_()
        block(leaf, cu_seqlens, 5, joined_block.BlockSeeds()).backward(gradient)
        return leaf.grad

    gradients = (torch.ones(()).expand(9, 32), torch.randn(32, 9).t())
    found = [run(gradient) for gradient in gradients]
    assert len(joined) == 2
    by_parts()
    torch.testing.assert_close(found, [run(gradient) for gradient in gradients], rtol=1e-4, atol=1e-5)


def test_a_checkpointed_block_is_joined_and_again(joined):
    model, batch = model_of(), batch_of()
    plain = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable()
    checkpointed = loss_and_gradients(model, batch)
    assert len(joined) == 3 * CONFIG.num_hidden_layers
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_it_repeats_itself_to_the_bit(joined):
    model, batch = model_of(), batch_of()
    first, second = loss_and_gradients(model, batch), loss_and_gradients(model, batch)
    assert joined
    assert all(torch.equal(first[name], second[name]) for name in first)


def hooked(model: BertForMaskedLM) -> None:
    model.bert.encoder.blocks[2].mlp.down.register_forward_hook(lambda *_: None)


def other_backend(model: BertForMaskedLM) -> None:
    for block in model.bert.encoder.blocks[1:]:
        block.attention.backend = "reference"


def subclassed(model: BertForMaskedLM) -> None:
    class Adapted(nn.Linear):
        pass

    model.bert.encoder.blocks[0].attention.qkv.__class__ = Adapted


def without_bias(model: BertForMaskedLM) -> None:
    model.bert.encoder.blocks[0].mlp.up.bias = None


def other_dtype(model: BertForMaskedLM) -> None:
    set_backend(model.double(), "reference")


def other_activation(model: BertForMaskedLM) -> None:
    model.bert.encoder.blocks[1].mlp.activation = torch.relu


@pytest.mark.parametrize(
    ("change", "left"),
    [(hooked, 2), (other_backend, 1), (subclassed, 2), (without_bias, 2), (other_dtype, 0), (other_activation, 2)],
)
def test_a_block_that_is_not_as_it_was_made_goes_by_its_parts(joined, change, left):
    model = model_of()
    change(model)
    loss_and_gradients(model, batch_of())
    assert len(joined) == left


def test_where_nothing_is_recorded_blocks_go_by_their_parts(joined):
    model, batch = model_of(), batch_of()
    with torch.no_grad():
        model(batch, seed=1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model(batch, seed=1)
    assert not joined


def test_hooks_of_the_block_itself_are_called(joined):
    model, seen = model_of(), []
    model.bert.encoder.blocks[1].register_forward_hook(lambda *arguments: seen.append(arguments))
    loss_and_gradients(model, batch_of())
    assert len(seen) == 1
    assert len(joined) == CONFIG.num_hidden_layers


def test_gradients_of_gradients_are_refused(joined):
    model = model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    weight = model.bert.encoder.blocks[0].mlp.up.weight
    (gradient,) = torch.autograd.grad(model(batch_of()).loss, weight, create_graph=True)
    assert joined
    with pytest.raises(RuntimeError, match="gradient has no gradient of its own"):
        gradient.square().sum().backward()


def test_wrong_lengths_are_told(joined):
    block = model_of().bert.encoder.blocks[0]
    rows, seeds = torch.randn(9, 32, requires_grad=True), joined_block.BlockSeeds()
    with pytest.raises(ValueError, match="cu_seqlens_q must rise from 0 to the 9 rows"):
        block(rows, torch.tensor([0, 4, 8], dtype=torch.int32), 5, seeds)
    with pytest.raises(ValueError, match="max_seqlen_q=4 is below the longest sequence, 5"):
        block(rows, torch.tensor([0, 4, 9], dtype=torch.int32), 4, seeds)
    assert len(joined) == 2


def test_no_more_is_kept_for_the_backward_than_by_parts(joined, by_parts):
    model, batch = model_of(), batch_of()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept() -> int:
        found = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                found[storage.data_ptr()] = storage.nbytes(), tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(batch, seed=1).loss
        del loss
        return sum(size for size, _ in found.values())

    own = kept()
    assert joined
    by_parts()
    assert own <= kept()
