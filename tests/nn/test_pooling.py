"""Poolings of packed rows against their definitions, sequence by sequence."""

import pytest
import torch

from fastssl.nn.pooling import POOLINGS

DEFINITIONS = {
    "cls": lambda rows: rows[0],
    "max": lambda rows: rows.max(0).values,
    "mean": lambda rows: rows.mean(0),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(0) / len(rows) ** 0.5,
}


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_definition(name: str, dtype: torch.dtype):
    lengths = torch.tensor([1, 7, 2, 30])
    cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))).int()
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.stack([DEFINITIONS[name](part.float()) for part in rows.split(lengths.tolist())])
    pooled = POOLINGS[name](rows, cu_seqlens)
    assert pooled.dtype == dtype
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(pooled.float(), expected, rtol=tolerance, atol=tolerance)
