"""Operators with a backward of their own never lose a derivative without a word."""

import pytest
import torch
from torch.autograd import forward_ad

from fastssl.ops import attention, bias_gelu, layer_norm, linear_cross_entropy

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
