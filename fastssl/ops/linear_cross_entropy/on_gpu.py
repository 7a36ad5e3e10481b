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


def padded_rows(operand: Tensor, num_rows: int, vocab_size: int) -> Tensor:
    """Return memory for logits, rows padded to begin at cache lines: loads of 16 bytes then fit every vocabulary.

    The padding is zero and must stay finite: a library's product may read what follows a row of odd length and multiply
    it by zero (seen of bfloat16 products on a CPU with AMX).
    """
    line = CACHE_LINE_BYTES // operand.itemsize
    memory = operand.new_empty(num_rows, -(-vocab_size // line) * line)
    memory[:, vocab_size:].zero_()
    return memory
