"""Self-attention against PyTorch's own module, one sequence at a time."""

import torch
from torch import nn

from fastssl.nn.attention import SelfAttention


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
