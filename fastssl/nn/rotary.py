"""Rotary positions: queries and keys are turned by angles that grow with their position."""

from typing import NamedTuple

import torch
from torch import Tensor


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


def rotation(position_ids: Tensor, head_dim: int, theta: float) -> Rotation:
    """Return the turns of positions: pair i of a head turns by ``position * theta ** (-2 i / D)``.

    Args:
        position_ids: (N) int64.
        head_dim: D, even.
        theta: base of the wavelengths.

    Source: Su et al. 2021 (arXiv 2104.09864) §3.2.2, with the pairs that Hugging Face's Llama forms.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, None].float() * theta**-exponents
    return Rotation(angles.cos(), angles.sin())
