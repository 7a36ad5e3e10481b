"""How the Triton kernels of `attention` are cut into programs: functions of the device and the call.

The tiles for Hopper in 16 bits are the fastest of `benchmarks/gpu/tile_search.py` on an H100 that fit the registers in
every release of Triton tried, or nearly do; those for other GPUs fit (`make cuda-check`) and have not been measured.
`other_tiles` are what a search on the GPU at hand (`fastssl.ops.tile_search`) tries beside them.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastssl.ops.tile_search import rounded_size


class Tile(NamedTuple):
    """How one kernel is launched."""

    queries: int
    """Queries per tile."""
    keys: int
    """Keys per tile."""
    num_warps: int
    """Warps of 32 threads per program."""
    num_stages: int
    """Tiles in flight between global and shared memory."""


class Shape(NamedTuple):
    """What the choice of tiles depends on."""

    capability: int
    """Compute capability times ten; 0 in Triton's interpreter."""
    width: int
    """D."""
    element_size: int
    """Bytes of an element of q."""
    longest_q: int
    """Bound of the number of queries of a sequence."""
    longest_k: int
    """Bound of the number of keys of a sequence."""
    dropped: bool
    """Whether there is dropout."""
    drawn: bool
    """Whether the kernels draw dropout's decisions: the forward, and a backward to which none were kept."""
    biased: bool
    """Whether something is added to the scores, a bias or slopes."""
    windowed: bool
    """Whether a window, such as that of causal attention, hides keys."""


FURTHEST_ROW = 2**31 // 256
"""Elements between two rows, at most: within a tile of up to 256 rows the kernels count with 32 bits."""
CACHE_BYTES = 16 * 2**20
"""What programs that run at a time may read together: well below a data-centre GPU's L2 cache of 40 to 50 MiB."""
MOST_KEYS = 128
"""Keys of the largest tile; those of any other divide it."""
BIAS_PROGRAMS = 256
"""Programs, at least, that sum the gradient of a bias where sequences suffice; one number, so that the order of the
additions is the same on every device."""

INTERPRETED = Tile(queries=64, keys=64, num_warps=4, num_stages=1)
_WIDE_GRADIENT = Tile(queries=64, keys=64, num_warps=8, num_stages=1)
_FEW_WIDE_KEYS = Tile(queries=64, keys=32, num_warps=8, num_stages=1)
"""For heads between 65 and 128 columns, in registers."""


@functools.cache
def capability_of(device: torch.device) -> int:
    """Return ten times a device's compute capability, 0 for the CPU, 80 for AMD's, whose number means other things."""
    if device.type == "cuda" and torch.version.hip:
        return 80
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return 10 * major + minor


def padded_width(width: int) -> int:
    """Return the columns of a tile: the power of two from 16 on that holds a head's width."""
    return max(16, 1 << (width - 1).bit_length())


