"""Which examples a smaller label budget keeps."""

from __future__ import annotations

import numpy as np


def nested_order(labels: np.ndarray | None, num_examples: int, seed: int) -> np.ndarray:
    """Return all examples in an order whose every beginning is a fair sample, so that samples are nested.

    One example of each class comes first; from there on, every beginning has the classes in the proportions of the
    whole, to within one or two examples. Which examples of a class come first is random.

    Args:
        labels: (X) classes; None, where there are none, for a plain random order.
        num_examples: X.
        seed: of the order.

    Returns:
        (X) int64: numbers of the examples.
    """
    random = np.random.default_rng(seed % 2**64)
    shuffled = random.permutation(num_examples)
    if labels is None:
        return shuffled
    shares = np.empty(num_examples)
    for label in np.unique(labels):
        own = np.flatnonzero(labels[shuffled] == label)
        # Equally spaced between 0 and 1, begun at random; the first one is before all that is not first.
        shares[own] = (np.arange(len(own)) + random.random()) / len(own)
        shares[own[0]] -= 1.0
    return shuffled[np.argsort(shares, kind="stable")]
