import pytest
import torch

from fastssl.training.precision import autocast, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "precision, dtype", [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_on_a_cpu(precision, dtype):
    assert resolve_precision(precision, CPU) == dtype
    with autocast(CPU, dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
