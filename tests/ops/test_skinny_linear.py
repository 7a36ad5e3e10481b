"""The linear map of few rows: the definition against PyTorch's modules, every backend against it in float64."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastssl import extension
from fastssl.ops.quantized_linear.weight import QuantizedWeight, quantize_weight
from fastssl.ops.skinny_linear import native, reference
from fastssl.ops.skinny_linear.api import skinny_linear
from fastssl.ops.skinny_linear.cases import EDGE_CASES, SkinnyLinearCase
from fastssl.ops.skinny_linear.norm import RowNorm
from tests.oracle import assert_within_budget

BACKENDS = [pytest.param("native", marks=pytest.mark.native), "stock", "reference"]
WEIGHT_DTYPES = [torch.float32, torch.bfloat16, torch.int8]
ROUNDING = 1 / 65278
"""Of a row of x to 16 bits, in units of its largest number."""
SLOPE = 1.13
"""The largest of an activation."""


def widened(arguments: dict) -> dict:
    wide = {name: t.double() if isinstance(t, Tensor) else t for name, t in arguments.items()}
    if arguments.get("norm") is not None:
        wide["norm"] = arguments["norm"]._replace(weight=arguments["norm"].weight.double())
    return wide


def check(case: SkinnyLinearCase, weight_dtype: torch.dtype, function) -> None:
    arguments = case.inputs(weight_dtype)
    out = function(**arguments)
    same, exact = (skinny_linear(**a, backend="reference") for a in (arguments, widened(arguments)))
    assert out.dtype == torch.float32
    # The same sums, less what 16 bits can hold of x.
    allowed = 0.0
    if weight_dtype == torch.int8:
        assert case.activation != "swiglu" or case.magnitude <= 1
        allowed = rounding_of(arguments) * (SLOPE if case.activation != "swiglu" else 12)
    lower, upper = exact - allowed, exact + allowed
    assert_within_budget("output", out, same, torch.minimum(torch.maximum(out.double(), lower), upper))


def rounding_of(arguments: dict) -> float:
    x, weight = arguments["x"].double(), arguments["weight"]
    if arguments.get("norm") is not None:
        x = reference.normalised(x, arguments["norm"])
    if x.numel() == 0:
        return 0.0
    sums = (weight.values().double().abs().sum(1) * weight.scale).max()
    return float(x.abs().max() * sums) * ROUNDING


def test_the_definition_is_what_modules_compute():
    torch.manual_seed(0)
    x, residual = torch.randn(5, 24), torch.randn(5, 16)
    linear = torch.nn.Linear(24, 16)
    norm, rms = torch.nn.LayerNorm(24, eps=1e-3), torch.nn.RMSNorm(24, eps=1e-3)
    for module, kind, activation, function in (
        (norm, "layer_norm", "gelu", F.gelu),
        (norm, "layer_norm", "gelu_tanh", lambda y: F.gelu(y, approximate="tanh")),
        (rms, "rms_norm", "silu", F.silu),
        (rms, "rms_norm", "none", lambda y: y),
    ):
        with torch.no_grad():
            torch.nn.init.normal_(module.weight)
            expected = function(linear(module(x))) + residual
            row_norm = RowNorm(module.weight, getattr(module, "bias", None), 1e-3, kind)
            y = skinny_linear(
                x, linear.weight, linear.bias, norm=row_norm, activation=activation, residual=residual,
                backend="reference",
            )  # fmt: skip
        torch.testing.assert_close(y, expected)
    with torch.no_grad():
        gates, others = linear(x).chunk(2, dim=-1)
        y = skinny_linear(x, linear.weight, linear.bias, activation="swiglu", backend="reference")
        torch.testing.assert_close(y, F.silu(gates) * others)


@pytest.mark.native
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_native_against_the_definition(capability, name, weight_dtype):
    check(EDGE_CASES[name], weight_dtype, lambda **a: skinny_linear(**a, backend="native"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("name", ["prime", "no bias", "gated", "no rows", "one dimension"])
def test_every_backend(backend, name, weight_dtype):
    check(EDGE_CASES[name], weight_dtype, lambda **a: skinny_linear(**a, backend=backend))


@pytest.mark.native
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 32),
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 60).map(lambda half: 2 * half),
    bias=st.booleans(),
    residual=st.booleans(),
    norm=st.sampled_from([None, "layer_norm", "rms_norm"]),
    activation=st.sampled_from(list(native.ACTIVATIONS)),
    weight_dtype=st.sampled_from(WEIGHT_DTYPES),
)
def test_any_shape(rows, inputs, outputs, weight_dtype, **options):
    case = SkinnyLinearCase(shape=(rows, inputs), outputs=outputs, **options)
    check(case, weight_dtype, lambda **a: skinny_linear(**a, backend="native"))


@pytest.mark.native
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
def test_neither_threads_nor_neighbours_change_a_row(capability, with_threads, weight_dtype):
    case = SkinnyLinearCase(shape=(23, 1300), outputs=335, norm="layer_norm", activation="gelu", residual=True)
    arguments = case.inputs(weight_dtype)
    one, *others = (with_threads(n, lambda: skinny_linear(**arguments, backend="native")) for n in (1, 2, 5))
    assert all(torch.equal(one, other) for other in others)
    for rows in ([0], [4, 5], [1, 3, 22], list(range(6)), list(range(9, 22))):
        few = arguments | {name: arguments[name][rows] for name in ("x", "residual")}
        assert torch.equal(skinny_linear(**few, backend="native"), one[rows]), rows


@pytest.mark.native
@pytest.mark.parametrize("inputs", [3, 63, 64, 130, 515])
@pytest.mark.parametrize("rows", [1, 3, 8, 11, 33, 70])
def test_8_bit_sums_are_the_same_by_any_instructions(capability, rows, inputs):
    arguments = SkinnyLinearCase(shape=(rows, inputs), outputs=70).inputs(torch.int8)
    options = {"norm": None, "residual": None, **arguments}
    first, *others = (native.forward(**options, instructions=name) for name in native.INSTRUCTIONS)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.native
@pytest.mark.parametrize("shape", [(1, 32, 16), (2, 2, 17), (5, 94, 33), (13, 770, 50), (17, 64, 16), (32, 126, 35)])
@pytest.mark.parametrize("instructions", native.INSTRUCTIONS)
def test_bfloat16_weights_by_any_instructions(capability, shape, instructions):
    rows, inputs, outputs = shape
    case = SkinnyLinearCase(shape=(rows, inputs), outputs=outputs, residual=True)

    def run(**arguments):
        return native.forward(**({"norm": None} | arguments), instructions=instructions)

    check(case, torch.bfloat16, run)
    check(dataclasses.replace(case, magnitude=1e-30), torch.bfloat16, run)


@pytest.mark.native
def test_bfloat16_parts_lose_nothing(capability):
    # Every number is a sum of three of bfloat16, and a column of the identity multiplies it with one and zeros.
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 96)
    y = skinny_linear(x, torch.eye(96, dtype=torch.bfloat16), backend="native")
    torch.testing.assert_close(y, x, rtol=1e-7, atol=0)


@pytest.mark.native
def test_largest_8_bit_sums(capability):
    weight = torch.tensor([[-1.0], [1.0]]).repeat(1, 32768)
    x = weight.repeat(5, 1)
    y = skinny_linear(x, quantize_weight(weight), backend="native")
    torch.testing.assert_close(y, x @ weight.T)


@pytest.mark.native
def test_8_bit_numbers_at_the_edges_of_their_bytes(capability):
    # Whole numbers are exact where the largest stands for itself; 127 and 128 are split into different bytes.
    x = torch.tensor([[32639.0, 127, 128, -127, -128, -129, 32512, -32639, 0, 1]])
    weight = quantize_weight(torch.eye(10))
    torch.testing.assert_close(skinny_linear(x, weight, backend="native"), x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
def test_a_row_that_is_not_finite_is_alone(backend, weight_dtype):
    arguments = SkinnyLinearCase(shape=(9, 34), outputs=18).inputs(weight_dtype)
    arguments["x"][3, 20], arguments["x"][7, 0] = torch.nan, torch.inf
    arguments["x"].view(torch.int32)[3, 20] = 0x7FFFFFFF
    y = skinny_linear(**arguments, backend=backend)
    broken = torch.zeros(9, dtype=torch.bool)
    broken[[3, 7]] = True
    assert not y[broken].isfinite().any()
    assert y[~broken].isfinite().all()


@pytest.mark.native
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
def test_uninitialised_memory_is_not_read(poisoned_memory, capability, weight_dtype):
    for name in ("prime", "gated"):
        assert skinny_linear(**EDGE_CASES[name].inputs(weight_dtype), backend="native").isfinite().all()


@pytest.mark.native
def test_operands_of_other_dtypes_and_strides():
    case = dataclasses.replace(EDGE_CASES["prime"], residual=False)
    arguments = case.inputs()
    expected = skinny_linear(**arguments, backend="reference")
    strided = arguments | {
        "x": torch.stack((arguments["x"], arguments["x"]), dim=-1)[..., 0],
        "weight": arguments["weight"].T.contiguous().T,
        "bias": arguments["bias"].double(),
    }
    torch.testing.assert_close(skinny_linear(**strided, backend="native"), expected)


@pytest.mark.native
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("name", ["prime", "gated"])
def test_opcheck(name, weight_dtype):
    assert extension.cpu_ops_loaded()
    arguments = EDGE_CASES[name].inputs(weight_dtype)
    weight, scale = arguments["weight"], None
    if isinstance(weight, QuantizedWeight):
        weight, scale = weight.packed, weight.scale
    norm = arguments.get("norm", (None, None))
    activation = native.ACTIVATIONS[arguments["activation"]]
    torch.library.opcheck(
        torch.ops.fastssl.skinny_linear.default,
        (arguments["x"], weight, scale, arguments["bias"], *norm[:2], 1e-5, True, activation, arguments["residual"],
         2),
    )  # fmt: skip


@pytest.mark.native
@pytest.mark.slow
def test_compiles():
    arguments = EDGE_CASES["prime"].inputs()

    def call(x):
        return skinny_linear(**(arguments | {"x": x * 2})) + 1

    with torch.inference_mode():
        x = arguments["x"]
        torch.testing.assert_close(torch.compile(call, fullgraph=True, dynamic=True)(x), call(x))


@pytest.mark.parametrize("with_gradients", [True, False])
def test_wrong_calls_are_explained(with_gradients):
    with torch.set_grad_enabled(with_gradients):
        assert_wrong_calls_are_explained()
    weight = torch.randn(6, 8).requires_grad_()
    with pytest.raises(ValueError, match=r"it has no gradient, and weight asks for one; call it under torch.no_grad"):
        skinny_linear(torch.randn(3, 8), weight)


def assert_wrong_calls_are_explained():
    x, weight = torch.randn(3, 8), torch.randn(6, 8)
    norm = RowNorm(torch.ones(8), None, 1e-5)
    with pytest.raises(ValueError, match=r"x must have shape \(..., 8\) for a weight of shape \(6, 8\), got \(3, 7\)"):
        skinny_linear(x[:, :7], weight)
    with pytest.raises(ValueError, match=r"weight must be floating of shape \(F, E\)"):
        skinny_linear(x, weight[0])
    with pytest.raises(ValueError, match=r"weight must be floating of shape \(F, E\)"):
        skinny_linear(x, weight[0, 0])
    with pytest.raises(ValueError, match=r"bias must be floating point, got torch\.int64"):
        skinny_linear(x, weight, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"norm\.weight must be floating point, got torch.int32"):
        skinny_linear(x, weight, norm=norm._replace(weight=torch.ones(8, dtype=torch.int32)))
    with pytest.raises(ValueError, match=r"bias must have shape \(6,\), got \(8,\)"):
        skinny_linear(x, weight, torch.zeros(8))
    with pytest.raises(ValueError, match="activation must be one of none, gelu, gelu_tanh, silu, swiglu, got 'relu'"):
        skinny_linear(x, weight, activation="relu")
    with pytest.raises(ValueError, match="swiglu needs an even number of rows of the weight, got 5"):
        skinny_linear(x, weight[:5], activation="swiglu")
    with pytest.raises(ValueError, match=r"residual must be torch.float32 of shape \(3, 3\)"):
        skinny_linear(x, weight, activation="swiglu", residual=torch.zeros(3, 6))
    with pytest.raises(ValueError, match=r"norm.weight must have shape \(8,\), got \(6,\)"):
        skinny_linear(x, weight, norm=norm._replace(weight=torch.ones(6)))
    with pytest.raises(ValueError, match=r"norm\.kind must be one of layer_norm, rms_norm, got 'batch'"):
        skinny_linear(x, weight, norm=norm._replace(kind="batch"))
    with pytest.raises(ValueError, match="x must be floating point"):
        skinny_linear(x.int(), weight)
    with pytest.raises(ValueError, match=r"x must have shape \(..., 8\) for a weight of shape \(6, 8\), got \(3, 7\)"):
        skinny_linear(x[:, :7], quantize_weight(weight))
    with pytest.raises(ValueError, match=r"residual must be torch.float32 of shape \(3, 6\)"):
        skinny_linear(x, weight, residual=torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"x must have shape \(..., 0\)"):
        skinny_linear(x[:, :0], weight[:, :0])
    with pytest.raises(ValueError, match="x has more than 32 rows"):
        skinny_linear(torch.randn(33, 8), weight, backend="native")


@pytest.mark.parametrize("backend", ["auto", "stock", "reference"])
@pytest.mark.parametrize("num_rows", [32, 33])
def test_autocast_changes_nothing(backend, num_rows):
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(rows, 8, generator=generator) for rows in (num_rows, 6))
    with torch.inference_mode():
        expected = skinny_linear(x, weight, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(skinny_linear(x, weight, backend=backend), expected)


@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.float16])
def test_what_the_kernel_does_not_take_is_left_to_others(weight_dtype):
    case = EDGE_CASES["prime"]
    arguments = case.inputs(weight_dtype)
    with torch.inference_mode():
        expected = skinny_linear(**arguments, backend="stock")
        assert torch.equal(skinny_linear(**arguments), expected)
        many = dataclasses.replace(case, shape=(40, 131)).inputs()
        assert torch.equal(skinny_linear(**many), skinny_linear(**many, backend="stock"))
