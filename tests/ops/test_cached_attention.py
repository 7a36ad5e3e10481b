"""Attention to a cache: the definition against `attention`, every backend against the definition in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl import extension
from fastssl.ops.attention.api import attention
from fastssl.ops.cached_attention.api import cached_attention
from fastssl.ops.cached_attention.cases import EDGE_CASES, CachedAttentionCase
from tests.oracle import assert_within_budget

BACKENDS = [pytest.param("native", marks=pytest.mark.native), "stock", "reference"]
CACHE_DTYPES = [torch.float32, torch.bfloat16]


def run(arguments: dict, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output and the caches after the call, on copies of the caches."""
    copies = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    out = cached_attention(**(arguments | copies), backend=backend)
    return out, *copies.values()


def widened(arguments: dict) -> dict:
    wide = {n: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in arguments.items()}
    if "rotary" in arguments:
        wide["rotary"] = tuple(table.double() for table in arguments["rotary"])
    return wide


def check(case: CachedAttentionCase, cache_dtype: torch.dtype, backend: str) -> None:
    arguments = case.inputs(cache_dtype)
    out, k_cache, v_cache = run(arguments, backend)
    same, k_same, v_same = run(arguments, "reference")
    assert out.dtype == torch.float32
    assert torch.equal(v_cache, v_same)
    torch.testing.assert_close(k_cache, k_same)  # turned keys may differ in their last bit
    # The exact result is that of the numbers which the cache holds.
    exact, *_ = run(widened(arguments), "reference")
    if cache_dtype == torch.bfloat16:
        held = widened(arguments) | {"k_cache": k_cache.double(), "v_cache": v_cache.double()}
        exact = attend(held)
    assert_within_budget("output", out, same, exact)


def attend(arguments: dict) -> Tensor:
    """Return the exact output from caches that hold the new token already."""
    rows = torch.arange(len(arguments["lengths"]))
    slots = arguments["lengths"] % arguments["k_cache"].shape[2]
    k, v = (arguments[name][rows, :, slots] for name in ("k_cache", "v_cache"))
    q = arguments["q"]
    if "rotary" in arguments:
        cos, sin = (table[:, None] for table in arguments["rotary"])
        low, high = q.chunk(2, dim=-1)
        q = q * cos + torch.cat((-high, low), dim=-1) * sin
    return run(arguments | {"q": q, "k": k, "v": v, "rotary": None}, "reference")[0]


@pytest.mark.parametrize("window", [None, 5])
def test_the_definition_is_causal_attention(window):
    generator = torch.Generator().manual_seed(0)
    tokens, heads, key_heads, width = 12, 4, 2, 8
    q = torch.randn(1, tokens, heads, width, generator=generator)
    k, v = (torch.randn(1, tokens, key_heads, width, generator=generator) for _ in range(2))
    left = None if window is None else (window - 1, 0)
    whole = attention(q, k, v, causal=True, window=left, backend="reference")[0]
    caches = torch.zeros(2, 1, key_heads, 7 if window else tokens, width)
    for position in range(tokens):
        lengths = torch.tensor([position])
        new = (q[:, position], k[:, position], v[:, position])
        out = cached_attention(*new, *caches, lengths, window=window, backend="reference")
        torch.testing.assert_close(out[0], whole[position])
        assert lengths.item() == position


@pytest.mark.native
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_native_against_the_definition(capability, name, cache_dtype):
    check(EDGE_CASES[name], cache_dtype, "native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_every_backend(backend, name):
    check(EDGE_CASES[name], torch.float32, backend)


@pytest.mark.native
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 700), min_size=1, max_size=4).map(tuple),
    key_heads=st.integers(1, 3),
    heads_per_key=st.integers(1, 9),
    width=st.integers(1, 50).map(lambda half: 2 * half),
    window=st.sampled_from([None, 1, 9, 600]),
    room=st.integers(0, 40),
    rotary=st.booleans(),
    cache_dtype=st.sampled_from(CACHE_DTYPES),
)
def test_any_shape(lengths, key_heads, heads_per_key, window, room, cache_dtype, **options):
    slots = (max(lengths) + 1 if window is None else window) + room
    case = CachedAttentionCase(
        lengths=lengths, slots=slots, heads=key_heads * heads_per_key, key_heads=key_heads, window=window, **options
    )
    check(case, cache_dtype, "native")


