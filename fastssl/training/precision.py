"""Which arithmetic a run uses."""

import torch

from fastssl.training.config import PrecisionName


def resolve_precision(precision: PrecisionName, device: torch.device) -> torch.dtype:
    """Return float32 or bfloat16; "auto" is float32 on a CPU, and bfloat16 on a GPU that computes in it."""
    if precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which the forward pass runs: torch's autocast to bfloat16, or nothing for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
