"""Blocks as one node of autograd's graph: the same model as by parts, and by parts wherever something asks for that."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastssl import extension
from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.nn import block as block_module
from fastssl.nn.backend import set_backend
from fastssl.nn.dropout import BlockSeeds
from fastssl.nn.stages import Attention
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
    return lambda: monkeypatch.setattr(block_module.PostNormBlock, "_plan", lambda *_: (None, ()))


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


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_by_triton_it_is_the_same(joined, p):
    if not extension.triton_interprets():
        pytest.skip("Triton's interpreter is off")
    model = model_of(num_hidden_layers=1, hidden_dropout_prob=p, attention_probs_dropout_prob=p)
    batch, found = batch_of((3, 5, 1)), []
    for backend in ("triton", "native"):
        set_backend(model.bert.encoder, backend)
        found.append(loss_and_gradients(model, batch))
    assert [plan.attention.backend.__name__.split(".")[-1] for plan in joined] == ["triton_backend", "native"]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_rows_that_want_a_gradient_and_rows_that_do_not(joined, by_parts):
    block = model_of().bert.encoder.blocks[0]
    seeds, cu_seqlens = BlockSeeds(*torch.arange(3).unbind()), torch.tensor([0, 4, 9], dtype=torch.int32)
    rows = torch.randn(9, 32)

    def run(wanted: bool) -> list[torch.Tensor | None]:
        block.zero_grad(set_to_none=True)
        leaf = rows.clone().requires_grad_(wanted)
        out = block(leaf, cu_seqlens, 5, seeds)
        out.square().sum().backward()
        return [out.detach(), *(p.grad for p in block.parameters()), leaf.grad]

    found = [run(True), run(False)]
    assert len(joined) == 2
    by_parts()
    for one, other in zip(found, [run(True), run(False)], strict=True):
        assert (one[-1] is None) == (other[-1] is None)
        pairs = [(x, y) for x, y in zip(one, other, strict=True) if x is not None]
        torch.testing.assert_close(*map(list, zip(*pairs, strict=True)), rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_expanded_or_transposed(joined, by_parts):
    block = model_of().bert.encoder.blocks[0]
    cu_seqlens, rows = torch.tensor([0, 4, 9], dtype=torch.int32), torch.randn(9, 32)

    def run(gradient: torch.Tensor) -> torch.Tensor:
        leaf = rows.clone().requires_grad_()
        block(leaf, cu_seqlens, 5, BlockSeeds()).backward(gradient)
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


def frozen(model: BertForMaskedLM) -> None:
    model.bert.encoder.blocks[1].attention.output.weight.requires_grad_(False)


def with_a_buffer(model: BertForMaskedLM) -> None:
    up = model.bert.encoder.blocks[1].mlp.up
    weight = up.weight.detach().clone()
    del up.weight
    up.register_buffer("weight", weight)


def compiled(model: BertForMaskedLM) -> None:
    model.bert.encoder.blocks[0].mlp.compile(backend="eager")


class Doubled(torch.Tensor):
    pass


def of_another_tensor(model: BertForMaskedLM) -> None:
    down = model.bert.encoder.blocks[-1].mlp.down  # what comes of it is of that class, too
    down.weight = nn.Parameter(down.weight.detach().as_subclass(Doubled))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (hooked, 2),
        (other_backend, 1),
        (subclassed, 2),
        (without_bias, 2),
        (other_dtype, 0),
        (other_activation, 2),
        (frozen, 2),
        (with_a_buffer, 2),
        (compiled, 2),
        (of_another_tensor, 2),
    ],
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
    rows, seeds = torch.randn(9, 32, requires_grad=True), BlockSeeds()
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


def test_heads_that_were_pruned_or_widened(joined):
    for num_heads, width in ((1, 16), (2, 32)):
        model = model_of()
        attention = model.bert.encoder.blocks[0].attention
        attention.num_heads = num_heads
        attention.qkv, attention.output = nn.Linear(32, 3 * num_heads * width), nn.Linear(num_heads * width, 32)
        assert loss_and_gradients(model, batch_of())["loss"].isfinite()
    assert len(joined) == 2 * CONFIG.num_hidden_layers


def test_parameters_of_a_wrong_size_are_told(joined):
    for part, name in (("mlp_norm", "weight"), ("attention_norm", "bias"), ("mlp.up", "bias")):
        model = model_of()
        module = model.bert.encoder.blocks[0].get_submodule(part)
        setattr(module, name, nn.Parameter(torch.ones(16)))
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            model(batch_of())
    assert not joined


def test_a_replica_of_a_model(joined):
    """As `nn.DataParallel` makes it on each GPU: its parameters are attributes."""
    model, batch = model_of(), batch_of()
    replica = model._replicate_for_data_parallel()
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    replicas[model] = replica
    for module, copy in replicas.items():
        for name, child in module._modules.items():
            copy._modules[name] = replicas.get(child)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(copy, name, parameter.view_as(parameter))
    torch.testing.assert_close(replica(batch, seed=5).loss, model(batch, seed=5).loss)
    assert len(joined) == CONFIG.num_hidden_layers


def test_where_no_weight_is_dropped_attention_gets_no_seed(joined, monkeypatch):
    model, seeds = model_of(attention_probs_dropout_prob=1e-6), []
    forward = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda *args: seeds.append(args[-1]) or forward(*args))
    loss_and_gradients(model, batch_of())
    assert seeds == CONFIG.num_hidden_layers * [None]


def test_seeds_may_be_numbers(joined):
    block, rows = model_of().bert.encoder.blocks[0], torch.randn(9, 32, requires_grad=True)
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
    found = [block(rows, cu_seqlens, 5, BlockSeeds(*seeds)) for seeds in ((1, 2, 3), torch.arange(1, 4).unbind())]
    assert torch.equal(*found)
    assert len(joined) == 2
