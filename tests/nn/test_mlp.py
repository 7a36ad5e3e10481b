"""The feed-forward network, its bias and GELU in one pass or not."""

import copy

import pytest
import torch
from torch import nn

from fastssl.nn.mlp import ACTIVATIONS, MLP


class _Replacement(nn.Linear):
    pass


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_its_parts(activation):
    torch.manual_seed(2)
    mlp, x = MLP(12, 20, activation), torch.randn(7, 12)
    expected = mlp.down(ACTIVATIONS[activation](mlp.up(x)))
    torch.testing.assert_close(mlp(x), expected)
    wanted = torch.autograd.grad(expected.square().sum(), list(mlp.parameters()))
    found = torch.autograd.grad(mlp(x).square().sum(), list(mlp.parameters()))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_copy_has_the_same_function_which_is_known_by_identity(activation):
    assert copy.deepcopy(MLP(4, 8, activation)).activation is ACTIVATIONS[activation]


def test_another_kind_of_linear_map_is_called():
    mlp, x = MLP(12, 20, "gelu"), torch.randn(7, 12)
    expected, called = mlp(x), []
    replacement = _Replacement(12, 20)
    replacement.load_state_dict(mlp.up.state_dict())
    replacement.register_forward_hook(lambda *_: called.append(True))
    mlp.up = replacement
    torch.testing.assert_close(mlp(x), expected)
    assert called
