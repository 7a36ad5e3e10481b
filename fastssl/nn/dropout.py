"""Where dropout's randomness comes from: one seed per layer and site, all derived from the step's seed."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.ops.layer_norm.api import layer_norm

_GOLDEN_GAMMA, _MIX_1, _MIX_2 = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class BlockSeeds(NamedTuple):
    """The dropout seeds of one block: 0-d int64 tensors, or all None for no dropout."""

    attention: Tensor | None = None
    """For the attention weights."""
    attention_output: Tensor | None = None
    """For what attention adds to the residual stream."""
    mlp_output: Tensor | None = None
    """For what the feed-forward network adds to it."""


def site_seeds(step_seed: Tensor, num_sites: int) -> tuple[Tensor, ...]:
    """Return one seed per dropout site: SplitMix64's outputs 1 ... `num_sites` from the state `step_seed`.

    A few vectorised operations per step, no value read on the host; a site's seed does not depend on `num_sites`.

    Args:
        step_seed: 0-d int64 tensor.
        num_sites: how many seeds.

    Returns:
        `num_sites` 0-d int64 tensors on the device of `step_seed`.

    Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators" (OOPSLA), figure 17.
    """
    z = step_seed + torch.arange(1, num_sites + 1, device=step_seed.device) * _GOLDEN_GAMMA
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return (z ^ _shift_right(z, 31)).unbind()


def dropout(x: Tensor, p: float, seed: Tensor | None, *, backend: str = "auto") -> Tensor:
    """Return `x` with each element dropped with probability `p` and the others scaled up; `x` itself without a seed.

    The mask is the one of `layer_norm(x, dropout_p=p, seed=seed)`, of which this is the returned sum: the norm of it
    is computed and thrown away, which spares an operator of its own and takes a ninth of the time of PyTorch's dropout
    (forward and backward, 4096 x 768, two cores). BERT needs this in one place, after the norm of the
    embeddings; all its other dropouts stand in front of a norm and are fused there.

    Args:
        x: (N, E) floating.
        p: probability, quantised to 1/65536.
        seed: 0-d int64 tensor; None: no dropout.
        backend: of the layer norm.
    """
    if seed is None or p == 0.0:
        return x
    unit = torch.ones(x.shape[-1], dtype=torch.float32, device=x.device)
    return layer_norm(x, unit, eps=1.0, dropout_p=p, seed=seed, return_sum=True, backend=backend)[1]


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift 64-bit words right without copying their sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
