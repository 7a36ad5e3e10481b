"""The CUDA kernels of attention, on a GPU or in the emulation, against the definition in float64."""

import math

import pytest
import torch

from fastssl.ops.attention import native
from fastssl.ops.attention.cases import EDGE_CASES, AttentionCase
from fastssl.ops.philox import attention_keep_mask, dropout_scale
from tests.ops.surroundings import Surrounded
from tests.ops.test_attention import call
from tests.oracle import assert_within_budget

pytestmark = [pytest.mark.native, pytest.mark.cuda]

DTYPES = [torch.bfloat16, torch.float16]
NAMES = [name for name, case in EDGE_CASES.items() if case.bias is None and case.width <= 128]
NAMES.remove("long, causal")  # slow in the emulation


def check_forward(case, inputs):
    """Hold output and lse to the budget of `tests/oracle.py`."""

    def results(backend, tensors):
        return call(case, backend, list(inputs), return_lse=True)(*tensors)

    tensors = list(inputs.values())
    dtype = tensors[0].dtype
    runs = (
        results("native", tensors),
        results("reference", tensors),
        results("reference", [x.double() for x in tensors]),
    )
    for name, got, same, wide in zip(("output", "lse"), *runs, strict=True):
        assert_within_budget(name, got, same, wide, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_against_the_definition(cuda_kernels, name, dtype):
    check_forward(EDGE_CASES[name], EDGE_CASES[name].inputs(dtype))


@pytest.mark.parametrize("width", [1, 24, 32, 64, 72, 96, 100, 128])
def test_head_widths(cuda_kernels, width):
    case = AttentionCase(lengths_q=(65, 17), width=width, heads=1, key_heads=1, causal=True)
    check_forward(case, case.inputs(torch.bfloat16))


def test_grouped_heads_on_a_projection(cuda_kernels):
    """Slices of one (N, H + 2 H_k, D) tensor are read where they lie."""
    case = AttentionCase(lengths_q=(70, 5), heads=4, key_heads=2, width=32, causal=True)
    inputs = case.inputs(torch.bfloat16)
    apart = call(case, "native", list(inputs))(*inputs.values())
    together = torch.cat(list(inputs.values()), dim=1).split((4, 2, 2), dim=1)
    assert torch.equal(call(case, "native", list(inputs))(*together), apart)


def test_a_query_that_sees_nothing_gives_zero(cuda_kernels):
    case = AttentionCase(lengths_q=(90, 4), lengths_k=(20, 0), causal=True)
    out, lse = call(case, "native", ["q", "k", "v"], return_lse=True)(*case.inputs(torch.bfloat16).values())
    blind = torch.cat([torch.arange(90) < 70, torch.ones(4, dtype=torch.bool)])
    assert (out[blind] == 0).all() and (lse[:, blind] == -math.inf).all()
    assert torch.isfinite(lse[:, ~blind]).all()


def test_nan_is_not_hidden(cuda_kernels):
    case = AttentionCase(lengths_q=(40, 5))
    for name in "qkv":
        inputs = case.inputs(torch.bfloat16)
        inputs[name][3, 1, 2] = math.nan
        out = call(case, "native", list(inputs))(*inputs.values())
        assert out[3, 1].isnan().any()
        assert torch.isfinite(out[:, 0]).all() and torch.isfinite(out[40:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dropout_mask_is_the_defined_one(cuda_kernels, dtype):
    """One-hot values make the output the matrix of dropped weights: equal weights, so that it shows the mask."""
    num_queries, num_keys, p = 45, 128, 0.3
    case = AttentionCase(
        lengths_q=(7, num_queries), lengths_k=(9, num_keys), heads=3, key_heads=1, width=num_keys, dropout_p=p
    )
    inputs = case.inputs(dtype)
    inputs["q"].zero_()
    inputs["v"][9:, 0] = torch.eye(num_keys)
    weights = call(case, "native", list(inputs))(*inputs.values())[7:].transpose(0, 1)
    keep = attention_keep_mask(num_queries, num_keys, 3, 1, p, case.options()["seed"])
    assert torch.equal(weights != 0, keep)
    torch.testing.assert_close(weights, (keep * dropout_scale(p) / num_keys).to(dtype))


def test_same_bits_in_every_order_of_the_threads(cuda_kernels):
    case = AttentionCase(lengths_q=(150, 0, 9), causal=True, width=64, dropout_p=0.2)
    inputs = case.inputs(torch.bfloat16)
    runs = []
    for order in (0, 1, 2):
        cuda_kernels.set_thread_order(order)
        runs.append(call(case, "native", list(inputs), return_lse=True)(*inputs.values()))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize(("width", "offset"), [(32, 0), (32, 1), (13, 0)])
def test_nothing_outside_the_tensors_is_read_or_written(cuda_kernels, width, offset):
    """Outputs stand between guard zones of the emulation; the inputs here are surrounded by NaN."""
    case = AttentionCase(lengths_q=(70, 3), width=width, heads=1, key_heads=1)
    inputs = case.inputs(torch.bfloat16)
    surrounded = [Surrounded(tensor, offset) for tensor in inputs.values()]
    out = call(case, "native", list(inputs))(*(part.tensor for part in surrounded))
    torch.testing.assert_close(out, call(case, "native", list(inputs))(*inputs.values()))
    assert out.isfinite().all() and all(part.untouched_outside() for part in surrounded)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"dtype": torch.float32}, "float32"),
        ({"width": 129}, "at most 128"),
        ({"biased": True}, "no bias"),
        ({"needs_grad": True}, "no backward"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused(facts, reason):
    usual = {"device": "cuda", "dtype": torch.bfloat16, "width": 64, "biased": False, "needs_grad": False}
    found = [why for why, refuses in native.SUPPORTS.refuses.items() if refuses(**usual | facts)]
    assert len(found) == 1 and reason in found[0]
    assert not any(refuses(**usual | facts | {"device": "cpu"}) for refuses in native.SUPPORTS.refuses.values())
