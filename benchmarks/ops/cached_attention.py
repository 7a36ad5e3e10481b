"""A layer's attention while GPT-2 generates: one new token a sequence, which the cache gets as well."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import read_of
from benchmarks.rotation import Rotation
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.cached_attention.api import cached_attention
from fastssl.ops.cached_attention.cases import GPT2_LAYERS, CachedAttentionCase
from tests.oracle import assert_within_budget

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUICK = ("1 x 256, fp32", "8 x 1023, fp32")


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return one sequence and eight, short and long."""
    every = {
        f"{name}, {kind}": partial(comparison, case, dtype)
        for name, case in GPT2_LAYERS.items()
        for kind, dtype in DTYPES.items()
    }
    return {name: every[name] for name in QUICK} if run.quick else every


@torch.inference_mode()
def comparison(case: CachedAttentionCase, dtype: torch.dtype) -> Comparison:
    """Compare with the same from PyTorch: both are written to a cache that is as long as it must be, and read it whole.

    Every call meets a cache that no cache of the processor holds, as in a model whose layers take turns.
    """
    arguments = case.inputs(dtype)
    caches = (arguments.pop("k_cache"), arguments.pop("v_cache"))
    rotation = Rotation(lambda: [cache.clone() for cache in caches], sum(cache.nbytes for cache in caches))
    contenders = {
        OURS: lambda: cached_attention(k_cache=(pair := rotation.next())[0], v_cache=pair[1], **arguments),
        "SDPA": partial(_sdpa, arguments, rotation),
    }

    def check() -> None:
        same, exact = (_definition(arguments, caches, wide) for wide in (torch.float32, torch.float64))
        for name, launch in contenders.items():
            if name == OURS or dtype == torch.float32:
                assert_within_budget(name, launch(), same, exact, dtype)

    num_bytes = sum(cache.nbytes for cache in caches)
    return Comparison(
        contenders={name: timed(torch.inference_mode()(launch)) for name, launch in contenders.items()},
        check=torch.inference_mode()(check),
        work=num_bytes,
        unit="B",
        limit=read_of(num_bytes),
    )


def _sdpa(arguments: dict, rotation: Rotation) -> Tensor:
    position = int(arguments["lengths"][0])
    k_cache, v_cache = rotation.next()
    k_cache[:, :, position], v_cache[:, :, position] = arguments["k"], arguments["v"]
    q = arguments["q"][:, :, None].to(k_cache.dtype)
    return torch.nn.functional.scaled_dot_product_attention(q, k_cache, v_cache)[:, :, 0]


def _definition(arguments: dict, caches: tuple[Tensor, Tensor], wide: torch.dtype) -> Tensor:
    same = {n: t.to(wide) if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in arguments.items()}
    k_cache, v_cache = (cache.to(wide) for cache in caches)
    return cached_attention(**same, k_cache=k_cache, v_cache=v_cache, backend="reference")
