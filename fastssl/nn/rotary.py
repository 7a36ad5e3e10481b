"""Rotary positions: queries and keys are turned by angles that grow with their position."""

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How wavelengths are stretched, so that a model reads longer texts than it was first trained on."""

    kind: Literal["linear", "llama3"]
    """linear: all of them by the factor; llama3: long ones by the factor, short ones not, those between by degrees."""
    factor: float
    """By how much."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above the original context / this are stretched wholly."""
    high_freq_factor: float = 4.0
    """llama3: those below the original context / this are not."""
    original_max_position_embeddings: int = 8192
    """llama3: the original context, in tokens."""

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"RotaryScaling.kind must be 'linear' or 'llama3', got {self.kind!r}")
        if self.factor < 1:
            raise ValueError(f"RotaryScaling.factor must be at least 1, got {self.factor}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "RotaryScaling.low_freq_factor must be above 0 and below high_freq_factor, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )


class Rotation(NamedTuple):
    """The turns of N rows."""

    cos: Tensor
    """(N, D / 2) fp32."""
    sin: Tensor
    """(N, D / 2) fp32."""

    def turn(self, x: Tensor) -> Tensor:
        """Turn the pairs (x[i], x[i + D / 2]) of each head, (N, H, D) in any floating dtype, which the result has."""
        cos, sin = self.cos[:, None], self.sin[:, None]
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def rotation(position_ids: Tensor, head_dim: int, theta: float, scaling: RotaryScaling | None = None) -> Rotation:
    """Return the turns of positions: pair i of a head turns by ``position * theta ** (-2 i / D)``.

    Args:
        position_ids: (N) integers.
        head_dim: D, even.
        theta: base of the wavelengths.
        scaling: of the wavelengths; None: none.

    Source: Su et al. 2021 (arXiv 2104.09864) §3.2.2, with the pairs that Hugging Face's Llama forms; scaling: Chen et
    al. 2023 (arXiv 2306.15595) §2.3 for linear, "The Llama 3 Herd of Models" 2024 (arXiv 2407.21783) §3.4 for llama3.
    """
    angles = position_ids[:, None].float() * _frequencies(head_dim, theta, scaling, position_ids.device)
    return Rotation(angles.cos(), angles.sin())


@functools.lru_cache(maxsize=16)
def _frequencies(head_dim: int, theta: float, scaling: RotaryScaling | None, device: torch.device) -> Tensor:
    """Return the angle of one position, (D / 2) fp32."""
    with torch.inference_mode(False):
        frequencies = theta ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
        if scaling is None:
            return frequencies
        if scaling.kind == "linear":
            return frequencies / scaling.factor
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - kept) * frequencies / scaling.factor + kept * frequencies
