"""Blocks as one operator: the same model as by parts, and by parts wherever something asks for that."""

from dataclasses import replace

import pytest
import torch

from fastssl.data.batch import PackedBatch
from fastssl.models import gpt
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.nn import whole_block
from fastssl.nn.kv_cache import KVCache

pytestmark = pytest.mark.native
CONFIG = GPTConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=64,
    bos_token_id=None,
    eos_token_id=None,
)


def model_of(**changes) -> GPTForCausalLM:
    torch.manual_seed(0)
    return GPTForCausalLM(replace(CONFIG, **changes)).train()


def batch_of(lengths=(7, 20, 1, 13, 64, 2, 2, 30) * 2) -> PackedBatch:
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(50, (length,), generator=generator).tolist() for length in lengths]
    return PackedBatch.from_sequences(sequences, predict_next=True)


@pytest.fixture
def blocks_run_whole(monkeypatch) -> list:
    """The blocks that run as one operator from now on, on one thread."""
    ran = []

    def run(block, *arguments):
        ran.append(block)
        return whole_block.run_whole(block, *arguments)

    monkeypatch.setattr(gpt, "run_whole", run)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ran
    torch.set_num_threads(before)


def loss_and_gradients(model: GPTForCausalLM) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss = model(batch_of(), seed=5).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False, "hidden_act": "gelu", "sliding_window": 9},
        {"position_embedding": "rotary", "bias": False},
        {"num_key_value_heads": 1, "embedding_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0},
    ],
)
def test_whole_blocks_are_the_model_that_their_parts_are(blocks_run_whole, monkeypatch, changes):
    model = model_of(**changes)
    whole = loss_and_gradients(model)
    assert len(blocks_run_whole) == CONFIG.num_hidden_layers
    monkeypatch.setattr(gpt, "runs_whole", lambda *_: False)
    by_parts = loss_and_gradients(model)
    assert len(blocks_run_whole) == CONFIG.num_hidden_layers
    torch.testing.assert_close(whole, by_parts, rtol=1e-4, atol=1e-6)


def test_evaluation_runs_whole(blocks_run_whole):
    model = model_of().eval()
    with torch.no_grad():
        model(batch_of())
    assert len(blocks_run_whole) == CONFIG.num_hidden_layers


def test_a_checkpointed_block_runs_whole_and_again(blocks_run_whole):
    model = model_of()
    plain = loss_and_gradients(model)
    model.gradient_checkpointing_enable()
    checkpointed = loss_and_gradients(model)
    assert len(blocks_run_whole) == 3 * CONFIG.num_hidden_layers
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def frozen(model: GPTForCausalLM) -> None:
    model.gpt.blocks[1].mlp.up.weight.requires_grad_(False)


def hooked(model: GPTForCausalLM) -> None:
    model.gpt.blocks[2].mlp.register_forward_hook(lambda *_: None)


def other_backend(model: GPTForCausalLM) -> None:
    model.gpt.blocks[0].attention.backend = "reference"


def subclassed(model: GPTForCausalLM) -> None:
    class Adapted(torch.nn.Linear):
        pass

    model.gpt.blocks[0].attention.qkv.__class__ = Adapted


@pytest.mark.parametrize("change", [frozen, hooked, other_backend, subclassed])
def test_a_block_that_is_not_as_it_was_made_goes_by_its_parts(blocks_run_whole, change):
    model = model_of()
    change(model)
    loss_and_gradients(model)
    assert not blocks_run_whole


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "relu"},
        {"norm": "rms_norm"},
        {"mlp": "gated"},
        {"hidden_size": 224, "num_attention_heads": 14},
        {"hidden_size": 40, "num_attention_heads": 4},
    ],
)
def test_what_the_operator_does_not_do_goes_by_parts(blocks_run_whole, changes):
    loss_and_gradients(model_of(**changes))
    assert not blocks_run_whole


def test_few_sequences_go_by_parts(blocks_run_whole):
    model_of()(batch_of((9,) * (whole_block.SEQUENCES_PER_THREAD - 1)))
    assert not blocks_run_whole


def test_what_is_looked_at_or_cached_goes_by_parts(blocks_run_whole):
    model, batch = model_of().eval(), batch_of()
    with torch.no_grad():
        model(batch, output_hidden_states=True)
        model.next_token_logits(batch)
        cache: KVCache = model.new_cache(batch.num_sequences, 64)
        model.next_token_logits(batch, cache)
        with torch.autocast("cpu", torch.bfloat16):
            model(batch)
        model.bfloat16()(batch)
    assert not blocks_run_whole
