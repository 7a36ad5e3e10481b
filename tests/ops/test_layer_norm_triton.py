"""Layer norm in Triton: on a GPU, or in Triton's interpreter, against the definition in float64."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl import extension
from fastssl.ops.backend import choose
from fastssl.ops.layer_norm.api import BACKENDS, layer_norm
from fastssl.ops.layer_norm.cases import EDGE_CASES, LayerNormCase
from fastssl.ops.layer_norm.triton_tiling import MAX_WIDTH, Processors, backward_tiling, forward_tiling
from fastssl.ops.philox import dropout_scale, layer_norm_keep_mask
from tests.ops.test_layer_norm import check_that_y_does_not_depend_on_who_asks
from tests.oracle import check_against_reference, gradients

pytestmark = pytest.mark.triton

EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEED = 2**40 + 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def call(case, backend, names, return_sum=False):
    """Return layer_norm as a function of positional tensors of the CPU; Triton's runs where Triton runs."""
    device = DEVICE if backend == "triton" else "cpu"

    def function(*tensors):
        out = layer_norm(
            **{name: tensor.to(device) for name, tensor in zip(names, tensors, strict=True)},
            eps=case.eps,
            dropout_p=case.dropout_p,
            seed=SEED,
            return_sum=return_sum,
            backend=backend,
        )
        return tuple(tensor.cpu() for tensor in out) if return_sum else out.cpu()

    return function


def check(case, inputs):
    names = list(inputs)
    check_against_reference(call(case, "triton", names), call(case, "reference", names), list(inputs.values()), names)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_against_the_definition(name, dtype):
    if name == "1e4" and dtype == torch.float16:
        pytest.skip("1e4 times a normal deviate overflows float16")
    check(EDGE_CASES[name], EDGE_CASES[name].inputs(dtype))


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(0, 25),
    width=st.integers(2, 300),
    bias=st.booleans(),
    residual=st.booleans(),
    dropout_p=st.sampled_from([0.0, 0.1, 0.7]),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(rows, width, bias, residual, dropout_p, dtype):
    case = LayerNormCase(shape=(rows, width), bias=bias, residual=residual, dropout_p=dropout_p, eps=1e-3)
    check(case, case.inputs(dtype))


