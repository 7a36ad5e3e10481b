"""How far a share of right answers can be trusted."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The standard normal distribution has 95 % of its mass between minus this and this."""


def wilson_interval(share: float, number: int, z: float = Z_95) -> tuple[float, float]:
    """Return the score interval of a probability, of which `share` out of `number` trials were successes.

    (share + z^2 / 2n +- z sqrt(share (1 - share) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Args:
        share: between 0 and 1.
        number: n, at least 1.
        z: quantile of the normal distribution.

    Raises:
        ValueError: for a share or a number out of range.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= share <= 1 or number < 1:
        raise ValueError(f"share must be between 0 and 1 of at least one trial, got {share} of {number}")
    spread = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    middle, scale = share + z * z / (2 * number), 1 + z * z / number
    # At the ends the formula gives 0 and 1 exactly, and floating point nearly.
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return (0.0 if share == 0 else max(0.0, low)), (1.0 if share == 1 else min(1.0, high))
