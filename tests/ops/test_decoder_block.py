"""A block of a decoder in one call, against its parts: their definitions are tested by themselves."""

import pytest
import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.cached_attention.api import cached_attention
from fastssl.ops.decoder_block import native
from fastssl.ops.decoder_block.api import decoder_block
from fastssl.ops.decoder_block.cases import EDGE_CASES
from fastssl.ops.decoder_block.weights import BlockWeights
from fastssl.ops.skinny_linear.api import skinny_linear
from tests.oracle import assert_within_budget

BACKENDS = [pytest.param("native", marks=pytest.mark.native), "stock", "reference"]
WEIGHT_DTYPES = [torch.float32, torch.bfloat16, torch.int8]


def run(arguments: dict, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output and the caches after the call, on copies of the caches."""
    copies = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    return decoder_block(**(arguments | copies), backend=backend), *copies.values()


def widened(value: object) -> object:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        parts = [widened(part) for part in value]
        return tuple(parts) if type(value) is tuple else type(value)(*parts)
    return value


def by_parts(x, weights: BlockWeights, k_cache, v_cache, lengths, *, activation, window, rotary=None, backend="native"):
    """What a caller would write without the operator."""
    qkv = skinny_linear(x, *weights.qkv, norm=weights.attention_norm, backend=backend)
    key_heads, width = k_cache.shape[1], k_cache.shape[3]
    heads = qkv.shape[1] // width - 2 * key_heads
    q, k, v = qkv.view(len(x), heads + 2 * key_heads, width).split((heads, key_heads, key_heads), dim=1)
    out = cached_attention(q, k, v, k_cache, v_cache, lengths, window=window, rotary=rotary, backend=backend)
    x = skinny_linear(out.flatten(1), *weights.out, residual=x, backend=backend)
    hidden = skinny_linear(x, *weights.up, norm=weights.mlp_norm, activation=activation, backend=backend)
    return skinny_linear(hidden, *weights.down, residual=x, backend=backend)


@pytest.mark.native
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_native_is_its_parts_to_the_bit(capability, name, weight_dtype):
    arguments = EDGE_CASES[name].inputs(weight_dtype)
    out, *caches = run(arguments, "native")
    copies = {cache: arguments[cache].clone() for cache in ("k_cache", "v_cache")}
    assert torch.equal(out, by_parts(**(arguments | copies)))
    assert all(torch.equal(a, b) for a, b in zip(caches, copies.values(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES[:2])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_every_backend(backend, name, weight_dtype):
    arguments = EDGE_CASES[name].inputs(weight_dtype)
    outputs = [run(a, b) for a, b in ((arguments, backend), (arguments, "reference"))]
    exact = {key: widened(value) for key, value in arguments.items()}
    exact["weights"] = BlockWeights(*(part._replace(**_wide(part)) for part in arguments["weights"]))
    for label, *tensors in zip(("output", "k_cache", "v_cache"), *outputs, run(exact, "reference"), strict=True):
        assert_within_budget(label, *tensors)


def _wide(part) -> dict[str, Tensor]:
    return {key: value.double() for key, value in part._asdict().items() if isinstance(value, Tensor)}


@pytest.mark.native
def test_the_number_of_threads_changes_nothing(with_threads):
    arguments = EDGE_CASES["llama"].inputs()
    one, *others = (with_threads(n, lambda: run(arguments, "native")[0]) for n in (1, 2, 5))
    assert all(torch.equal(one, other) for other in others)


@pytest.mark.native
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_opcheck(name, weight_dtype, monkeypatch):
    assert extension.cpu_ops_loaded()
    arguments = EDGE_CASES[name].inputs(weight_dtype)
    operator, calls = torch.ops.fastssl.decoder_block.default, []
    arguments |= {"window": arguments["window"] or None, "scale": 0.25, "rotary": arguments.get("rotary")}

    class Recorder:
        def decoder_block(self, *args):
            calls.append(args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops, "fastssl", Recorder())
        native.forward(**arguments)
    torch.library.opcheck(operator, calls[0])


@pytest.mark.native
@pytest.mark.slow
def test_compiles():
    arguments = EDGE_CASES["llama"].inputs()

    def call(x, k_cache, v_cache):
        out = decoder_block(**(arguments | {"x": x * 2, "k_cache": k_cache, "v_cache": v_cache}))
        return out + 1, k_cache.sum(), v_cache.sum()

    with torch.inference_mode():
        results = []
        for function in (call, torch.compile(call, fullgraph=True, dynamic=True)):
            results.append(function(arguments["x"], arguments["k_cache"].clone(), arguments["v_cache"].clone()))
        torch.testing.assert_close(*results)


@pytest.mark.native
def test_what_the_kernel_does_not_take_is_left_to_others():
    arguments = EDGE_CASES["gpt2"].inputs()
    weights = arguments["weights"]
    halves = weights._replace(up=weights.up._replace(bias=weights.up.bias.double()))
    strided = weights._replace(up=weights.up._replace(weight=weights.up.weight.T.contiguous().T))
    with torch.inference_mode():
        for other in (halves, strided):
            changed = arguments | {"weights": other}
            for auto, stock in zip(run(changed, "auto"), run(changed, "stock"), strict=True):
                assert torch.equal(auto, stock)


@pytest.mark.parametrize("backend", ["auto", "stock", "reference"])
def test_autocast_changes_nothing(backend):
    arguments = EDGE_CASES["gpt2"].inputs()
    with torch.inference_mode():
        expected = run(arguments, backend)
        with torch.autocast("cpu", torch.bfloat16):
            for found, one in zip(run(arguments, backend), expected, strict=True):
                assert torch.equal(found, one)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_knows_of_the_writes(backend):
    arguments = EDGE_CASES["gpt2"].inputs()
    x = torch.ones_like(arguments["k_cache"]).requires_grad_()
    loss = (x * arguments["k_cache"]).sum() + (x * arguments["v_cache"]).sum()
    with torch.no_grad():
        decoder_block(**arguments, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.int8])
def test_wrong_calls_are_explained(with_gradients, weight_dtype):
    a = EDGE_CASES["gpt2"].inputs(weight_dtype)
    weights = a["weights"]
    with torch.set_grad_enabled(with_gradients):
        with pytest.raises(ValueError, match=r"x must have shape \(B, E\)"):
            decoder_block(**(a | {"x": a["x"][0]}))
        with pytest.raises(ValueError, match=r"x must have shape \(..., 48\)"):
            decoder_block(**(a | {"x": a["x"][:, :47]}))
        with pytest.raises(ValueError, match="qkv must have"):
            decoder_block(**(a | {"weights": weights._replace(qkv=weights.out)}))
        with pytest.raises(ValueError, match=r"x must have shape \(..., 48\) for a weight of shape \(192, 48\)"):
            decoder_block(**(a | {"weights": weights._replace(down=weights.up)}))
        with pytest.raises(ValueError, match="both norms must be of one kind"):
            other = weights.mlp_norm._replace(kind="rms_norm")
            decoder_block(**(a | {"weights": weights._replace(mlp_norm=other)}))
        with pytest.raises(ValueError, match="the cache room for 31"):
            decoder_block(**(a | {"lengths": a["lengths"] + 1}))
        with pytest.raises(ValueError, match="lengths must be at least 0, got -1"):
            decoder_block(**(a | {"lengths": torch.full_like(a["lengths"], -1)}))
        with pytest.raises(ValueError, match=r"rotary must be two tensors, cos and sin, got \(Tensor\)"):
            decoder_block(**(a | {"rotary": (torch.ones(len(a["x"]), 16),)}))
        with pytest.raises(ValueError, match="activation must be one of"):
            decoder_block(**(a | {"activation": "relu"}))
