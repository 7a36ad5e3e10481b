"""The heads see the right rows and the right weights."""

import pytest
import torch
from torch.nn import functional as F

from fastssl.nn.heads import MaskedLMHead, Pooler
from fastssl.nn.mlp import ACTIVATIONS


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_is_the_cross_entropy_of_the_logits(tied, activation):
    torch.manual_seed(1)
    head = MaskedLMHead(20, 31, activation=activation, norm_eps=1e-12, tied=tied)
    with torch.no_grad():
        head.bias.normal_()
    rows, labels, word = torch.randn(9, 20), torch.randint(0, 31, (9,)), torch.randn(31, 20, requires_grad=True)
    logits = head(rows, word)
    loss, stats = head.loss(rows, labels, word)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="sum"), rtol=1e-4, atol=1e-4)
    assert stats.num_correct == (logits.argmax(-1) == labels).sum()
    loss.backward()
    assert (word.grad is not None) == tied
    assert (head.decoder is None) == tied


def test_pooler():
    pooler, rows = Pooler(6), torch.randn(3, 6)
    torch.testing.assert_close(pooler(rows), pooler.dense(rows).tanh())
