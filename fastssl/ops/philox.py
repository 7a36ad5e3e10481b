"""Counter-based dropout masks: Philox4x32-10 over logical coordinates.

A mask is a pure function of (seed, coordinates): it need not be stored, and is the same in forward and backward, packed
and dense, for any thread count, tile size and backend. One Philox call gives four 32-bit words = eight 16-bit lanes
(lane 2i is the low half of word i, lane 2i+1 its high half); a value is kept where its lane >= round(p * 65536).

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
"""

import operator

import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
LANES_PER_CALL = 8
LANE_RANGE = 65536


def dropout_threshold(p: float) -> int:
    """Return round(p * 65536), half to even: a lane below it is dropped. Raises ValueError unless 0 <= p < 1."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {p}")
    return min(round(p * LANE_RANGE), LANE_RANGE - 1)


def dropout_scale(p: float) -> float:
    """Return the factor of the kept values, 1 / (1 - threshold / 65536): exact for the quantised probability."""
    return LANE_RANGE / (LANE_RANGE - dropout_threshold(p))


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int | Tensor) -> tuple[Tensor, ...]:
    """Return four int64 tensors of 32-bit random words.

    Args:
        counter: four int64 tensors, broadcastable to one shape, each value within 32 bits.
        seed: 64-bit key, an int or a 0-d int64 tensor; its low half is the first key word.
    """
    # 32 x 32 -> 64-bit products wrap in int64, but their bits are the unsigned ones: shift, then mask.
    seed = torch.as_tensor(seed if isinstance(seed, Tensor) else _signed64(seed), dtype=torch.int64)
    key_0, key_1 = seed & _LOW32, (seed >> 32) & _LOW32
    c0, c1, c2, c3 = counter
    for _ in range(10):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & _LOW32) ^ c1 ^ key_0,
            product_1 & _LOW32,
            ((product_0 >> 32) & _LOW32) ^ c3 ^ key_1,
            product_0 & _LOW32,
        )
        key_0, key_1 = (key_0 + _WEYL_0) & _LOW32, (key_1 + _WEYL_1) & _LOW32
    return torch.broadcast_tensors(c0, c1, c2, c3)


def keep_mask(counter: tuple[Tensor, Tensor, Tensor, Tensor], length: int, p: float, seed: int | Tensor) -> Tensor:
    """Return the boolean keep mask of shape (*counter shape without its last dimension, length).

    Args:
        counter: as in `philox_4x32`; the last dimension runs over groups of eight neighbouring elements.
        length: number of elements, at most eight times the number of groups.
        p: dropout probability.
        seed: 64-bit key.
    """
    words = torch.stack(philox_4x32(counter, seed), dim=-1)
    lanes = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(-3)
    return lanes[..., :length] >= dropout_threshold(p)


def attention_keep_mask(
    num_queries: int, num_keys: int, num_heads: int, sequence: int, p: float, seed: int | Tensor, device=None
) -> Tensor:
    """Return the keep mask (H, T, S) of one sequence; counter (key // 8, query, head, sequence index)."""
    groups = -(-num_keys // LANES_PER_CALL)
    key_group = torch.arange(groups, device=device)
    query = torch.arange(num_queries, device=device)[:, None]
    head = torch.arange(num_heads, device=device)[:, None, None]
    return keep_mask((key_group, query, head, torch.tensor(sequence, device=device)), num_keys, p, seed)


def layer_norm_keep_mask(num_rows: int, width: int, p: float, seed: int | Tensor, device=None) -> Tensor:
    """Return the keep mask (rows, width); counter (column // 8, low half of row, high half of row, 0)."""
    groups = -(-width // LANES_PER_CALL)
    column_group = torch.arange(groups, device=device)
    row = torch.arange(num_rows, device=device)[:, None]
    return keep_mask((column_group, row & _LOW32, row >> 32, torch.zeros_like(row)), width, p, seed)


def resolve_seed(seed: int | Tensor | None, device: torch.device | str = "cpu") -> Tensor:
    """Return the seed as a 0-d int64 tensor on `device`; None draws one from torch's default generator there.

    A kernel reads the seed from its own device, so that a captured graph draws a new mask when the tensor changes; for
    an int and for None no copy from the host is made.
    """
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.dtype is torch.int64 and seed.dim() == 0 and seed.device == device:
            return seed
        if seed.numel() != 1 or seed.dtype != torch.int64:
            raise ValueError(
                f"seed must be an int or a 0-d int64 tensor, got {seed.dtype} of shape {tuple(seed.shape)}"
            )
        # What comes from the host need not be waited for; what goes there must be.
        return seed.reshape(()).to(device, non_blocking=seed.device.type == "cpu")
    return torch.full((), _signed64(seed), dtype=torch.int64, device=device)


def resolve_step_seed(seed: int | Tensor | None, device: torch.device | str) -> Tensor:
    """Return the seed of a model's pass, as `resolve_seed`; but None draws it from the host's generator.

    So a model drops the same on every device. A pass that is captured as a CUDA graph is to be given a seed that lies
    on the device: the copy of one that is drawn cannot be captured.
    """
    return resolve_seed(resolve_seed(None) if seed is None else seed, device)


def _signed64(value: int) -> int:
    if not isinstance(value, int):
        try:
            value = operator.index(value)  # a number of NumPy's, for example
        except TypeError:
            raise ValueError(f"seed must be an int or a 0-d int64 tensor, got {value!r}") from None
    return (value + 2**63) % 2**64 - 2**63
