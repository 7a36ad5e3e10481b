"""Named shapes and edge inputs of `cached_attention`, for tests and benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CachedAttentionCase:
    """One call: shapes and options."""

    lengths: tuple[int, ...]
    """Tokens of each sequence before the new one."""
    slots: int
    """S, room of the caches."""
    heads: int = 2
    """H."""
    key_heads: int | None = None
    """H_k, or None for H."""
    width: int = 16
    """D."""
    window: int | None = None
    """How many tokens are seen."""
    rotary: bool = False
    """Whether q and k are turned."""
    magnitude: float = 1.0
    """Standard deviation of q."""

    def inputs(self, cache_dtype: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32) -> dict[str, object]:
        """Return the arguments of a call, by name; the same for every call of this method. Unused slots are zero."""
        generator = torch.Generator().manual_seed(23)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        batch, key_heads = len(self.lengths), self.key_heads or self.heads
        arguments = {
            "q": draw(batch, self.heads, self.width) * self.magnitude,
            "k": draw(batch, key_heads, self.width),
            "v": draw(batch, key_heads, self.width),
            "lengths": torch.tensor(self.lengths, dtype=torch.int64),
            "window": self.window,
        }
        for name in ("k_cache", "v_cache"):
            cache = draw(batch, key_heads, self.slots, self.width)
            for sequence, length in enumerate(self.lengths):
                cache[sequence, :, length:] = 0
            arguments[name] = cache.to(cache_dtype)
        if self.rotary:
            positions = arguments["lengths"][:, None] * 0.1 ** torch.arange(self.width // 2)
            angles = torch.cat((positions, positions), dim=1)
            arguments["rotary"] = (angles.cos().to(dtype), angles.sin().to(dtype))
        return arguments


EDGE_CASES = {
    "one number": CachedAttentionCase(lengths=(0,), slots=1, heads=1, width=1),
    "no sequences": CachedAttentionCase(lengths=(), slots=4),
    "first tokens": CachedAttentionCase(lengths=(0, 0, 0), slots=5, rotary=True),
    "different lengths": CachedAttentionCase(lengths=(3, 0, 17, 40), slots=41, heads=3, width=20),
    "the last slot": CachedAttentionCase(lengths=(63, 62), slots=64),
    "grouped": CachedAttentionCase(lengths=(30, 7), slots=50, heads=6, key_heads=2, width=24, rotary=True),
    "one key head": CachedAttentionCase(lengths=(33,), slots=40, heads=7, key_heads=1, width=64),
    "several blocks": CachedAttentionCase(lengths=(300, 511), slots=512, heads=4, key_heads=2, width=72),
    "several chunks": CachedAttentionCase(lengths=(1500, 600, 9), slots=1501, heads=2, key_heads=1, width=32),
    "window": CachedAttentionCase(lengths=(20, 3), slots=32, window=5),
    "window of one": CachedAttentionCase(lengths=(20,), slots=32, window=1),
    "ring": CachedAttentionCase(lengths=(45, 15, 16, 31), slots=16, window=16, width=40),
    "ring with room": CachedAttentionCase(lengths=(45, 3), slots=19, window=7, heads=4, key_heads=1, rotary=True),
    "long ring": CachedAttentionCase(lengths=(2111,), slots=700, window=640),
    "1e4": CachedAttentionCase(lengths=(30,), slots=31, magnitude=1e4),
}

GPT2_LAYERS = {
    f"{batch} x {length}": CachedAttentionCase(lengths=(length,) * batch, slots=length + 1, heads=12, width=64)
    for batch, length in ((1, 256), (1, 1023), (8, 256), (8, 1023))
}
"""The attention of a layer of GPT-2: sequences and the tokens that each has."""
