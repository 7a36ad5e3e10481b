"""Counter-based random numbers of the data code: what an example gets depends on nothing but its coordinates.

Philox4x32-10 with the 64-bit seed as key (low half first). The four 32-bit counter words are

    (block, low half of item, epoch, purpose + 256 x high half of item)

where the purpose tells which decision is drawn (below) and the item is what it is drawn for. A block gives two 64-bit
draws, (word 0, word 1) and (word 2, word 3), low word first: draw k of an item is half k % 2 of block k // 2.
A uniform integer below n is (draw x n) >> 64; a probability p is the test "high half of the draw < round(p x 2^32)".
No floating-point number takes part, so every implementation gives the same bits.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
"""

import numpy as np

DOCUMENT, EXAMPLE_ORDER, BATCH_ORDER, MASKING = 1, 2, 3, 4
"""Purposes. Items: a document; an example; a batch; an example."""

_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_BLOCKS_AT_ONCE = 32


def philox_4x32(counter: tuple[np.ndarray, ...], seed: int) -> np.ndarray:
    """Return random words (..., 4) uint64, each below 2^32.

    Args:
        counter: four arrays of integers below 2^32, broadcastable to one shape.
        seed: 64-bit key.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in counter))
    key_0, key_1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        product_0, product_1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT) ^ c1 ^ np.uint64(key_0),
            product_1 & _LOW32,
            (product_0 >> _SHIFT) ^ c3 ^ np.uint64(key_1),
            product_0 & _LOW32,
        )
        key_0, key_1 = (key_0 + _WEYL_0) & 0xFFFFFFFF, (key_1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1)


def draws(seed: int, purpose: int, epoch: int, items: np.ndarray | int, blocks: np.ndarray | int) -> np.ndarray:
    """Return the two 64-bit draws (..., 2) uint64 of each (item, block)."""
    items = np.asarray(items, dtype=np.uint64)
    high = np.uint64(purpose) + (items >> _SHIFT) * np.uint64(256)
    words = philox_4x32((blocks, items & _LOW32, epoch, high), seed)
    return words[..., 0::2] | words[..., 1::2] << _SHIFT


class Stream:
    """The draws of one item, one after the other, as Python integers."""

    def __init__(self, seed: int, purpose: int, epoch: int, item: int) -> None:
        self._coordinates = (seed, purpose, epoch, item)
        self._next_block = 0
        self._waiting: list[int] = []

    def next(self) -> int:
        """Return the next draw, 64 bits."""
        if not self._waiting:
            blocks = np.arange(self._next_block, self._next_block + _BLOCKS_AT_ONCE)
            self._next_block += _BLOCKS_AT_ONCE
            self._waiting = draws(*self._coordinates, blocks).reshape(-1)[::-1].tolist()
        return self._waiting.pop()

    def below(self, n: int) -> int:
        """Return a uniform integer in [0, n)."""
        return self.next() * n >> 64

    def happens(self, threshold: int) -> bool:
        """Return true with probability threshold / 2^32."""
        return self.next() >> 32 < threshold
