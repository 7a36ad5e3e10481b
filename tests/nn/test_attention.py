"""Self-attention against PyTorch's own module, one sequence at a time."""

import torch
from torch import nn

from fastssl.nn.attention import SelfAttention, _SplitHeads


def test_it_is_multi_head_attention_within_each_sequence():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(24, 4, 0.0), nn.MultiheadAttention(24, 4, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = ours.qkv.weight, ours.qkv.bias
    theirs.out_proj.weight, theirs.out_proj.bias = ours.output.weight, ours.output.bias
    lengths = [5, 1, 11]
    rows = torch.randn(sum(lengths), 24)
    cu_seqlens = torch.tensor([0, 5, 6, 17], dtype=torch.int32)
    got = ours(rows, cu_seqlens, 11).split(lengths)
    probabilities = ours.probabilities(rows, cu_seqlens)
    for sequence, one, weights in zip(rows.split(lengths), got, probabilities, strict=True):
        expected, expected_weights = theirs(*(sequence[None],) * 3, average_attn_weights=False)
        torch.testing.assert_close(one, expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights, expected_weights[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_gradients_side_by_side_are_not_copied():
    whole = torch.randn(5, 6, 4)
    together = _SplitHeads.backward(None, *whole.split(2, dim=-2))
    assert torch.equal(together, whole)
    assert together.data_ptr() == whole.data_ptr()
    apart = _SplitHeads.backward(None, *(part.clone() for part in whole.split(2, dim=-2)))
    assert torch.equal(apart, whole)
    swapped = _SplitHeads.backward(None, *whole.split(2, dim=-2)[::-1])
    assert torch.equal(swapped, torch.cat(whole.split(2, dim=-2)[::-1], dim=-2))


def test_splitting_heads_has_the_gradient_of_a_split():
    heads = torch.randn(5, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: torch.cat([(i + 1) * part for i, part in enumerate(_SplitHeads.apply(x))]), heads
    )
