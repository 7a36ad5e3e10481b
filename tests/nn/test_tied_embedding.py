import pytest
import torch
from torch.nn import functional as F

from fastssl.nn.tied_embedding import TiedEmbedding

IDS = torch.tensor([3, 0, 3, 5, 1])


def gradient(uses, weight: torch.Tensor) -> torch.Tensor:
    weight = weight.clone().requires_grad_()
    uses(weight).backward()
    return weight.grad


def with_stock(weight: torch.Tensor, *, read: bool = True, scored: bool = True) -> torch.Tensor:
    rows = F.embedding(IDS, weight, padding_idx=0) if read else weight.new_ones(5, 4)
    return (rows @ weight.T).sin().sum() if scored else rows.sin().sum()


def with_ours(weight: torch.Tensor, *, read: bool = True, scored: bool = True) -> torch.Tensor:
    tied = TiedEmbedding(weight, 0)
    rows = tied.read(IDS) if read else weight.new_ones(5, 4)
    return (rows @ tied.weight.T).sin().sum() if scored else rows.sin().sum()


@pytest.mark.parametrize("use", [{}, {"read": False}, {"scored": False}])
def test_the_gradient_is_that_of_both_uses(use):
    weight = torch.randn(7, 4, dtype=torch.float64)
    expected = gradient(lambda w: with_stock(w, **use), weight)
    torch.testing.assert_close(gradient(lambda w: with_ours(w, **use), weight), expected)


def test_gradients_accumulate_and_a_pass_may_be_repeated():
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    once = gradient(with_stock, weight.detach())
    loss = with_ours(weight)
    loss.backward(retain_graph=True)
    loss.backward()
    with_ours(weight).backward()
    torch.testing.assert_close(weight.grad, 3 * once)


def test_a_frozen_embedding_gets_none():
    tied = TiedEmbedding(torch.randn(7, 4), None)
    factor = torch.ones(4, requires_grad=True)
    ((tied.read(IDS) * factor) @ tied.weight.T).sum().backward()
    assert factor.grad is not None


def test_rows_that_are_read_more_often_than_once_are_added_in_one_order():
    weight, ids = torch.zeros(11, 64), torch.randint(11, (4000,))
    cotangent = torch.randn(4000, 64)

    def read_and_scored(parameter: torch.Tensor) -> torch.Tensor:
        tied = TiedEmbedding(parameter, None)
        return (tied.read(ids) * cotangent).sum() + F.linear(torch.ones(1, 64), tied.weight).sum()

    found = []
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 1):
            torch.set_num_threads(num_threads)
            found.append(gradient(read_and_scored, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
