"""What a model computes in where nothing is trained."""

from typing import TypeVar

import torch
from torch import nn

from fastssl.nn.quantized import quantize

Model = TypeVar("Model", bound=nn.Module)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
"""What the model may compute in -> dtype of its other parameters; "int8": see `quantize`."""


def dtype_of_parameters(dtype: str) -> torch.dtype:
    """Return the dtype in which to read a model's weights.

    Raises:
        ValueError: for what is no key of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def in_dtype(model: Model, dtype: str) -> Model:
    """Return a model, read in `dtype_of_parameters(dtype)`, as it is to compute: quantised for "int8"."""
    return quantize(model) if dtype == "int8" else model
