"""Blocks of a GPT as one node of autograd's graph: the same model as by parts, and by parts where something asks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastssl import extension
from fastssl.data.batch import PackedBatch
from fastssl.models import gpt
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.nn import causal_block
from fastssl.nn.backend import set_backend
from tests.oracle import assert_within_budget

pytestmark = pytest.mark.native
CONFIG = GPTConfig(
    vocab_size=60,
    bos_token_id=None,
    eos_token_id=None,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=64,
)


def model_of(**changes) -> GPTForCausalLM:
    torch.manual_seed(0)
    model = GPTForCausalLM(replace(CONFIG, **changes)).train()
    for parameter in model.parameters():  # biases and norms begin as zeros and ones, which hide mistakes
        nn.init.normal_(parameter, std=0.3 if parameter.dim() == 1 else 0.1)
    return model


@pytest.fixture(autouse=True)
def no_block_is_one_operator(monkeypatch):
    monkeypatch.setattr(gpt, "runs_whole", lambda *_: False)


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    generator = torch.Generator().manual_seed(1)
    lengths = (7, 20, 1, 64)
    sequences = [torch.randint(60, (length,), generator=generator).tolist() for length in lengths]
    return PackedBatch.from_sequences(sequences, predict_next=True)


@pytest.fixture
def joined(monkeypatch) -> list:
    """The plans of the blocks that run as one node from now on."""
    ran, run = [], causal_block.run_pre_norm

    def counted(plan, *arguments, **others):
        ran.append(plan)
        return run(plan, *arguments, **others)

    monkeypatch.setattr(causal_block, "run_pre_norm", counted)
    return ran


@pytest.fixture
def by_parts(monkeypatch):
    """Call it, and blocks run by their parts."""
    return lambda: monkeypatch.setattr(causal_block.CausalBlock, "joined", lambda *_: None)


def loss_and_gradients(model: GPTForCausalLM, batch: PackedBatch, bf16: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(batch, seed=5).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu", "sliding_window": 9},
        {"num_key_value_heads": 1, "embedding_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0},
        {"embedding_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        {"embedding_dropout_prob": 0.0, "hidden_dropout_prob": 0.2},
    ],
    ids=str,
)
def test_joined_blocks_are_the_model_that_their_parts_are(joined, by_parts, batch, changes):
    model = model_of(**changes)
    found = loss_and_gradients(model, batch)
    assert len(joined) == CONFIG.num_hidden_layers
    by_parts()
    expected = loss_and_gradients(model, batch)
    assert len(joined) == CONFIG.num_hidden_layers
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_against_float64(joined, by_parts, batch, bf16, p):
    model = model_of(embedding_dropout_prob=p, hidden_dropout_prob=p, attention_probs_dropout_prob=p)
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


def test_by_triton_it_is_the_same(joined):
    if not extension.triton_interprets():
        pytest.skip("Triton's interpreter is off")
    model = model_of(num_hidden_layers=2, num_key_value_heads=1)
    short, found = PackedBatch.from_sequences([[1, 2, 3], [4, 5, 6, 7, 8]], predict_next=True), []
    for backend in ("triton", "native"):
        set_backend(model.gpt, backend)
        found.append(loss_and_gradients(model, short))
    assert len(joined) == 4
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_checkpointed_block_is_joined_and_again(joined, batch):
    model = model_of()
    plain = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable()
    checkpointed = loss_and_gradients(model, batch)
    assert len(joined) >= 2 * CONFIG.num_hidden_layers
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_only_the_stream_of_a_block_is_wanted(joined):
    block = model_of().gpt.blocks[0]
    context = causal_block.CausalContext(torch.tensor([0, 4, 9], dtype=torch.int32), 5)
    rows = torch.randn(2, 9, 32)

    def gradients(place: int) -> list[torch.Tensor]:
        addend, residual = (x.clone().requires_grad_() for x in rows)
        entering = causal_block.Entering(addend, residual, 0.0, None)
        run = block.joined(entering, context, causal_block.BlockSeeds())
        if place < 2:
            found = run(addend, residual)[place]
        else:
            found = block(*entering.normed(block.attention_norm), context, causal_block.BlockSeeds(), None)[place - 2]
        return torch.autograd.grad(found.square().sum(), (addend, residual))

    for place in (0, 1):
        torch.testing.assert_close(gradients(place), gradients(place + 2), rtol=1e-4, atol=1e-5)
    assert len(joined) == 2


def hooked(model: GPTForCausalLM) -> None:
    model.gpt.blocks[2].mlp.down.register_forward_hook(lambda *_: None)


def hooked_block(model: GPTForCausalLM) -> None:
    model.gpt.blocks[2].register_forward_hook(lambda *_: None)


def other_backend(model: GPTForCausalLM) -> None:
    for block in model.gpt.blocks[1:]:
        block.attention.backend = "reference"


def frozen(model: GPTForCausalLM) -> None:
    model.gpt.blocks[1].mlp.up.weight.requires_grad_(False)


def compiled(model: GPTForCausalLM) -> None:
    model.gpt.blocks[1].compile(backend="eager")


class Around(nn.Module):
    """What somebody puts around a block: it hands out the block's attributes, and counts its calls."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.calls = block, 0

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)

    def forward(self, *arguments):
        self.calls += 1
        return self.block(*arguments)


def test_what_is_put_around_a_block_is_called(joined, batch):
    model = model_of()
    model.gpt.blocks[1] = around = Around(model.gpt.blocks[1])
    loss_and_gradients(model, batch)
    assert around.calls == 1
    assert len(joined) == 2


@pytest.mark.parametrize(
    ("change", "left"), [(hooked, 2), (hooked_block, 2), (other_backend, 1), (frozen, 2), (compiled, 2)]
)
def test_a_block_that_is_not_as_it_was_made_goes_by_its_parts(joined, batch, change, left):
    model = model_of()
    change(model)
    loss_and_gradients(model, batch)
    assert len(joined) == left


@pytest.mark.parametrize("changes", [{"position_embedding": "rotary"}, {"norm": "rms_norm"}, {"bias": False}], ids=str)
def test_another_kind_of_block_goes_by_its_parts(joined, batch, changes):
    loss_and_gradients(model_of(**changes), batch)
    assert not joined


def test_where_nothing_is_recorded_blocks_go_by_their_parts(joined, batch):
    with torch.no_grad():
        model_of()(batch, seed=1)
    assert not joined


def test_gradients_of_gradients_are_refused(joined, batch):
    model = model_of(embedding_dropout_prob=0.0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    weight = model.gpt.blocks[0].mlp.up.weight
    (gradient,) = torch.autograd.grad(model(batch).loss, weight, create_graph=True)
    assert joined
    with pytest.raises(RuntimeError, match="gradient has no gradient of its own"):
        gradient.square().sum().backward()
