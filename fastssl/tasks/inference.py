"""What a model computes in, and where, when nothing is trained."""

from typing import TypeVar

import torch
from torch import nn

from fastssl.device import choose_device
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


def device_of_computation(dtype: str, device: str) -> torch.device:
    """Return the device for a computation in `dtype`: `choose_device(device)`, for "int8" the CPU.

    Raises:
        ValueError: for a device that does not exist, or does not compute in 8 bits.
    """
    if dtype != "int8":
        return choose_device(device)
    if device not in ("auto", "cpu"):
        raise ValueError(f"dtype='int8' computes on the CPU alone, got device={device!r}; choose dtype='bf16' there")
    return torch.device("cpu")


def ready(model: Model, dtype: str, device: str = "auto") -> Model:
    """Return a model, read in `dtype_of_parameters(dtype)`, as it is to compute: "int8" quantised, on its device."""
    place = device_of_computation(dtype, device)
    return quantize(model) if dtype == "int8" else model.to(place)
