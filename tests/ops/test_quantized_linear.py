"""The 8-bit linear map: the definition against fp32, every backend against the definition in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastssl import extension
from fastssl.ops.quantized_linear import native, reference
from fastssl.ops.quantized_linear.api import quantized_linear
from fastssl.ops.quantized_linear.cases import EDGE_CASES, QuantizedLinearCase
from fastssl.ops.quantized_linear.weight import quantize_weight
from tests.oracle import assert_within_budget

BACKENDS = [pytest.param("native", marks=pytest.mark.native), "stock", "reference"]
DTYPES = [torch.float32, torch.bfloat16]


def check(case: QuantizedLinearCase, dtype: torch.dtype, function) -> None:
    inputs = case.inputs(dtype)
    weight = quantize_weight(inputs["weight"])
    options = {"gelu": case.activation == "gelu"}
    rows, bias = inputs["x"].flatten(0, -2), inputs.get("bias")
    out = function(inputs["x"], weight, bias)
    assert out.shape == (*case.shape[:-1], case.outputs)
    assert out.dtype == dtype
    same = reference.forward(rows, weight, bias, **options)
    exact = reference.forward(rows.double(), weight, bias, **options)
    assert_within_budget("output", out.flatten(0, -2), same, exact, dtype)


def test_packed_weights_come_back():
    weight = torch.randn(37, 51, generator=torch.Generator().manual_seed(0))
    quantized = quantize_weight(weight)
    assert quantized.packed.shape == (4, 13, 16, 4)
    assert quantized.values().shape == (37, 51)
    assert (quantized.values().abs().amax(1) == 127).all()
    error = (quantized.values() * quantized.scale[:, None] - weight).abs()
    assert (error <= quantized.scale[:, None] * 0.5001).all()
    assert quantize_weight(torch.zeros(2, 3)).values().eq(0).all()


def test_the_definition_is_near_fp32():
    case = QuantizedLinearCase(shape=(50, 384), outputs=96, activation="gelu")
    x, weight, bias = case.inputs(torch.float32).values()
    y = quantized_linear(x, quantize_weight(weight), bias, activation="gelu", backend="reference")
    assert (y - F.gelu(F.linear(x, weight, bias))).abs().max() < 0.05


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
@pytest.mark.parametrize("vnni", [True, False])
def test_native_against_the_definition(capability, name, dtype, vnni):
    case = EDGE_CASES[name]

    def run(x, weight, bias):
        y = native.forward(x.flatten(0, -2), weight, bias, gelu=case.activation == "gelu", vnni=vnni)
        return y.unflatten(0, x.shape[:-1])

    check(case, dtype, run)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["prime", "no bias", "zeros", "no rows"])
def test_every_backend(backend, name):
    case = EDGE_CASES[name]
    check(
        case,
        torch.float32,
        lambda x, weight, bias: quantized_linear(x, weight, bias, activation=case.activation, backend=backend),
    )


@pytest.mark.native
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 70),
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 120),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "gelu"]),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(rows, inputs, outputs, bias, activation, dtype):
    case = QuantizedLinearCase(shape=(rows, inputs), outputs=outputs, bias=bias, activation=activation)
    check(case, dtype, lambda x, w, b: quantized_linear(x, w, b, activation=activation, backend="native"))


@pytest.mark.native
def test_gelu_everywhere(capability):
    x = torch.cat((torch.linspace(-12, 12, 20001), torch.tensor([-1e30, -100.0, -0.0, 0.0, 100.0, 1e30])))
    # Rows of one column: the product is x itself, to the bit.
    y = native.forward(x[:, None], quantize_weight(torch.ones(1, 1)), None, gelu=True)[:, 0]
    exact = F.gelu(x.double())
    assert ((y - exact).abs() <= 2.5e-6 + 4e-7 * x.abs()).all()


@pytest.mark.native
def test_the_number_of_threads_and_the_neighbours_change_nothing(capability, with_threads):
    x, weight, bias = QuantizedLinearCase(shape=(300, 65), outputs=130).inputs(torch.float32).values()
    weight = quantize_weight(weight)
    one, *others = (with_threads(n, lambda: native.forward(x, weight, bias, gelu=True)) for n in (1, 2, 5))
    assert all(torch.equal(one, other) for other in others)
    few = with_threads(5, lambda: native.forward(x[:7], weight, bias, gelu=True))
    assert torch.equal(few, one[:7])
    assert torch.equal(native.forward(x, weight, bias, gelu=True, vnni=False), one)


@pytest.mark.native
def test_halves_are_rounded_to_even(capability):
    x = torch.tensor([[254.0, 1, 3, 5, 7, -1, -3, -5, -254, 0]])
    y = native.forward(x, quantize_weight(torch.eye(10)), None, gelu=False)
    expected = torch.tensor([[254.0, 0, 4, 4, 8, 0, -4, -4, -254, 0]])
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_is_not_finite_is_nan_and_alone(backend):
    x = torch.randn(20, 33, generator=torch.Generator().manual_seed(0))
    x[3, 20], x[7, 0], x[9, 32] = torch.nan, torch.inf, -torch.inf
    y = quantized_linear(x, quantize_weight(torch.randn(8, 33)), backend=backend)
    broken = torch.zeros(20, dtype=torch.bool)
    broken[[3, 7, 9]] = True
    assert y[broken].isnan().all()
    assert y[~broken].isfinite().all()


@pytest.mark.native
def test_uninitialised_memory_is_not_read(poisoned_memory, capability):
    x, weight, bias = EDGE_CASES["prime"].inputs(torch.float32).values()
    assert quantized_linear(x, quantize_weight(weight), bias, backend="native").isfinite().all()


@pytest.mark.native
def test_opcheck():
    assert extension.cpu_ops_loaded()
    x, weight, bias = EDGE_CASES["prime"].inputs(torch.float32).values()
    weight = quantize_weight(weight)
    torch.library.opcheck(
        torch.ops.fastssl.quantized_linear.default, (x, weight.packed, weight.scale, weight.sum, bias, True, True)
    )


@pytest.mark.native
@pytest.mark.slow
def test_compiles():
    case = EDGE_CASES["prime"]
    x, weight, bias = case.inputs(torch.float32).values()
    weight = quantize_weight(weight)

    def call(x):
        return quantized_linear(x * 2, weight, bias, activation="gelu") + 1

    torch.testing.assert_close(torch.compile(call, fullgraph=True, dynamic=True)(x), call(x))


def test_wrong_calls_are_explained():
    weight = quantize_weight(torch.randn(5, 8))
    x = torch.randn(3, 8)
    with pytest.raises(ValueError, match=r"x must have shape \(..., 8\) for a weight of shape \(5, 8\), got \(3, 7\)"):
        quantized_linear(x[:, :7], weight)
    with pytest.raises(ValueError, match=r"bias must have shape \(5,\), got \(8,\)"):
        quantized_linear(x, weight, torch.zeros(8))
    with pytest.raises(ValueError, match=r"bias must be floating point, got torch\.int64"):
        quantized_linear(x, weight, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="activation must be one of none, gelu, got 'relu'"):
        quantized_linear(x, weight, activation="relu")
    with pytest.raises(ValueError, match="x must be floating point"):
        quantized_linear(x.int(), weight)
    with pytest.raises(ValueError, match="it has no gradient"):
        quantized_linear(x.requires_grad_(), weight)
    with pytest.raises(ValueError, match="at most 32768"):
        quantized_linear(torch.zeros(1, 32769), quantize_weight(torch.zeros(1, 32769)))
    with pytest.raises(ValueError, match=r"weight must have shape \(F, E\), got \(8,\)"):
        quantize_weight(torch.randn(8))
    with pytest.raises(ValueError, match="not finite"):
        quantize_weight(torch.tensor([[torch.nan]]))
