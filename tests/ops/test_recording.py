"""Operators with a backward of their own never lose a derivative without a word."""

import pytest
import torch
from torch.autograd import forward_ad

from fastssl.ops import (
    BlockWeights,
    LinearMap,
    RowNorm,
    attention,
    bias_gelu,
    layer_norm,
    linear_cross_entropy,
    pre_norm_block,
    skinny_linear,
)
from fastssl.ops.quantized_linear import quantize_weight, quantized_linear

pytestmark = pytest.mark.native
WEIGHT = torch.linspace(-1, 1, 8)
WORDS = torch.linspace(-1, 1, 88).view(11, 8).sin()
OPS = {
    "attention": lambda x, backend: attention(*[x.view(1, 3, 1, 8)] * 3, backend=backend).sum(),
    "bias_gelu": lambda x, backend: bias_gelu(x, WEIGHT, backend=backend).sum(),
    "layer_norm": lambda x, backend: layer_norm(x, WEIGHT, eps=1e-5, backend=backend).sum(),
    "linear_cross_entropy": lambda x, backend: linear_cross_entropy(x, WORDS, torch.tensor([0, 1, 2]), backend=backend),
}


def rows() -> torch.Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def test_the_gradient_of_a_gradient_is_refused(op):
    """Also where the incoming gradient is a constant, and zeros would look like an answer."""
    x = rows().requires_grad_()
    loss = op(x, "native")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no gradient of its own; use backend='reference'"):
        (loss + gradient.square().sum()).backward()


def block_weights(dtype=torch.float32):
    draw = lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype) / 4  # noqa: E731
    norm = RowNorm(draw(16), None, 1e-5)
    shapes = ((48, 16), (16, 16), (32, 16), (16, 32))
    qkv, out, up, down = (LinearMap(draw(*shape)) for shape in shapes)
    return BlockWeights(norm, qkv, out, norm, up, down)


def block(x, backend, residual=None):
    cu_seqlens = torch.tensor([0, len(x)], dtype=torch.int32)
    out, stream = pre_norm_block(x, residual, block_weights(), cu_seqlens, head_dim=16, backend=backend)
    return (out * stream).sum()


