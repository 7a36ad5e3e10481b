"""The CUDA kernels of layer norm, on a GPU or in the emulation, against the definition in float64."""

import pytest
import torch

from fastssl.ops.layer_norm.api import layer_norm
from fastssl.ops.layer_norm.cases import EDGE_CASES, LayerNormCase
from fastssl.ops.philox import dropout_scale, layer_norm_keep_mask
from tests.ops.surroundings import Surrounded
from tests.ops.test_layer_norm import DTYPES, EPS, SEED, call, check, check_that_y_does_not_depend_on_who_asks
from tests.oracle import gradients

pytestmark = [pytest.mark.native, pytest.mark.cuda]

WIDTHS = [8, 256, 264, 520, 768, 1024, 1032, 2048, 2056, 3072, 4096, 4104, 6144, 8192, 8200, 16384, 16392, 263, 1031]
"""Ends and beginnings of the ranges that each kernel serves, and primes."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_against_the_definition(cuda_kernels, name, dtype):
    if name == "1e4" and dtype == torch.float16:
        pytest.skip("1e4 times a normal deviate overflows float16")
    check(EDGE_CASES[name], EDGE_CASES[name].inputs(dtype))


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(cuda_kernels, width, changed):
    num_rows = 7 if width <= 2056 else 4  # more than the device has multiprocessors
    case = LayerNormCase(shape=(num_rows, width), residual=changed, dropout_p=0.1 if changed else 0.0)
    for dtype in (torch.float32, torch.bfloat16):
        check(case, case.inputs(dtype))


@pytest.mark.parametrize("width", [96, 131, 1536, 8192])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wide_residual_and_parameters(cuda_kernels, dtype, width):
    case = LayerNormCase(shape=(21 if width < 8192 else 4, width), residual=True, dropout_p=0.2)
    inputs = case.inputs(dtype, residual_dtype=torch.float32)
    inputs["weight"] = inputs["weight"].float()
    check(case, inputs)
    inputs["bias"] = inputs["bias"].float()
    check(case, inputs)
    y, total = call(case, "native", list(inputs), return_sum=True)(*inputs.values())
    assert (y.dtype, total.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("shared_bytes", [48 * 1024, 99 * 1024, 163 * 1024])
@pytest.mark.parametrize("num_multiprocessors", [1, 200])
def test_other_devices(cuda_kernels, num_multiprocessors, shared_bytes):
    cuda_kernels.set_device(num_multiprocessors=num_multiprocessors, shared_bytes_per_block=shared_bytes)
    for num_rows, width in ((30, 768), (5, 8192)):
        case = LayerNormCase(shape=(num_rows, width), residual=True, dropout_p=0.1)
        check(case, case.inputs(torch.float32))


@pytest.mark.parametrize("width", [128, 131])
@pytest.mark.parametrize("name", ["prime", "residual", "no bias", "dropout alone"])
def test_returned_sum_and_its_gradient(cuda_kernels, name, width):
    case = EDGE_CASES[name]
    case = LayerNormCase(
        shape=(9, width), bias=case.bias, residual=case.residual, dropout_p=case.dropout_p, eps=case.eps
    )
    inputs = case.inputs(torch.float32)
    names, tensors = list(inputs), list(inputs.values())
    cotangent = torch.randn(case.shape)
    for pick in (lambda y, total: y * total, lambda _, total: total):

        def found(backend, pick=pick):
            function = call(case, backend, names, return_sum=True)
            return gradients(lambda *tensors: pick(*function(*tensors)), tensors, cotangent)

        for a, b in zip(found("native"), found("reference"), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [128, 131, 1536, 16392])
@pytest.mark.parametrize("options", [{"residual": True}, {"dropout_p": 0.1}, {"residual": True, "dropout_p": 0.1}])
def test_y_does_not_depend_on_who_asks(cuda_kernels, options, width):
    case = LayerNormCase(shape=(4, width), **options)
    for residual_dtype in (torch.bfloat16, torch.float32):
        inputs = case.inputs(torch.bfloat16, residual_dtype)
        check_that_y_does_not_depend_on_who_asks(case, inputs, "native", call)


@pytest.mark.parametrize("width", [5, 128, 131, 768, 8200])
def test_mask_is_the_philox_oracle(cuda_kernels, width):
    p, seed = 0.3, -(2**61) - 7
    x = torch.ones(33, width)
    _, total = layer_norm(x, x[0], eps=EPS, dropout_p=p, seed=seed, return_sum=True, backend="native")
    kept = layer_norm_keep_mask(33, width, p, seed)
    torch.testing.assert_close(total, (kept * dropout_scale(p)).float())
    x.requires_grad_()
    _, total = layer_norm(x, x[0].detach(), eps=EPS, dropout_p=p, seed=seed, return_sum=True, backend="native")
    total.sum().backward()
    assert torch.equal(x.grad, (kept * dropout_scale(p)).float())


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("width", [8, 131, 768, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_outside_the_tensors_is_read_or_written(cuda_kernels, dtype, width, offset):
    """Outputs stand between guard zones of the emulation; the inputs here are surrounded by NaN."""
    case = LayerNormCase(shape=(11, width), residual=True, dropout_p=0.1)
    inputs = case.inputs(dtype)
    expected = call(case, "reference", list(inputs))(*inputs.values())
    surrounded = {name: Surrounded(tensor, offset) for name, tensor in inputs.items()}
    placed = [part.tensor for part in surrounded.values()]
    y = call(case, "native", list(inputs))(*placed)
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    cotangent = Surrounded(torch.ones_like(y), offset)
    leaves = [tensor.detach().requires_grad_() for tensor in placed]
    found = torch.autograd.grad(call(case, "native", list(inputs))(*leaves), leaves, cotangent.tensor)
    assert all(gradient.isfinite().all() for gradient in found)
    assert all(part.untouched_outside() for part in [*surrounded.values(), cotangent])


@pytest.mark.parametrize("width", [72, 131, 768, 2048, 8200])
def test_same_bits_in_every_order_of_the_threads(cuda_kernels, width):
    case = LayerNormCase(shape=(40, width), residual=True, dropout_p=0.1)
    inputs = case.inputs(torch.float32)
    function = call(case, "native", list(inputs))
    cotangent = torch.randn(case.shape)
    runs = []
    for order in (0, 1, 2, 3):
        cuda_kernels.set_thread_order(order)
        runs.append([function(*inputs.values()), *gradients(function, list(inputs.values()), cotangent)])
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b)


def test_strided_inputs(cuda_kernels):
    case = LayerNormCase(shape=(12, 40), residual=True)
    inputs = case.inputs(torch.float32)
    expected = call(case, "native", list(inputs))(*inputs.values())
    inputs["x"] = inputs["x"].T.contiguous().T
    inputs["weight"] = inputs["weight"].repeat_interleave(2)[::2]
    assert torch.equal(call(case, "native", list(inputs))(*inputs.values()), expected)


def test_seeds_are_read_where_the_kernel_runs(cuda_kernels):
    x, seed = torch.ones(4, 64), torch.tensor(SEED)
    options = {"eps": EPS, "dropout_p": 0.5, "seed": seed, "return_sum": True, "backend": "native"}
    first = layer_norm(x, x[0], **options)[1]
    seed += 1
    assert not torch.equal(layer_norm(x, x[0], **options)[1], first)
