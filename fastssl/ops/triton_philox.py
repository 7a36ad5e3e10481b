"""Dropout masks inside Triton kernels: the Philox4x32-10 of `fastssl.ops.philox`, bit for bit.

One call serves eight neighbouring elements. A kernel runs Philox on a block of *groups* of eight and spreads the eight
16-bit lanes of each over the elements, so that no element costs a call of its own. Import it inside functions alone:
Triton is optional.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
"""

import triton
import triton.language as tl

GROUP = tl.constexpr(8)
"""Elements that share one call: neighbouring keys of attention, neighbouring columns of layer norm."""


@triton.jit
def philox_key(seed_ptr):
    """Return the two key words of a seed, which lies on the device so that a captured graph does not freeze it."""
    seed = tl.load(seed_ptr).to(tl.uint64, bitcast=True)
    return seed.to(tl.uint32), (seed >> 32).to(tl.uint32)


@triton.jit
def philox_words(c0, c1, c2, c3, key_0, key_1):
    """Return four uint32 blocks of random words.

    The counter words are uint32 scalars or blocks that broadcast together. Give those that do not change along a
    dimension the extent 1 there: the first rounds then cost less.
    """
    for _ in tl.static_range(10):
        # A product of 64 bits is one instruction; its two halves as two products would be two.
        product_0 = c0.to(tl.uint64) * 0xD2511F53
        product_1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ key_0
        c1 = product_1.to(tl.uint32)
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ key_1
        c3 = product_0.to(tl.uint32)
        key_0 = tl.add(key_0, 0x9E3779B9, sanitize_overflow=False)
        key_1 = tl.add(key_1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def keep_mask(c0, c1, c2, c3, key_0, key_1, threshold):
    """Return which elements of a tile are kept: counter blocks of (rows, groups) give a mask (rows, 8 * groups).

    Args:
        c0, c1, c2, c3: counter words as in `philox_words`; c0 runs over the groups of the last dimension.
        key_0, key_1: of `philox_key`.
        threshold: of `fastssl.ops.philox.dropout_threshold`; a lane below it is dropped.
    """
    w0, w1, w2, w3 = philox_words(c0, c1, c2, c3, key_0, key_1)
    # The last two dimensions count the words of a group: 2 * first + second.
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    # The high half needs no shift where the threshold has one.
    lanes = tl.join((words & 0xFFFF) >= threshold, words >= (threshold << 16))
    return tl.reshape(lanes, (lanes.shape[0], lanes.shape[1] * GROUP))