@pytest.mark.native
def test_neither_threads_nor_neighbours_change_a_sequence(capability, with_threads):
    case = CachedAttentionCase(lengths=(1900, 3, 700, 512), slots=1901, heads=6, key_heads=2, width=40, rotary=True)
    arguments = case.inputs()
    one, *others = (with_threads(n, lambda: run(arguments, "native")) for n in (1, 2, 5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for rows in ([0], [2, 1]):
        few = {n: t[rows] if isinstance(t, Tensor) else t for n, t in arguments.items()}
        few["rotary"] = tuple(table[rows] for table in arguments["rotary"])
        assert torch.equal(run(few, "native")[0], one[0][rows])


@pytest.mark.native
def test_slices_of_one_projection_and_of_larger_caches(capability):
    case = CachedAttentionCase(lengths=(9, 4), slots=12, heads=4, key_heads=2, width=24)
    arguments = case.inputs()
    expected, *caches = run(arguments, "reference")
    fused = torch.cat([arguments[name].flatten(1) for name in "qkv"], dim=1)
    q, k, v = (part.unflatten(1, (-1, 24)) for part in fused.split((96, 48, 48), dim=1))
    larger = torch.zeros(2, 3, 2, 20, 24)
    for cache, name in zip(larger, ("k_cache", "v_cache"), strict=True):
        cache[:2, :, :12] = arguments[name]
    views = {"q": q, "k": k, "v": v, "k_cache": larger[0, :2, :, :12], "v_cache": larger[1, :2, :, :12]}
    out = cached_attention(**(arguments | views), backend="native")
    torch.testing.assert_close(out, expected)
    for cache, same in zip(larger, caches, strict=True):
        torch.testing.assert_close(cache[:2, :, :12], same)
        assert cache[2].eq(0).all()
        assert cache[:, :, 12:].eq(0).all()


@pytest.mark.native
def test_slots_that_are_not_seen_are_not_read(poisoned_memory, capability):
    for name in ("different lengths", "ring with room", "several chunks"):
        case = EDGE_CASES[name]
        arguments = case.inputs()
        for sequence, length in enumerate(case.lengths):
            seen = {(length - age) % case.slots for age in range(min(length, (case.window or length + 1) - 1) + 1)}
            unseen = [slot for slot in range(case.slots) if slot not in seen]
            for cache in ("k_cache", "v_cache"):
                arguments[cache][sequence, :, unseen] = torch.nan
        assert run(arguments, "native")[0].isfinite().all()


@pytest.mark.native
@pytest.mark.parametrize("name", ["different lengths", "ring with room", "several chunks"])
def test_opcheck(name):
    assert extension.cpu_ops_loaded()
    case = EDGE_CASES[name]
    a = case.inputs()
    cos, sin = a.get("rotary", (None, None))
    lengths = a["lengths"].int()
    torch.library.opcheck(
        torch.ops.fastssl.cached_attention.default,
        (a["q"], a["k"], a["v"], a["k_cache"], a["v_cache"], lengths, case.window or 0, 0.25, cos, sin),
    )


@pytest.mark.native
@pytest.mark.slow
def test_compiles():
    arguments = EDGE_CASES["grouped"].inputs()

    def call(q, k_cache, v_cache):
        out = cached_attention(**(arguments | {"q": q * 2, "k_cache": k_cache, "v_cache": v_cache}))
        return out + 1, k_cache.sum(), v_cache.sum()

    with torch.inference_mode():
        results = []
        for function in (call, torch.compile(call, fullgraph=True, dynamic=True)):
            results.append(function(arguments["q"], arguments["k_cache"].clone(), arguments["v_cache"].clone()))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_cache_is_an_error(backend):
    arguments = CachedAttentionCase(lengths=(3, 5), slots=6).inputs()
    arguments["lengths"] += 1
    with pytest.raises(ValueError, match="a sequence has 6 tokens and the cache room for 6"):
        cached_attention(**arguments, backend=backend)
    with pytest.raises(ValueError, match="room for 6"):
        cached_attention(**(arguments | {"window": 7}), backend=backend)
    cached_attention(**(arguments | {"window": 6}), backend=backend)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_negative_lengths_are_refused_before_anything_is_written(backend, window, dtype):
    arguments = CachedAttentionCase(lengths=(3, 2), slots=6).inputs(dtype=dtype, cache_dtype=dtype)
    arguments |= {"lengths": torch.tensor([3, -1]), "window": window}
    before = arguments["k_cache"].clone()
    if backend == "native" and dtype == torch.float64:
        pytest.skip("the native backend takes float32")
    with torch.inference_mode(), pytest.raises(ValueError, match="lengths must be at least 0, got -1"):
        cached_attention(**arguments, backend=backend)
    assert torch.equal(arguments["k_cache"], before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_knows_of_the_writes(backend):
    arguments = CachedAttentionCase(lengths=(3, 2), slots=6).inputs()
    x = torch.ones(2, 2, 6, 16, requires_grad=True)
    loss = (x * arguments["k_cache"]).sum() + (x * arguments["v_cache"]).sum()
    with torch.no_grad():
        cached_attention(**arguments, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.native
def test_caches_of_inference_mode_are_written_to_outside_of_it():
    with torch.inference_mode():
        arguments = CachedAttentionCase(lengths=(3, 2), slots=6).inputs()
    with torch.no_grad():
        cached_attention(**arguments)


@pytest.mark.parametrize("backend", ["auto", "stock", "reference"])
def test_autocast_changes_nothing(backend):
    arguments = EDGE_CASES["grouped"].inputs()
    with torch.inference_mode():
        expected = run(arguments, backend)
        with torch.autocast("cpu", torch.bfloat16):
            for found, one in zip(run(arguments, backend), expected, strict=True):
                assert torch.equal(found, one)


@pytest.mark.native
def test_the_kernel_itself_writes_to_no_slot_outside_the_cache():
    a = CachedAttentionCase(lengths=(3,), slots=4).inputs()
    for length in (4, -1):
        with pytest.raises(RuntimeError, match="the cache has room for 4 tokens"):
            torch.ops.fastssl.cached_attention(
                a["q"], a["k"], a["v"], a["k_cache"], a["v_cache"], torch.tensor([length]), 0, 1.0, None, None
            )


@pytest.mark.parametrize("with_gradients", [True, False])
def test_wrong_calls_are_explained(with_gradients):
    with torch.set_grad_enabled(with_gradients):
        assert_wrong_calls_are_explained()
    a = CachedAttentionCase(lengths=(3, 2), slots=6).inputs()
    with pytest.raises(ValueError, match="it has no gradient, and q asks for one"):
        cached_attention(**(a | {"q": a["q"].clone().requires_grad_()}))


def assert_wrong_calls_are_explained():
    a = CachedAttentionCase(lengths=(3, 2), slots=6, heads=4, key_heads=2).inputs()
    with pytest.raises(ValueError, match=r"q must have shape \(B, H, D\), k and v \(B, H_k, D\)"):
        cached_attention(**(a | {"v": a["v"][:, :, 1:]}))
    with pytest.raises(ValueError, match="3 query heads are no multiple of 2 key heads"):
        cached_attention(**(a | {"q": a["q"][:, :3]}))
    with pytest.raises(ValueError, match=r"k_cache and v_cache must have shape \(2, 2, S, 16\)"):
        cached_attention(**(a | {"k_cache": a["k_cache"].transpose(1, 2)}))
    with pytest.raises(ValueError, match="window must be at least 1"):
        cached_attention(**(a | {"window": 0}))
    with pytest.raises(ValueError, match=r"window must be at least 1, the token itself, and a whole number, got 2\.5"):
        cached_attention(**(a | {"window": 2.5}))
    for rotary, types in (((torch.ones(2, 16),), "Tensor"), ((torch.ones(2, 16), None), "Tensor, NoneType")):
        with pytest.raises(ValueError, match=rf"rotary must be two tensors, cos and sin, got \({types}\)"):
            cached_attention(**a, rotary=rotary)
    with pytest.raises(ValueError, match=r"lengths must be int32 or int64 of shape \(2,\)"):
        cached_attention(**(a | {"lengths": a["lengths"].float()}))
    with pytest.raises(ValueError, match=r"rotary's sin must have shape \(2, 16\)"):
        cached_attention(**a, rotary=(torch.ones(2, 16), torch.ones(2, 8)))
    with pytest.raises(ValueError, match="q, k and v must be floating and of one dtype"):
        cached_attention(**(a | {"k": a["k"].double()}))
    with pytest.raises(ValueError, match="k_cache and v_cache must be floating and of one dtype"):
        cached_attention(**(a | {"k_cache": a["k_cache"].bfloat16()}))
    with pytest.raises(ValueError, match="room for 6"):
        cached_attention(**(a | {"lengths": a["lengths"] + 3}))
    with pytest.raises(ValueError, match="the caches are neither float32 nor bfloat16"):
        halves = {name: a[name].half() for name in ("k_cache", "v_cache")}
        cached_attention(**(a | halves), backend="native")


def test_caches_that_the_kernel_does_not_take_are_left_to_others():
    arguments = CachedAttentionCase(lengths=(3, 2), slots=6).inputs(torch.float16)
    with torch.inference_mode():
        for auto, stock in zip(run(arguments, "auto"), run(arguments, "stock"), strict=True):
            assert torch.equal(auto, stock)
