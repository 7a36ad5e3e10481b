"""Shuffling, and best-fit packing of examples into token budgets."""

import bisect

import numpy as np

from fastssl.data.numpy_host.philox import draws


def shuffled(count: int, *, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """Return a random permutation (count) int64: the items sorted by their first draw, ties by number."""
    return np.argsort(draws(seed, purpose, epoch, np.arange(count), 0)[:, 0], kind="stable")


def pack_best_fit(lengths: np.ndarray, order: np.ndarray, capacity: int) -> np.ndarray:
    """Put items into bins, each into the open bin that it fills best.

    The bin with the smallest sufficient room takes the item; among equals the one that got that room last. Where no
    bin has room, a new one is opened. Bins are numbered in the order of their opening.

    Args:
        lengths: (X) int64, none above `capacity`.
        order: (X) int64, the order in which the items come.
        capacity: size of a bin.

    Returns:
        (X) int64: the bin of each item, in the order in which the items came.

    Source: best fit, Johnson (1974); for language-model data Ding et al., arXiv 2404.10830, section 3.
    """
    bins = np.empty(len(order), dtype=np.int64)
    bins_of_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    num_bins = 0
    for place, length in enumerate(lengths[order].tolist()):
        found = bisect.bisect_left(rooms, length)
        if found == len(rooms):
            room, bin_ = capacity, num_bins
            num_bins += 1
        else:
            room = rooms[found]
            bin_ = bins_of_room[room].pop()
            if not bins_of_room[room]:
                del bins_of_room[room], rooms[found]
        bins[place] = bin_
        if room - length not in bins_of_room:
            bins_of_room[room - length] = []
            bisect.insort(rooms, room - length)
        bins_of_room[room - length].append(bin_)
    return bins
