"""Bias + GELU in Triton: on a GPU, or in Triton's interpreter, against the definition in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.ops.backend import choose
from fastssl.ops.bias_gelu.api import APPROXIMATIONS, BACKENDS, bias_gelu
from fastssl.ops.bias_gelu.cases import EDGE_CASES, BiasGeluCase
from fastssl.ops.bias_gelu.triton_tiling import (
    BACKWARD_BYTES,
    FORWARD_BYTES,
    NUM_WARPS,
    RESIDENT,
    Processors,
    tiling_of,
    walk_of,
)
from tests.oracle import check_against_reference, gradients

pytestmark = pytest.mark.triton

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def call(backend, approximate="none"):
    """Return bias_gelu as a function of positional tensors of the CPU; Triton's runs where Triton runs."""
    device = DEVICE if backend == "triton" else "cpu"
    return lambda x, bias: bias_gelu(x.to(device), bias.to(device), approximate=approximate, backend=backend).cpu()


def check(inputs, approximate="none"):
    tested, reference = call("triton", approximate), call("reference", approximate)
    check_against_reference(tested, reference, [inputs["x"], inputs["bias"]], ["x", "bias"])


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_against_the_definition(name, dtype, approximate):
    if name == "1e4" and dtype == torch.float16:
        pytest.skip("1e4 times a normal deviate overflows float16")
    check(EDGE_CASES[name].inputs(dtype), approximate)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(0, 70),
    width=st.integers(1, 300),
    approximate=st.sampled_from(APPROXIMATIONS),
    dtype=st.sampled_from(DTYPES),
    bias_dtype=st.sampled_from(DTYPES),
)
def test_any_shape(rows, width, approximate, dtype, bias_dtype):
    check(BiasGeluCase(shape=(rows, width)).inputs(dtype, bias_dtype), approximate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [768, 1000, 1500, 3072, 3077])
def test_rows_of_several_tiles(width, dtype):
    check(BiasGeluCase(shape=(23, width)).inputs(dtype, torch.float32))


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_every_magnitude_against_float64(approximate):
    """Value and slope along the line, to a few units in the last place of max(1, |t|)."""
    t = torch.linspace(-16, 16, 20_000)
    t = torch.cat((t, t * 1e-3, t * 1e-20, t * 1e3, t * 1e30)).reshape(100, 1000)
    zero = torch.zeros(t.shape[1])
    y, exact = call("triton", approximate)(t, zero), call("reference", approximate)(t.double(), zero.double())
    assert ((y - exact).abs() / t.abs().clamp(min=1)).max() < 2.5e-7
    leaf, wide = t.clone().requires_grad_(), t.double().requires_grad_()
    (slope,) = torch.autograd.grad(call("triton", approximate)(leaf, zero).sum(), leaf)
    (exact_slope,) = torch.autograd.grad(call("reference", approximate)(wide, zero.double()).sum(), wide)
    near = t.abs() < 1e4
    assert (slope - exact_slope)[near].abs().max() < 1e-6
    assert torch.equal(slope[~near], (t[~near] > 0).float())


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_special_values(approximate):
    x = torch.tensor([[0.0, math.inf, -math.inf, math.nan, -50.0, 50.0]], requires_grad=True)
    y = call("triton", approximate)(x, torch.zeros(6))
    (slope,) = torch.autograd.grad(y.sum(), x)
    expected = torch.tensor([[0.0, math.inf, 0.0, math.nan, 0.0, 50.0]])
    torch.testing.assert_close(y.detach(), expected, atol=0, rtol=0, equal_nan=True)
    expected = torch.tensor([[0.5, 1.0, 0.0, math.nan, 0.0, 1.0]])
    torch.testing.assert_close(slope, expected, atol=1e-7, rtol=0, equal_nan=True)


def test_gradient_of_one_alone():
    x, bias = BiasGeluCase(shape=(9, 40)).inputs(torch.bfloat16, torch.float32).values()
    x, bias = x.to(DEVICE), bias.to(DEVICE)
    cotangent = torch.randn(9, 40, device=DEVICE).bfloat16()
    expected = torch.ops.fastssl.triton_bias_gelu_backward(cotangent, x, bias, False)
    for number, kept in enumerate((x, bias)):
        kept.requires_grad_()
        y = bias_gelu(x, bias, backend="triton")
        (found,) = torch.autograd.grad(y, kept, cotangent)
        assert found.dtype == kept.dtype and torch.equal(found, expected[number])
        kept.requires_grad_(False)
    assert not bias_gelu(x, bias, backend="triton").requires_grad


def test_nothing_but_the_inputs_is_saved():
    x, bias = (tensor.to(DEVICE).requires_grad_() for tensor in BiasGeluCase(shape=(9, 40)).inputs(torch.half).values())
    y = bias_gelu(x, bias, backend="triton")
    assert [tensor.data_ptr() for tensor in y.grad_fn.saved_tensors] == [x.data_ptr(), bias.data_ptr()]


