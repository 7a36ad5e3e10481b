"""Examples into batches: a fixed number of sequences, or best fit into a token budget."""

import numpy as np

from fastssl.data.host import host_code
from fastssl.data.numpy_host import philox


def shuffled_batches(
    lengths: np.ndarray, *, seed: int, epoch: int, batch_size: int | None, tokens_per_batch: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Put an epoch's examples into batches, in a random order that follows from (seed, epoch).

    Args:
        lengths: (X) int64: tokens of each example.
        seed: 64-bit key.
        epoch: number of the pass over the corpus, below 2^32.
        batch_size: examples per batch; the last batch has what is left.
        tokens_per_batch: instead: most tokens per batch, filled by best fit.

    Returns:
        batch offsets (G + 1) int64; examples (X) int64, batch after batch.
    """
    code = host_code()
    order = code.shuffled(len(lengths), seed=seed, epoch=epoch, purpose=philox.EXAMPLE_ORDER)
    if batch_size is not None:
        return consecutive_batches(len(order), batch_size), order
    bins = code.pack_best_fit(lengths, order, tokens_per_batch)
    num_bins = int(bins.max(initial=-1)) + 1
    bin_order = code.shuffled(num_bins, seed=seed, epoch=epoch, purpose=philox.BATCH_ORDER)
    return packed_batches(bins, bin_order, order)


def consecutive_batches(num_examples: int, batch_size: int) -> np.ndarray:
    """Return batch offsets (G + 1) int64: `batch_size` examples each, the rest in the last one."""
    return np.append(np.arange(0, num_examples, batch_size), num_examples).astype(np.int64)


def packed_batches(bins: np.ndarray, bin_order: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group examples by bin.

    Early bins are filled better than late ones, so the bins come in an order of their own.

    Args:
        bins: (X) int64: the bin of each example, in the order in which the examples came.
        bin_order: (G) int64: the bins in the order in which they are shown.
        order: (X) int64: the examples in the order in which they came.

    Returns:
        batch offsets (G + 1) int64; examples (X) int64, batch after batch.
    """
    rank = np.empty_like(bin_order)
    rank[bin_order] = np.arange(len(bin_order))
    batches = rank[bins]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(batches, minlength=len(bin_order)))))
    return offsets.astype(np.int64), order[np.argsort(batches, kind="stable")]


def check_batch_size(batch_size: int | None, tokens_per_batch: int | None, max_seq_length: int) -> None:
    """Raise ValueError unless exactly one of the sizes is given, and holds a sequence of `max_seq_length` tokens."""
    if (batch_size is None) == (tokens_per_batch is None):
        raise ValueError(
            f"give either batch_size or tokens_per_batch, got batch_size={batch_size}, "
            f"tokens_per_batch={tokens_per_batch}"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if tokens_per_batch is not None and tokens_per_batch < max_seq_length:
        raise ValueError(
            f"tokens_per_batch must hold the longest sequence, max_seq_length={max_seq_length}, "
            f"got {tokens_per_batch}; raise it, or lower max_seq_length"
        )
