"""Bias + GELU: the definition against PyTorch, every backend against the definition in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.ops.bias_gelu.api import APPROXIMATIONS, bias_gelu
from fastssl.ops.bias_gelu.cases import EDGE_CASES, BiasGeluCase
from tests.oracle import assert_within_budget, check_against_reference, gradients

BACKENDS = [pytest.param("native", marks=pytest.mark.native), "stock", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def call(backend, approximate="none"):
    """Return bias_gelu as a function of positional tensors."""
    return lambda x, bias: bias_gelu(x, bias, approximate=approximate, backend=backend)


def check(inputs, approximate="none", backend="native"):
    tested, reference = call(backend, approximate), call("reference", approximate)
    check_against_reference(tested, reference, [inputs["x"], inputs["bias"]], ["x", "bias"])


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_gradcheck_of_the_reference(approximate):
    inputs = EDGE_CASES["prime"].inputs(torch.float64)
    leaves = [tensor[..., :20].requires_grad_() for tensor in inputs.values()]
    assert torch.autograd.gradcheck(call("reference", approximate), leaves)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_with_pytorch(backend, dtype, approximate):
    inputs = BiasGeluCase(shape=(6, 50)).inputs(dtype)
    out = bias_gelu(**inputs, approximate=approximate, backend=backend)
    expected = F.gelu(inputs["x"].float() + inputs["bias"].float(), approximate=approximate)
    assert out.dtype == dtype
    rtol = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(out.float(), expected, rtol=rtol, atol=rtol)


@pytest.mark.native
@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_native_against_the_definition(capability, name, dtype, approximate):
    if name == "1e4" and dtype == torch.float16:
        pytest.skip("1e4 times a normal deviate overflows float16")
    check(EDGE_CASES[name].inputs(dtype), approximate)


@pytest.mark.native
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 70),
    width=st.integers(1, 300),
    approximate=st.sampled_from(APPROXIMATIONS),
    dtype=st.sampled_from(DTYPES),
    bias_dtype=st.sampled_from(DTYPES),
)
def test_any_shape(rows, width, approximate, dtype, bias_dtype):
    check(BiasGeluCase(shape=(rows, width)).inputs(dtype, bias_dtype), approximate)


@pytest.mark.native
@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_every_magnitude_against_float64(capability, approximate):
    """Value and slope along the line, to a few units in the last place of max(1, |t|)."""
    t = torch.linspace(-12, 12, 200_003)
    t = torch.cat((t, t * 1e-3, t * 1e-20, t * 1e3, t * 1e30))[None]
    zero = torch.zeros(t.shape[1])
    y, exact = (bias_gelu(x, b, approximate=approximate) for x, b in ((t, zero), (t.double(), zero.double())))
    assert ((y - exact).abs() / t.abs().clamp(min=1)).max() < 2.5e-7
    leaf, wide = t.clone().requires_grad_(), t.double().requires_grad_()
    slope, exact_slope = (
        torch.autograd.grad(bias_gelu(x, zero.to(x.dtype), approximate=approximate).sum(), x)[0] for x in (leaf, wide)
    )
    exact_slope = exact_slope.nan_to_num(nan=0.0)  # of the tanh form, where the cube overflows
    near = t.abs() < 1e4
    assert (slope - exact_slope)[near].abs().max() < 1e-6
    torch.testing.assert_close(slope[~near], (t[~near] > 0).float(), atol=1e-6, rtol=0)


@pytest.mark.native
@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_special_values(capability, approximate):
    x = torch.tensor([[0.0, math.inf, math.nan, -50.0, 50.0]], requires_grad=True)
    y = bias_gelu(x, torch.zeros(5), approximate=approximate)
    assert y[0, 0] == 0 and y[0, 1] == math.inf and y[0, 2].isnan() and y[0, 3] == 0 and y[0, 4] == 50
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope[0, 0] == 0.5 and slope[0, 2].isnan()
    torch.testing.assert_close(slope[0, [1, 3, 4]], torch.tensor([1.0, 0.0, 1.0]), atol=1e-6, rtol=0)


@pytest.mark.native
def test_same_bits_on_repeat_and_for_any_thread_count(capability, with_threads):
    inputs = list(EDGE_CASES["many rows"].inputs(torch.float32).values())
    cotangent = torch.randn(inputs[0].shape)

    def run():
        return [call("native")(*inputs), *gradients(call("native"), inputs, cotangent)]

    first = with_threads(1, run)
    for num_threads in (1, 2, 3):
        for a, b in zip(first, with_threads(num_threads, run), strict=True):
            assert torch.equal(a, b)


@pytest.mark.native
@pytest.mark.parametrize("name", ["prime", "no rows", "many rows"])
def test_poisoned_memory(poisoned_memory, name):
    inputs = list(EDGE_CASES[name].inputs(torch.float32).values())
    found = gradients(call("native"), inputs, torch.ones_like(inputs[0]))
    for tensor in (call("native")(*inputs), *found):
        assert not tensor.isnan().any()


@pytest.mark.native
def test_strided_inputs():
    inputs = BiasGeluCase(shape=(12, 40)).inputs(torch.float32)
    expected = bias_gelu(**inputs, backend="native")
    x = inputs["x"].T.contiguous().T.requires_grad_()
    out = bias_gelu(x, inputs["bias"].repeat_interleave(2)[::2], backend="native")
    assert torch.equal(out, expected)
    out.sum().backward()  # through an expanded gradient
    assert x.grad.shape == x.shape


@pytest.mark.native
def test_opcheck():
    inputs = BiasGeluCase(shape=(6, 20)).inputs(torch.bfloat16)
    for tanh in (False, True):
        args = (inputs["x"], inputs["bias"].float(), tanh)
        torch.library.opcheck(torch.ops.fastssl.bias_gelu_forward.default, args)
        torch.library.opcheck(torch.ops.fastssl.bias_gelu_backward.default, (inputs["x"], *args))


@pytest.mark.native
def test_one_tensor_in_both_places_compiles():
    x = torch.randn(8, requires_grad=True)
    found = torch.compile(lambda x: bias_gelu(x, x), fullgraph=True, backend="aot_eager")(x)
    expected = bias_gelu(x, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x) for y in (found, expected)))


@pytest.mark.native
def test_compile_with_dynamic_shapes():
    compiled = torch.compile(bias_gelu, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 9):
        leaves = [tensor.requires_grad_() for tensor in BiasGeluCase(shape=(rows, 32)).inputs(torch.float32).values()]
        got, expected = compiled(*leaves), bias_gelu(*leaves)
        found, wanted = (torch.autograd.grad(y.square().sum(), leaves) for y in (got, expected))
        for a, b in zip((got, *found), (expected, *wanted), strict=True):
            assert torch.equal(a, b)


def test_autocast_leaves_dtypes_alone():
    x, bias = torch.randn(3, 8, dtype=torch.bfloat16), torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert bias_gelu(x, bias).dtype == torch.bfloat16
        assert bias_gelu(x.float(), bias).dtype == torch.float32


def test_float64_falls_back_and_is_exact():
    inputs = BiasGeluCase(shape=(3, 10)).inputs(torch.float64)
    expected = F.gelu(inputs["x"] + inputs["bias"])
    assert_within_budget("output", bias_gelu(**inputs), expected, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias": torch.ones(9)}, r"bias must have shape \(8,\) for x of shape \(3, 8\), got \(9,\)"),
        ({"bias": torch.ones(8, dtype=torch.int32)}, "bias must be floating point"),
        ({"x": torch.ones(3, 0), "bias": torch.ones(0)}, "at least one element"),
        ({"approximate": "erf"}, "approximate must be one of"),
        ({"backend": "fast"}, "does not exist"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        bias_gelu(**({"x": torch.ones(3, 8), "bias": torch.ones(8)} | arguments))


@pytest.mark.native
def test_native_names_what_it_lacks():
    with pytest.raises(ValueError, match="the bias is float64"):
        bias_gelu(torch.ones(2, 4), torch.ones(4, dtype=torch.float64), backend="native")
