"""How the chunks of a fused `linear_cross_entropy` lie on a GPU, whichever language its row kernel is written in."""

import torch
from torch import Tensor

from fastssl.ops.linear_cross_entropy import chunks

MIN_CHUNK_ROWS = 2048
MAX_CHUNK_ROWS = 8192
CHUNK_ELEMENTS = 2**22
TILE_ROWS = 128
CACHE_LINE_BYTES = 128


def chunk_rows(num_rows: int, width: int) -> int:
    """Return the rows of one chunk: enough for the products to fill a large GPU, in chunks of equal size.

    The gradient of `hidden`, (rows, E), is the smallest product: 2^22 elements are a tile of 128 x 256 for each of 128
    multiprocessors. From 2,048 rows on, reading W twice and adding to dW costs little beside the products. Several
    chunks are whole tiles, which also leaves every pointer into the rows as aligned as the first.
    """
    rows = chunks.even_rows(num_rows, min(max(CHUNK_ELEMENTS // width, MIN_CHUNK_ROWS), MAX_CHUNK_ROWS))
    return rows if rows == num_rows else -(-rows // TILE_ROWS) * TILE_ROWS


def is_capturing(tensor: Tensor) -> bool:
    """Tell whether a CUDA graph is being captured, where the host cannot wait for what the device knows."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def padded_vocabulary(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `weight` in the dtype of the products, (V', E): as it is, or copied and followed by rows of zeros.

    V' is V rounded up to a cache line of logits, 128 bytes, where every row of them then begins. With odd extents, such
    as 30,522 or 50,257 classes, cuBLAS takes kernels with narrow loads for all three products, several times slower,
    whatever the strides. A cast to the products' dtype makes the copy in any case.

    A row of zeros gives logits that only memory knows: the row kernel sees the first V, and nothing comes of the rest,
    whose gradient must be 0. The product leaves 0 there, but NaN where `hidden` is infinite or NaN.
    """
    line = CACHE_LINE_BYTES // dtype.itemsize
    vocab_size, width = weight.shape
    if vocab_size % line == 0:
        return weight.to(dtype).contiguous()
    padded = weight.new_empty(-(-vocab_size // line) * line, width, dtype=dtype)
    padded[:vocab_size].copy_(weight)
    padded[vocab_size:].zero_()
    return padded