TWICE = {
    **OPS,
    "attention, k and v": lambda x, backend: attention(
        torch.ones(1, 3, 1, 8), *[x.view(1, 3, 1, 8)] * 2, backend=backend
    ).sum(),
    "attention, its bias": lambda x, backend: attention(
        *torch.ones(3, 1, 3, 1, 8), bias=x[None, :, :3].contiguous(), backend=backend
    ).sum(),
    "bias_gelu, its bias": lambda x, backend: bias_gelu(WORDS, x[0], backend=backend).sum(),
    "layer_norm, its weight": lambda x, backend: layer_norm(WORDS, x[0], eps=1e-5, backend=backend).prod(1).sum(),
    "layer_norm, its bias": lambda x, backend: layer_norm(WORDS, WEIGHT, x[0], eps=1e-5, backend=backend).prod(1).sum(),
    "layer_norm of a sum": lambda x, backend: layer_norm(
        x.sin(), WEIGHT, residual=x.cos(), eps=1e-5, backend=backend
    ).sum(),
    "layer_norm, its residual": lambda x, backend: sum(
        (part * WORDS[:3]).sum()
        for part in layer_norm(WORDS[:3], WEIGHT, residual=x, eps=1e-5, return_sum=True, backend=backend)
    ),
    "linear_cross_entropy, its weight": lambda x, backend: linear_cross_entropy(
        WORDS, x, torch.arange(11) % 3, reduction="sum", backend=backend
    ),
    "linear_cross_entropy, each row": lambda x, backend: linear_cross_entropy(
        WORDS, WORDS, torch.arange(11), bias=x[0].repeat(2)[:11], reduction="none", backend=backend
    ).sum(),
    "pre_norm_block": lambda x, backend: block(x.repeat(1, 2), backend),
    "pre_norm_block, its residual": lambda x, backend: block(torch.ones(3, 16), backend, x.repeat(1, 2)),
}


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("leaf", [True, False])
def test_the_gradient_of_a_gradient_is_refused_where_some_tensors_are_asked_for(name, leaf):
    """Autograd then visits only what lies between."""
    x = rows().requires_grad_()
    x = x if leaf else x * 1
    (gradient,) = torch.autograd.grad(TWICE[name](x, "native"), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no gradient of its own; use backend='reference'"):
        torch.autograd.grad(gradient.sum(), x, allow_unused=True)


def test_a_hessian_is_refused(op):
    with pytest.raises(RuntimeError, match="no gradient of its own; use backend='reference'"):
        torch.autograd.functional.hessian(lambda x: op(x, "native"), rows())
    assert torch.autograd.functional.hessian(lambda x: op(x, "reference"), rows()).abs().sum() > 0


def test_the_gradient_of_a_gradient_by_the_incoming_one_is_refused(op):
    x, factor = rows().requires_grad_(), torch.tensor(2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(factor * op(x, "native"), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        torch.autograd.grad(gradient.sum(), factor, allow_unused=True)


def test_gradients_that_the_forward_has_computed_ask_for_nothing_that_was_saved():
    weight, targets = WORDS.clone().requires_grad_(), torch.tensor([0, 1, 2])
    loss = linear_cross_entropy(rows(), weight, targets, backend="native")
    (expected,) = torch.autograd.grad(loss, weight, retain_graph=True)
    loss = linear_cross_entropy(rows(), weight, targets, backend="native")
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(torch.autograd.grad(loss, weight)[0], expected)


def test_a_checkpointed_call_is_refused_in_the_same_words(op):
    x = rows().requires_grad_()
    loss = torch.utils.checkpoint.checkpoint(op, x, "native", use_reentrant=False)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(gradient, torch.autograd.grad(op(x, "native"), x)[0])
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        torch.autograd.grad(gradient.sum(), x, allow_unused=True)


def test_the_reference_has_it(op):
    x = rows().double().requires_grad_()
    words = WORDS.double()
    if op is OPS["linear_cross_entropy"]:
        call = lambda x: linear_cross_entropy(x, words, torch.tensor([0, 1, 2]), backend="reference")  # noqa: E731
    else:
        call = lambda x: op(x, "reference")  # noqa: E731
    assert torch.autograd.gradgradcheck(call, (x,))


def test_a_graph_of_the_gradient_that_nobody_uses_changes_nothing(op):
    grads = []
    for create_graph in (False, True):
        x = rows().requires_grad_()
        grads += torch.autograd.grad(op(x, "native"), x, create_graph=create_graph)
    assert torch.equal(*grads)


def test_forward_mode_is_refused(op):
    """By PyTorch itself, which knows that there is no such derivative."""
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="implement the jvp function"):
        op(forward_ad.make_dual(rows(), rows()), "native")
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.jvp(lambda x: op(x, "native"), (rows(),), (rows(),))
    assert torch.func.jvp(lambda x: op(x, "reference"), (rows(),), (rows(),))[1] != 0


def test_a_gradient_through_vmap_is_refused(op):
    """By PyTorch itself; inside of vmap a tensor does not tell what is asked of the one that it stands for."""
    batch = torch.stack((rows(), rows() + 1))
    expected = torch.stack([op(x, "native") for x in batch])
    assert torch.equal(torch.func.vmap(lambda x: op(x, "native"))(batch), expected)
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(lambda x: op(x, "native"))(batch.requires_grad_()), expected)
    for call in (
        torch.func.vmap(lambda x: op(x, "native")),
        torch.func.vmap(torch.func.vmap(lambda x: op(x[None].expand(3, 8), "native"))),
    ):
        with pytest.raises(RuntimeError, match="functorch transforms"):
            call(batch)


@pytest.mark.parametrize("weight", [WORDS, quantize_weight(WORDS)])
def test_operators_without_a_gradient_refuse_one_through_vmap(weight):
    batch = torch.stack((rows(), rows() + 1)).requires_grad_()
    with pytest.raises(ValueError, match="it has no gradient, and x asks for one"):
        torch.func.vmap(lambda x: skinny_linear(x, weight))(batch)
    if weight is not WORDS:
        with pytest.raises(ValueError, match="it has no gradient, and x or bias asks for one"):
            torch.func.vmap(lambda x: quantized_linear(x, weight))(batch)