@pytest.mark.parametrize(("num_rows", "width"), [(3, 768), (3, 1024), (3, 3000), (1, 8192), (1, 9000), (1, MAX_WIDTH)])
def test_wide_rows(num_rows, width):
    case = LayerNormCase(shape=(num_rows, width), residual=True, dropout_p=0.1)
    check(case, case.inputs(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [torch.float32, None])
def test_mixed_dtypes(dtype, parameters):
    case = LayerNormCase(shape=(21, 77), residual=True, dropout_p=0.2)
    inputs = case.inputs(dtype, residual_dtype=torch.float32)
    inputs["weight"], inputs["bias"] = (inputs[name].to(parameters or dtype) for name in ("weight", "bias"))
    check(case, inputs)
    y, total = call(case, "triton", list(inputs), return_sum=True)(*inputs.values())
    assert (y.dtype, total.dtype) == (dtype, torch.float32)


def test_parameters_of_16_bits_beside_float32():
    case = LayerNormCase(shape=(9, 64))
    inputs = case.inputs(torch.float32)
    inputs["weight"], inputs["bias"] = inputs["weight"].bfloat16(), inputs["bias"].half()
    check(case, inputs)


@pytest.mark.parametrize("name", ["prime", "residual", "no bias", "dropout alone"])
def test_returned_sum_and_its_gradient(name):
    case = EDGE_CASES[name]
    inputs = case.inputs(torch.float32)
    names, tensors = list(inputs), list(inputs.values())

    def both(backend):
        def function(*tensors):
            y, total = call(case, backend, names, return_sum=True)(*tensors)
            return y * total

        return function

    check_against_reference(both("triton"), both("reference"), tensors, names)


@pytest.mark.parametrize("residual_dtype", [None, torch.bfloat16, torch.float32])
def test_gradient_through_the_sum_alone_and_a_mask(residual_dtype):
    case = LayerNormCase(shape=(9, 131), residual=residual_dtype is not None, dropout_p=0.3)
    inputs = case.inputs(torch.bfloat16, residual_dtype)
    names, tensors = list(inputs), list(inputs.values())
    cotangent = torch.randn(case.shape)

    def found(backend):
        function = call(case, backend, names, return_sum=True)
        return gradients(lambda *tensors: function(*tensors)[1], tensors, cotangent)

    for a, b in zip(found("triton"), found("reference"), strict=True):
        torch.testing.assert_close(a, b)


def test_no_gradient_arrives():
    op = torch.ops.fastssl.triton_layer_norm_backward
    total, statistic = torch.randn(3, 8, device=DEVICE), torch.ones(3, device=DEVICE)
    for output in op(None, None, total, total[0], statistic, statistic, 0, None, True, torch.float32):
        assert torch.equal(output.cpu(), torch.zeros(output.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [5, 128, 131, 1030])
def test_mask_is_the_philox_oracle(width, dtype):
    x = torch.ones(33, width, dtype=dtype, device=DEVICE)
    p, seed = 0.3, -(2**61) - 7
    _, total = layer_norm(
        x, x[0], eps=EPS, dropout_p=p, seed=torch.tensor(seed, device=DEVICE), return_sum=True, backend="triton"
    )
    expected = layer_norm_keep_mask(33, width, p, seed)
    assert torch.equal(total.cpu() != 0, expected)
    torch.testing.assert_close(total.cpu(), (expected * dropout_scale(p)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_draws_the_mask_again(dtype):
    x, residual = (torch.randn(33, 136, device=DEVICE).to(dtype).requires_grad_() for _ in range(2))
    y = layer_norm(
        x, torch.ones(136, device=DEVICE), eps=EPS, residual=residual, dropout_p=0.5, seed=SEED, backend="triton"
    )
    grad_x, grad_residual = torch.autograd.grad((y.float() ** 3).sum(), (x, residual))
    keep = layer_norm_keep_mask(33, 136, 0.5, SEED)
    assert torch.equal(grad_x.cpu() != 0, keep & (grad_residual.cpu() != 0))


def test_same_bits_on_repeat():
    case = LayerNormCase(shape=(70, 131), residual=True, dropout_p=0.1)
    inputs = case.inputs(torch.float32)
    function = call(case, "triton", list(inputs))
    cotangent = torch.randn(case.shape)

    def run():
        return [function(*inputs.values()), *gradients(function, list(inputs.values()), cotangent)]

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["prime", "no rows", "width one"])
def test_poisoned_memory(poisoned_memory, name):
    case = EDGE_CASES[name]
    inputs = case.inputs(torch.float32)
    function = call(case, "triton", list(inputs), return_sum=True)
    y, total = function(*inputs.values())
    found = gradients(lambda *tensors: sum(function(*tensors)), list(inputs.values()), torch.ones(case.shape))
    for tensor in (y, total, *found):
        assert not tensor.isnan().any()


def test_strided_inputs():
    case = LayerNormCase(shape=(12, 40), residual=True)
    inputs = case.inputs(torch.float32)
    cotangent = torch.randn(40, 12).T

    def run():
        function = call(case, "triton", list(inputs))
        return [function(*inputs.values()), *gradients(function, list(inputs.values()), cotangent)]

    expected = run()
    inputs["x"] = inputs["x"].T.contiguous().T
    inputs["weight"] = inputs["weight"].repeat_interleave(2)[::2]
    for a, b in zip(run(), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["prime", "residual", "no bias", "dropout alone"])
@pytest.mark.parametrize("residual_dtype", [torch.bfloat16, torch.float32])
def test_y_does_not_depend_on_who_asks(name, residual_dtype):
    inputs = EDGE_CASES[name].inputs(torch.bfloat16, residual_dtype)
    check_that_y_does_not_depend_on_who_asks(EDGE_CASES[name], inputs, "triton", call)


def test_a_sum_that_nobody_asks_for_is_not_written():
    x = torch.randn(5, 40, device=DEVICE)
    op, args = torch.ops.fastssl.triton_layer_norm_forward, (x, x[0], None, x, EPS, 0, None)
    assert op(*args, False)[1].numel() == 0 and torch.equal(op(*args, True)[1], 2 * x)


@pytest.mark.parametrize(
    ("dtypes", "width"),
    [
        ((torch.bfloat16, torch.float16), 131),
        ((torch.bfloat16, torch.float32), 131),
        ((torch.float16,), 131),
        ((torch.bfloat16, torch.float16), 9000),  # the interpreter takes seconds for it
    ],
)
def test_parameter_gradients_have_the_dtypes_of_the_parameters(dtypes, width):
    """The kernel that sums them rounds them; in the interpreter, which truncates, only nearly as PyTorch does."""
    x = torch.randn(7 if width < 1000 else 2, width, device=DEVICE).bfloat16()
    parameters = [torch.randn(width, device=DEVICE).to(dtype).requires_grad_() for dtype in dtypes]

    def found(parameters):
        y = layer_norm(x, *parameters, eps=EPS, backend="triton")
        return torch.autograd.grad(y, parameters, x)

    wide = found([parameter.detach().float().requires_grad_() for parameter in parameters])
    for gradient, dtype, expected in zip(found(parameters), dtypes, wide, strict=True):
        torch.testing.assert_close(gradient, expected.to(dtype), **({"rtol": 0, "atol": 0} if DEVICE == "cuda" else {}))


def test_opcheck():
    case = LayerNormCase(shape=(6, 20), residual=True, dropout_p=0.1)
    inputs = {name: tensor.to(DEVICE) for name, tensor in case.inputs(torch.bfloat16).items()}
    x, weight, bias, residual = (inputs[name] for name in ("x", "weight", "bias", "residual"))
    seed = torch.tensor(3, device=DEVICE)
    forward = torch.ops.fastssl.triton_layer_norm_forward.default
    backward = torch.ops.fastssl.triton_layer_norm_backward.default
    for residual_in, threshold in ((None, 0), (residual, 0), (None, 100), (residual.float(), 100)):
        args = (x, weight, bias, residual_in, EPS, threshold, seed, True)
        torch.library.opcheck(forward, args)
        torch.library.opcheck(forward, (*args[:-1], False))
        y, total, mean, rstd = forward(*args)
        total = total if total.numel() else x
        for grad_y, grad_sum in ((y, None), (y, torch.ones_like(total)), (None, torch.ones_like(total))):
            args = (grad_y, grad_sum, total, weight, mean, rstd, threshold, seed, total.dtype != y.dtype)
            torch.library.opcheck(backward, (*args, torch.float32))


def test_compile_with_dynamic_shapes():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(x, weight, bias, residual, seed):
        return layer_norm(
            x, weight, bias, eps=EPS, residual=residual, dropout_p=0.2, seed=seed, return_sum=True, backend="triton"
        )

    seed = torch.tensor(SEED, device=DEVICE)
    for rows in (4, 9):
        case = LayerNormCase(shape=(rows, 32), residual=True, dropout_p=0.2)
        leaves = [tensor.to(DEVICE).requires_grad_() for tensor in case.inputs(torch.float32).values()]
        got = compiled(*leaves, seed)
        expected = layer_norm(
            *leaves[:3], eps=EPS, residual=leaves[3], dropout_p=0.2, seed=seed, return_sum=True, backend="triton"
        )
        for a, b in zip(
            (*got, *torch.autograd.grad((got[0] * got[1]).sum(), leaves)),
            (*expected, *torch.autograd.grad((expected[0] * expected[1]).sum(), leaves)),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("device", "chosen"), [("cpu", "reference"), ("cuda", "triton")])
def test_auto_takes_it_on_a_gpu_alone(monkeypatch, device, chosen):
    facts = {"width": 8, "dropout_p": 0.5, "x_dtype": torch.float32, "residual_dtype": torch.float32}
    facts["parameter_dtypes"] = (torch.float32, None)
    others = {name: module for name, module in BACKENDS.items() if name != "native"}
    assert choose("layer_norm", "auto", others, torch.device(device), torch.float32, facts) == chosen
    monkeypatch.setattr(extension, "is_too_old", lambda: True)
    assert choose("layer_norm", "auto", others, torch.device(device), torch.float32, facts) == "reference"


def test_it_names_what_it_lacks():
    x = torch.ones(2, MAX_WIDTH + 1, device=DEVICE)
    with pytest.raises(ValueError, match=r"a row has more than 16384 elements"):
        layer_norm(x, x[0], eps=EPS, backend="triton")
    with pytest.raises(ValueError, match=r"torch.float64"):
        layer_norm(x[:, :8].double(), x[0, :8], eps=EPS, backend="triton")


def test_without_a_gpu_and_without_the_interpreter_it_says_so():
    code = (
        "import torch; from fastssl.ops.layer_norm import layer_norm; x = torch.ones(2, 8);"
        "layer_norm(x, x[0], eps=1e-5, backend='triton')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert process.returncode == 1
    assert "Triton runs on the CPU in its interpreter alone" in process.stderr


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 3, (torch.float32,) * 3, (torch.bfloat16, torch.float32)])
def test_tiles_of_every_width(dtypes):
    device = Processors(132, 228 * 1024)
    for width in range(1, MAX_WIDTH + 1):
        forward = forward_tiling(width, *dtypes)
        assert forward.block >= width and forward.rows >= 1 and forward.block % forward.vector == 0
        for num_rows in (1, 2, 1000, 131072):
            tiling = backward_tiling(num_rows, width, dtypes, device)
            assert tiling.block == forward.block and tiling.rows % tiling.row_groups == 0
            assert tiling.stages >= 2 and tiling.num_warps <= 16
            num_tiles = -(-num_rows // tiling.rows)
            assert 1 <= tiling.programs <= min(num_tiles, 4 * device.count)


@ON_GPU
def test_offsets_beyond_31_bits():
    rows, width = 2**31 // 8192 + 3, 8192
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    x[-5:] = torch.randn(5, width)
    weight = torch.ones(width, device="cuda")
    y = layer_norm(x.requires_grad_(), weight, eps=EPS, backend="triton")
    (grad,) = torch.autograd.grad(y, x, y.detach())
    tail = x.detach()[-5:].requires_grad_()
    expected = layer_norm(tail, weight, eps=EPS, backend="triton")
    assert torch.equal(y[-5:], expected)
    assert torch.equal(grad[-5:], torch.autograd.grad(expected, tail, expected.detach())[0])


@ON_GPU
def test_a_captured_graph_draws_another_mask_when_the_seed_changes():
    x, weight = torch.ones(16, 256, device="cuda"), torch.ones(256, device="cuda")
    seed = torch.tensor(1, device="cuda")

    def run():
        return layer_norm(x, weight, eps=EPS, dropout_p=0.5, seed=seed, return_sum=True, backend="triton")[1]

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = run()
    for value in (1, 2):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(total.cpu() != 0, layer_norm_keep_mask(16, 256, 0.5, value))
