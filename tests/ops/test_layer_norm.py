"""Layer norm: the definition against PyTorch, every backend against the definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.ops.layer_norm.api import layer_norm
from fastssl.ops.layer_norm.cases import EDGE_CASES, LayerNormCase
from fastssl.ops.philox import dropout_scale, layer_norm_keep_mask
from tests.oracle import assert_within_budget, check_against_reference, gradients

EPS = 1e-5
BACKENDS = [pytest.param("native", marks=pytest.mark.native), "stock", "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEED = 2**40 + 5


def call(case, backend, names, return_sum=False):
    """Return layer_norm as a function of positional tensors."""

    def function(*tensors):
        return layer_norm(
            **dict(zip(names, tensors, strict=True)),
            eps=case.eps,
            dropout_p=case.dropout_p,
            seed=SEED,
            return_sum=return_sum,
            backend=backend,
        )

    return function


def check(case, inputs, backend="native"):
    names = list(inputs)
    check_against_reference(call(case, backend, names), call(case, "reference", names), list(inputs.values()), names)


@pytest.mark.parametrize("name", [name for name, case in EDGE_CASES.items() if 0 < case.shape[0] < 10])
def test_gradcheck_of_the_reference(name):
    case = EDGE_CASES[name]
    if case.magnitude in (0.0, 1e4):
        pytest.skip("finite differences mean nothing where the deviation is tiny or huge")
    inputs = case.inputs(torch.float64)
    leaves = [tensor[..., :40].requires_grad_() for tensor in inputs.values()]
    assert torch.autograd.gradcheck(call(case, "reference", list(inputs), return_sum=True), leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_with_pytorch(backend, dtype):
    inputs = LayerNormCase(shape=(6, 50)).inputs(dtype)
    out = layer_norm(**inputs, eps=EPS, backend=backend)
    expected = F.layer_norm(inputs["x"], (50,), inputs["weight"], inputs["bias"], EPS)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected)


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_native_against_the_definition(capability, name, dtype):
    if name == "1e4" and dtype == torch.float16:
        pytest.skip("1e4 times a normal deviate overflows float16")
    check(EDGE_CASES[name], EDGE_CASES[name].inputs(dtype))


@pytest.mark.native
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 70),
    width=st.integers(2, 300),
    bias=st.booleans(),
    residual=st.booleans(),
    dropout_p=st.sampled_from([0.0, 0.1, 0.7]),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(rows, width, bias, residual, dropout_p, dtype):
    case = LayerNormCase(shape=(rows, width), bias=bias, residual=residual, dropout_p=dropout_p, eps=1e-3)
    check(case, case.inputs(dtype))


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_dtypes(capability, dtype):
    case = LayerNormCase(shape=(21, 77), residual=True, dropout_p=0.2)
    inputs = case.inputs(dtype, residual_dtype=torch.float32)
    inputs["weight"] = inputs["weight"].float()
    inputs["bias"] = inputs["bias"].float()
    check(case, inputs)
    y, total = call(case, "native", list(inputs), return_sum=True)(*inputs.values())
    assert (y.dtype, total.dtype) == (dtype, torch.float32)


@pytest.mark.native
@pytest.mark.parametrize("name", ["prime", "residual", "no bias", "dropout alone"])
def test_returned_sum_and_its_gradient(capability, name):
    case = EDGE_CASES[name]
    inputs = case.inputs(torch.float32)
    names, tensors = list(inputs), list(inputs.values())

    def both(backend):
        def function(*tensors):
            y, total = call(case, backend, names, return_sum=True)(*tensors)
            return y * total

        return function

    check_against_reference(both("native"), both("reference"), tensors, names)


@pytest.mark.native
def test_gradient_through_the_sum_alone():
    x, residual = (torch.randn(3, 8, requires_grad=True) for _ in range(2))
    _, total = layer_norm(x, torch.ones(8), eps=EPS, residual=residual, return_sum=True, backend="native")
    total.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 8))
    torch.testing.assert_close(residual.grad, torch.ones(3, 8))


@pytest.mark.native
@pytest.mark.parametrize("residual_dtype", [None, torch.bfloat16, torch.float32])
def test_gradient_through_the_sum_alone_and_a_mask(capability, residual_dtype):
    case = LayerNormCase(shape=(9, 131), residual=residual_dtype is not None, dropout_p=0.3)
    inputs = case.inputs(torch.bfloat16, residual_dtype)
    names, tensors = list(inputs), list(inputs.values())
    cotangent = torch.randn(case.shape)

    def found(backend):
        function = call(case, backend, names, return_sum=True)
        return gradients(lambda *tensors: function(*tensors)[1], tensors, cotangent)

    for a, b in zip(found("native"), found("reference"), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.native
@pytest.mark.parametrize("width", [5, 128, 131])
def test_mask_is_the_philox_oracle(capability, width):
    x = torch.ones(33, width)
    p, seed = 0.3, -(2**61) - 7
    for backend in ("native", "reference"):
        _, total = layer_norm(x, x[0], eps=EPS, dropout_p=p, seed=torch.tensor(seed), return_sum=True, backend=backend)
        expected = layer_norm_keep_mask(33, width, p, seed) * dropout_scale(p)
        torch.testing.assert_close(total, expected.float())


@pytest.mark.native
def test_mask_of_rows_beyond_the_first_is_that_of_their_index():
    x = torch.ones(40, 16)
    sums = [
        layer_norm(x[:n], x[0], eps=EPS, dropout_p=0.5, seed=1, return_sum=True, backend="native")[1] for n in (8, 40)
    ]
    assert torch.equal(sums[0], sums[1][:8])


@pytest.mark.native
def test_same_bits_on_repeat_and_for_any_thread_count(capability, with_threads):
    case = LayerNormCase(shape=(700, 131), residual=True, dropout_p=0.1)
    inputs = case.inputs(torch.float32)
    function = call(case, "native", list(inputs))
    cotangent = torch.randn(case.shape)

    def run():
        return [function(*inputs.values()), *gradients(function, list(inputs.values()), cotangent)]

    first = with_threads(1, run)
    for num_threads in (1, 2, 3):
        for a, b in zip(first, with_threads(num_threads, run), strict=True):
            assert torch.equal(a, b)


@pytest.mark.native
@pytest.mark.parametrize("name", ["prime", "no rows", "width one"])
def test_poisoned_memory(poisoned_memory, name):
    case = EDGE_CASES[name]
    inputs = case.inputs(torch.float32)
    function = call(case, "native", list(inputs), return_sum=True)
    y, total = function(*inputs.values())
    found = gradients(lambda *tensors: sum(function(*tensors)), list(inputs.values()), torch.ones(case.shape))
    for tensor in (y, total, *found):
        assert not tensor.isnan().any()


@pytest.mark.native
def test_strided_inputs():
    case = LayerNormCase(shape=(12, 40), residual=True)
    inputs = case.inputs(torch.float32)
    expected = call(case, "native", list(inputs))(*inputs.values())
    inputs["x"] = inputs["x"].T.contiguous().T
    inputs["weight"] = inputs["weight"].repeat_interleave(2)[::2]
    assert torch.equal(call(case, "native", list(inputs))(*inputs.values()), expected)
    x = inputs["x"].detach().requires_grad_()
    layer_norm(x, inputs["weight"], eps=EPS).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.native
def test_one_tensor_in_two_places():
    x = torch.randn(5, 24, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(24)

    def function(backend):
        return lambda x: layer_norm(x, weight.to(x.dtype), x[0], eps=EPS, residual=x, backend=backend)

    check_against_reference(function("native"), function("reference"), [x], ["x"])


def test_normalised_rows_and_shift_invariance():
    x = torch.randn(20, 300)
    y = layer_norm(x, torch.ones(300), eps=1e-12)
    torch.testing.assert_close(y.mean(-1), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(20))
    torch.testing.assert_close(layer_norm(x + 4, torch.ones(300), eps=1e-12), y, atol=1e-5, rtol=1e-4)


def test_seed_from_the_generator():
    x = torch.ones(4, 64)

    def draw():
        return layer_norm(x, x[0], eps=EPS, dropout_p=0.5, return_sum=True)[1]

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert torch.equal(first, draw())
    assert not torch.equal(first, second)


def test_float64_falls_back_and_is_exact():
    inputs = LayerNormCase(shape=(3, 10)).inputs(torch.float64)
    out = layer_norm(**inputs, eps=EPS)
    expected = F.layer_norm(inputs["x"], (10,), inputs["weight"], inputs["bias"], EPS)
    assert_within_budget("output", out, expected, expected)


def check_that_y_does_not_depend_on_who_asks(case, inputs, backend, call):
    """With and without the sum, with and without gradients: the same bits of y."""
    names, tensors = list(inputs), list(inputs.values())
    alone = call(case, backend, names)(*tensors)
    assert torch.equal(call(case, backend, names, return_sum=True)(*tensors)[0], alone)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    assert torch.equal(call(case, backend, names)(*leaves).detach(), alone)


@pytest.mark.native
@pytest.mark.parametrize("name", ["prime", "residual", "no bias", "dropout alone"])
def test_y_does_not_depend_on_who_asks(name):
    for residual_dtype in (torch.bfloat16, torch.float32):
        inputs = EDGE_CASES[name].inputs(torch.bfloat16, residual_dtype)
        check_that_y_does_not_depend_on_who_asks(EDGE_CASES[name], inputs, "native", call)


@pytest.mark.native
def test_opcheck():
    case = LayerNormCase(shape=(6, 20), residual=True, dropout_p=0.1)
    inputs = case.inputs(torch.bfloat16)
    x, weight, bias, residual = (inputs[name] for name in ("x", "weight", "bias", "residual"))
    seed = torch.tensor(3)
    forward, backward = torch.ops.fastssl.layer_norm_forward.default, torch.ops.fastssl.layer_norm_backward.default
    for residual_in, threshold in ((None, 0), (residual, 0), (None, 100), (residual.float(), 100)):
        args = (x, weight, bias, residual_in, EPS, threshold, seed, True)
        torch.library.opcheck(forward, (*args[:-1], False))
        torch.library.opcheck(forward, args)
        y, total, mean, rstd = forward(*args)
        total = total if total.numel() else x
        for grad_y, grad_sum in ((y, None), (y, torch.ones_like(total)), (None, torch.ones_like(total))):
            torch.library.opcheck(
                backward, (grad_y, grad_sum, total, weight, mean, rstd, threshold, seed, total.dtype != y.dtype)
            )


@pytest.mark.native
def test_compile_with_dynamic_shapes():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(x, weight, bias, residual, seed):
        return layer_norm(x, weight, bias, eps=EPS, residual=residual, dropout_p=0.2, seed=seed, return_sum=True)

    for rows in (4, 9):
        case = LayerNormCase(shape=(rows, 32), residual=True, dropout_p=0.2)
        leaves = [tensor.requires_grad_() for tensor in case.inputs(torch.float32).values()]
        got = compiled(*leaves, torch.tensor(SEED))
        expected = call(case, "native", ["x", "weight", "bias", "residual"], return_sum=True)(*leaves)
        for a, b in zip(
            (*got, *torch.autograd.grad((got[0] * got[1]).sum(), leaves)),
            (*expected, *torch.autograd.grad((expected[0] * expected[1]).sum(), leaves)),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.native
def test_one_tensor_in_several_places_compiles():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x, weight):
        return layer_norm(x, weight, weight, eps=EPS, residual=x)

    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    expected = layer_norm(2 * x, weight, weight, eps=EPS)
    found = compiled(x, weight)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (x, weight)) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)
    whole = torch.compile(lambda x: layer_norm(x, x, x, eps=EPS), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(weight), layer_norm(weight, weight, weight, eps=EPS))


def test_autocast_leaves_dtypes_alone():
    x, weight = torch.randn(3, 8, dtype=torch.bfloat16), torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer_norm(x, weight, eps=EPS).dtype == torch.bfloat16
        assert layer_norm(x.float(), weight, eps=EPS).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.ones(9)}, r"weight must have shape \(8,\) for x of shape \(3, 8\), got \(9,\)"),
        ({"bias": torch.ones(2, 8)}, "bias must have shape"),
        ({"residual": torch.ones(3, 1)}, "residual must have shape"),
        ({"residual": torch.ones(3, 8, dtype=torch.int32)}, "residual must be floating point"),
        ({"x": torch.ones(3, 0), "weight": torch.ones(0)}, "at least one element"),
        ({"dropout_p": 1.0}, "dropout_p must be at least 0 and below 1"),
        ({"dropout_p": 0.5, "seed": torch.ones(1)}, "0-d int64"),
        ({"eps": -1.0}, "eps must be at least 0, got -1.0"),
        ({"backend": "fast"}, "does not exist"),
        ({"backend": "stock", "dropout_p": 0.5}, "another mask"),
    ],
)
def test_errors(arguments, message):
    arguments = {"x": torch.ones(3, 8), "weight": torch.ones(8), "eps": EPS} | arguments
    with pytest.raises(ValueError, match=message):
        layer_norm(**arguments)


@pytest.mark.native
def test_native_names_what_it_lacks():
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match="residual must have the dtype of x"):
        layer_norm(x, x[0], eps=EPS, residual=x.bfloat16(), backend="native")
    with pytest.raises(ValueError, match=r"torch.float64"):
        layer_norm(x.double(), x[0], eps=EPS, backend="native")
    assert layer_norm(x, x[0], eps=EPS, residual=x.bfloat16()).dtype == torch.float32


@pytest.mark.native
@pytest.mark.parametrize("width", [36, 80, 200])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(capability, width, p):
    generator = torch.Generator().manual_seed(0)
    x, residual, grad_y = (torch.randn(11, width, generator=generator) for _ in range(3))
    weight, bias = torch.rand(width, generator=generator), torch.randn(width, generator=generator)

    def rows(end: int) -> list[torch.Tensor]:
        inputs = [t[:end].clone().requires_grad_() for t in (x, residual)]
        y = layer_norm(inputs[0], weight, bias, eps=1e-12, residual=inputs[1], dropout_p=p, seed=1, backend="native")
        return [y, *torch.autograd.grad(y, inputs, grad_y[:end])]

    together = rows(11)
    for end in (1, 3, 4, 7):
        for some, all_rows in zip(rows(end), together, strict=True):
            assert torch.equal(some, all_rows[:end])