def test_same_bits_on_repeat():
    inputs = list(EDGE_CASES["many rows"].inputs(torch.float32).values())
    cotangent = torch.randn(inputs[0].shape)

    def run():
        return [call("triton")(*inputs), *gradients(call("triton"), inputs, cotangent)]

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["prime", "no rows", "many rows"])
def test_poisoned_memory(poisoned_memory, name):
    inputs = list(EDGE_CASES[name].inputs(torch.float32).values())
    found = gradients(call("triton"), inputs, torch.ones_like(inputs[0]))
    for tensor in (call("triton")(*inputs), *found):
        assert not tensor.isnan().any()


def test_strided_inputs():
    inputs = BiasGeluCase(shape=(12, 40)).inputs(torch.float32)
    x, bias = inputs["x"].to(DEVICE), inputs["bias"].to(DEVICE)
    strided = [x.T.contiguous().T.requires_grad_(), bias.repeat_interleave(2)[::2].requires_grad_()]
    plain = [x.requires_grad_(), bias.requires_grad_()]
    outputs = [bias_gelu(*tensors, backend="triton") for tensors in (strided, plain)]
    cotangent = torch.randn(40, 12, device=DEVICE).T
    for a, b in zip(
        (outputs[0], *torch.autograd.grad(outputs[0], strided, cotangent)),
        (outputs[1], *torch.autograd.grad(outputs[1], plain, cotangent.contiguous())),
        strict=True,
    ):
        assert torch.equal(a, b)
    x.grad = None
    bias_gelu(x, bias, backend="triton").sum().backward()  # through an expanded gradient
    assert x.grad.shape == x.shape


def test_opcheck():
    x, bias = BiasGeluCase(shape=(6, 20)).inputs(torch.bfloat16, torch.float32).values()
    for tanh in (False, True):
        args = (x.to(DEVICE), bias.to(DEVICE), tanh)
        torch.library.opcheck(torch.ops.fastssl.triton_bias_gelu_forward.default, args)
        torch.library.opcheck(torch.ops.fastssl.triton_bias_gelu_backward.default, (args[0], *args))


def test_compile_with_dynamic_shapes():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(x, bias):
        return bias_gelu(x, bias, backend="triton")

    for rows in (4, 9):
        inputs = BiasGeluCase(shape=(rows, 32)).inputs(torch.float32)
        leaves = [tensor.to(DEVICE).requires_grad_() for tensor in inputs.values()]
        got, expected = compiled(*leaves), bias_gelu(*leaves, backend="triton")
        found, wanted = (torch.autograd.grad(y.square().sum(), leaves) for y in (got, expected))
        for a, b in zip((got, *found), (expected, *wanted), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("device", "chosen"), [("cpu", "stock"), ("cuda", "triton")])
def test_auto_takes_it_on_a_gpu_alone(device, chosen):
    others = {name: module for name, module in BACKENDS.items() if name != "native"}
    facts = {"bias_dtype": torch.float32}
    assert choose("bias_gelu", "auto", others, torch.device(device), torch.float32, facts) == chosen


def test_it_names_what_it_lacks():
    x = torch.ones(2, 4, device=DEVICE)
    with pytest.raises(ValueError, match="the bias is float64"):
        bias_gelu(x, x[0].double(), backend="triton")
    with pytest.raises(ValueError, match=r"torch\.float64"):
        bias_gelu(x.double(), x[0], backend="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_every_width(dtype):
    device = Processors(132, 228 * 1024)
    for width in range(1, 9000):
        for tile_bytes in (FORWARD_BYTES, BACKWARD_BYTES):
            tiling = tiling_of(width, dtype, tile_bytes)
            covered = tiling.blocks * tiling.columns
            assert width <= covered < max(17, 2 * width) and covered - width < 256
            assert tiling.rows % tiling.row_groups == 0 and tiling.columns % tiling.vector == 0
            assert tiling.rows * tiling.columns * dtype.itemsize == tile_bytes
            assert tiling.row_groups * tiling.columns >= 32 * NUM_WARPS * tiling.vector
        for num_rows in (1, 2, 1000, 131072):
            parts, stages = walk_of(num_rows, tiling, device)
            num_tiles = -(-num_rows // tiling.rows)
            assert 1 <= parts <= num_tiles and parts * tiling.blocks <= RESIDENT * device.count and stages >= 2


@pytest.mark.parametrize("width", [768, 1536, 3072, 4096])
def test_widths_of_models_waste_no_lane(width):
    tiling = tiling_of(width, torch.bfloat16, FORWARD_BYTES)
    assert tiling.blocks * tiling.columns == width


@ON_GPU
def test_offsets_beyond_31_bits():
    rows, width = 2**31 // 8192 + 3, 8192
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    x[-5:] = torch.randn(5, width)
    bias = torch.randn(width, device="cuda")
    y = bias_gelu(x.requires_grad_(), bias, backend="triton")
    (grad,) = torch.autograd.grad(y, x, y.detach())
    tail = x.detach()[-5:].clone().requires_grad_()
    expected = bias_gelu(tail, bias, backend="triton")
    assert torch.equal(y[-5:], expected)
    assert torch.equal(grad[-5:], torch.autograd.grad(expected, tail, expected.detach())[0])