def tiles(length: int, size: int) -> int:
    """Return how many tiles cover a length."""
    return -(-length // size)


def heads_in_cache(shape: Shape, rows: float, columns: int) -> int:
    """Return how many of the heads of all sequences run together: those whose `rows` of two tensors stay in L2."""
    return max(1, min(columns, int(CACHE_BYTES / (2 * shape.width * shape.element_size * max(rows, 1)))))


def parts_of_bias(programs: int, num_sequences: int) -> tuple[int, int]:
    """Return (parts, sequences a part) of the sum over the sequences, `programs` being those of one part."""
    wanted = max(1, min(num_sequences, BIAS_PROGRAMS // max(programs, 1)))
    sequences_each = max(1, tiles(num_sequences, wanted))
    return max(1, tiles(num_sequences, sequences_each)), sequences_each


def words_to_keep(longest_k: int, width: int, element_size: int) -> int:
    """Return how many words of 32 decisions of dropout the forward keeps of a query and head for the backward.

    Those of all keys, in whole tiles of any kernel, if they take no more memory than the query itself; else none, so
    that memory stays linear in the lengths.
    """
    words = MOST_KEYS // 32 * tiles(longest_k, MOST_KEYS)
    return words if 4 * words <= width * element_size else 0


def forward_tile(shape: Shape) -> Tile:
    """Return the tiles of the forward: many queries, which share each tile of keys."""
    columns = padded_width(shape.width)
    if shape.capability == 0:
        return INTERPRETED
    if shape.element_size == 4 or columns > 128:
        return Tile(queries=32 if shape.element_size == 4 else 64, keys=32, num_warps=4, num_stages=1)
    if columns <= 64:
        few = shape.dropped and not shape.biased and not shape.windowed and _is_hopper(shape)
        return Tile(queries=128, keys=64, num_warps=4 if few else 8, num_stages=3)
    if _is_hopper(shape) and not shape.biased and not shape.dropped:
        return Tile(queries=128, keys=128, num_warps=8, num_stages=3)
    narrow = shape.biased or not _is_hopper(shape)
    return Tile(queries=128, keys=32 if narrow else 64, num_warps=8, num_stages=2)


def grad_q_tile(shape: Shape) -> Tile:
    """Return the tiles of the gradient of q, which holds queries, their gradients and those of the output at once."""
    columns = padded_width(shape.width)
    if shape.capability == 0 or shape.element_size == 4 or columns > 128:
        return _small_gradient_tile(shape)
    if columns > 64:
        return Tile(queries=64, keys=64, num_warps=4, num_stages=2) if _is_hopper(shape) else _WIDE_GRADIENT
    if _is_hopper(shape):
        return Tile(queries=64, keys=32 if shape.dropped else 64, num_warps=4, num_stages=3)
    if _draws_in_few_registers(shape):
        return Tile(queries=64, keys=32, num_warps=4, num_stages=2)
    return Tile(queries=128, keys=64, num_warps=8, num_stages=1 if shape.drawn else 2)


def grad_kv_tile(shape: Shape) -> Tile:
    """Return the tiles of the gradients of k and v, which hold keys, values and both gradients at once."""
    columns = padded_width(shape.width)
    if shape.capability == 0 or shape.element_size == 4 or columns > 128:
        return _small_gradient_tile(shape)
    if columns > 64:
        adds = shape.dropped or shape.biased
        few = adds or shape.windowed
        hopper = Tile(queries=32 if few else 64, keys=128, num_warps=8, num_stages=1 if adds else 2)
        return hopper if _is_hopper(shape) else _FEW_WIDE_KEYS if shape.dropped or shape.windowed else _WIDE_GRADIENT
    if _is_hopper(shape) and not 64 < shape.longest_k <= 128:
        if shape.dropped or shape.biased or shape.longest_q <= 512:
            return Tile(queries=32, keys=64, num_warps=4, num_stages=2 if shape.drawn or shape.biased else 3)
        return Tile(queries=128, keys=64, num_warps=4, num_stages=2)
    if _draws_in_few_registers(shape):
        return Tile(queries=32, keys=64, num_warps=4, num_stages=2)
    one_stage = not _is_hopper(shape) and shape.dropped and (shape.windowed or shape.biased)
    return Tile(queries=32, keys=128, num_warps=8, num_stages=1 if one_stage else 2)


def grad_bias_tile(shape: Shape) -> Tile:
    """Return the tiles of the gradient of the bias, summed over the sequences in registers."""
    columns = padded_width(shape.width)
    if shape.capability == 0 or shape.element_size == 4 or columns > 128:
        return _small_gradient_tile(shape)
    if columns > 64:
        return Tile(queries=64 if _is_hopper(shape) else 32, keys=64, num_warps=8, num_stages=1)
    if shape.drawn and not _is_hopper(shape):
        return Tile(queries=32, keys=128, num_warps=8, num_stages=1)
    return Tile(queries=128, keys=64, num_warps=8, num_stages=1)


def delta_tile(shape: Shape) -> Tile:
    """Return the tiles of rowsum(dO * O), which reads each row once."""
    return INTERPRETED if shape.capability == 0 else Tile(queries=64, keys=64, num_warps=4, num_stages=1)


def other_tiles(kernel: str, shape: Shape) -> Iterator[Tile]:
    """Yield the tiles that a search tries for a kernel; none of one whose tiles decide the order of additions.

    Of the side that stays in registers 64 rows for four warps and 128 for eight, half as many in float32 and for the
    widest heads.
    """
    if kernel not in SEARCHED:
        return
    columns = padded_width(shape.width)
    forward = kernel == "attention_forward"
    if shape.element_size == 4 or columns > 128:
        rows, steps, stages = [(32, 4), (64, 8)], (32, 64), (1, 2)
    elif forward:
        rows, steps, stages = [(64, 4), (128, 8)], (64, 128), (2, 3) if columns > 64 else (2, 3, 4)
        rows += [(128, 4)] if columns <= 64 else []
    else:
        rows, steps, stages = [(64, 4), (128, 8)], (32, 64, 128), (1, 2, 3)
        steps, stages = (steps[:2], stages[:2]) if columns > 64 else (steps, stages)
    stays, walks = ("keys", "queries") if kernel == "attention_grad_kv" else ("queries", "keys")
    for (stay, num_warps), step, num_stages in itertools.product(rows, steps, stages):
        # Whether one tile holds all keys, so that dQ has no kernel of its own, is decided before.
        if stays == "queries" or (shape.longest_k <= stay) is one_tile_of_keys(shape):
            yield Tile(**{stays: stay, walks: step}, num_warps=num_warps, num_stages=num_stages)


def facts_of(shape: Shape, columns: int) -> dict[str, object]:
    """Return what the fastest tile depends on: the shape, with lengths of one power of two alike.

    Args:
        shape: of the call.
        columns: heads of all sequences; from some number on they fill every GPU.
    """
    lengths = {"longest_q": rounded_size(shape.longest_q), "longest_k": rounded_size(shape.longest_k)}
    return shape._asdict() | lengths | {"columns": min(rounded_size(columns), 256)}


def one_tile_of_keys(shape: Shape) -> bool:
    """Tell whether one tile holds all keys of every sequence, so that dQ needs no kernel of its own."""
    return shape.longest_k <= grad_kv_tile(shape).keys


def _is_hopper(shape: Shape) -> bool:
    """Tell whether products read their operands from shared memory, as Hopper's do, which leaves registers free."""
    return 90 <= shape.capability < 120


def _draws_in_few_registers(shape: Shape) -> bool:
    """Tell whether a large tile of up to 64 columns would spill a few registers for dropout; with a bias none does."""
    return shape.drawn and not shape.biased and not _is_hopper(shape)


def _small_gradient_tile(shape: Shape) -> Tile:
    """Return the tiles of float32, whose products take no matrix instruction, and of the widest heads."""
    return INTERPRETED if shape.capability == 0 else Tile(queries=32, keys=32, num_warps=8, num_stages=1)


SEARCHED = ("attention_forward", "attention_grad_q", "attention_grad_kv")
"""Kernels that take nearly all of the time."""
TILES = {
    "attention_forward": forward_tile,
    "attention_grad_q": grad_q_tile,
    "attention_grad_kv": grad_kv_tile,
    "attention_grad_bias": grad_bias_tile,
    "attention_delta": delta_tile,
}
"""Kernel -> the choice of its tiles."""
