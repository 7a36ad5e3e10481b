"""The CUDA kernels of attention, on a GPU or in the emulation, against the definition in float64."""

import math
from dataclasses import replace

import pytest
import torch

from fastssl import extension
from fastssl.ops.attention import hopper, native, split_projection, stock
from fastssl.ops.attention.cases import EDGE_CASES, AttentionCase
from fastssl.ops.backend import choose
from fastssl.ops.philox import attention_keep_mask, dropout_scale
from tests.ops.surroundings import Surrounded
from tests.ops.test_attention import call, check
from tests.oracle import assert_within_budget

pytestmark = [pytest.mark.native, pytest.mark.cuda]

DTYPES = [torch.bfloat16, torch.float16]
CASES = {name: case for name, case in EDGE_CASES.items() if case.bias is None and case.width <= 128} | {
    "everything but a bias": replace(EDGE_CASES["everything"], bias=None),
    "tiles of both sides": AttentionCase(
        lengths_q=(150, 129), lengths_k=(140, 260), heads=4, key_heads=2, width=64, window=(100, 30), dropout_p=0.1
    ),
}

NARROWED = ("everything but a bias", "tiles of both sides", "dense", "window")
"""Cases that are enough for float16 where no hardware is."""


@pytest.fixture(params=["native", "hopper", "hopper in one pass"])
def backend(request, cuda_kernels, monkeypatch):
    """Return a backend whose CUDA kernels run on tensors of the CPU; see `cuda_kernels`."""
    name, *one_pass = request.param.split(maxsplit=1)
    if name == "hopper":
        request.getfixturevalue("hopper_runs")
        monkeypatch.setattr(hopper, "TWO_PASSES_UP_TO", 0 if one_pass else 10**6)
    return name


def skip_if_refused(backend, width):
    if backend == "hopper" and width % 8 != 0:
        pytest.skip("its copies take heads of a multiple of 8 columns")


def results(case, backend, inputs):
    """Return output, lse and the gradients through both, by name."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    out, lse = call(case, backend, list(inputs), return_lse=True)(*leaves.values())
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (out, lse)]
    seen = lse > -math.inf
    gradients = torch.autograd.grad(
        (out, lse[seen]),
        leaves.values(),
        (cotangents[0].bfloat16().to(out.dtype), cotangents[1][seen].to(lse.dtype)),
        materialize_grads=True,
    )
    return {"output": out.detach(), "lse": lse.detach()} | dict(zip(inputs, gradients, strict=True))


def same_bits(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(backend, name, dtype):
    skip_if_refused(backend, CASES[name].width)
    enough = NARROWED[:1] if hopper.TWO_PASSES_UP_TO == 0 else NARROWED
    if backend == "hopper" and dtype == torch.float16 and name not in enough and not torch.cuda.is_available():
        pytest.skip("the emulation narrows and widens alike in every case")
    inputs = CASES[name].inputs(dtype)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    got, same, exact = (
        results(CASES[name], backend, tensors)
        for backend, tensors in ((backend, inputs), ("reference", inputs), ("reference", wide))
    )
    for part, tensor in got.items():
        assert tensor.dtype == (torch.float32 if part == "lse" else dtype)
        assert_within_budget(part, tensor, same[part], exact[part], dtype)


@pytest.mark.parametrize("width", [1, 24, 32, 64, 72, 96, 100, 128])
def test_head_widths(backend, width):
    skip_if_refused(backend, width)
    case = AttentionCase(lengths_q=(65, 17), width=width, heads=1, key_heads=1, causal=True)
    check(case, case.inputs(torch.bfloat16), backend)


@pytest.mark.parametrize("dense", [False, True])
def test_grouped_heads_on_a_projection(backend, dense):
    """Slices of one (N, H + 2 H_k, D) tensor are read where they lie, and so are their gradients written."""
    case = AttentionCase(lengths_q=(70, 70) if dense else (70, 5), heads=4, key_heads=2, width=32, dense=dense)
    inputs = case.inputs(torch.bfloat16)
    apart = results(case, backend, inputs)
    fused = torch.cat(list(inputs.values()), dim=-2).requires_grad_()
    together = dict(zip("qkv", split_projection(fused, 4, 2), strict=True))
    seen = []
    together["q"].register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    out = call(case, backend, list(together))(*together.values())
    (gradient,) = torch.autograd.grad(out, fused, torch.ones_like(out))
    assert torch.equal(out, apart["output"]) and seen == [gradient.data_ptr()]
    assert same_bits(results(case, backend, {name: x.detach() for name, x in together.items()}), apart)


def test_a_query_that_sees_nothing_gives_zero(backend):
    case = AttentionCase(lengths_q=(90, 4), lengths_k=(20, 0), causal=True)
    found = results(case, backend, case.inputs(torch.bfloat16))
    blind = torch.cat([torch.arange(90) < 70, torch.ones(4, dtype=torch.bool)])
    assert (found["output"][blind] == 0).all() and (found["lse"][:, blind] == -math.inf).all()
    assert torch.isfinite(found["lse"][:, ~blind]).all()
    assert (found["q"][blind] == 0).all() and (found["q"][~blind] != 0).any()


def test_keys_that_nobody_sees_have_no_gradient(backend):
    case = AttentionCase(lengths_q=(30, 0), lengths_k=(400, 9), window=(9, 0))
    found = results(case, backend, case.inputs(torch.bfloat16))
    seen = (torch.arange(409) >= 361) & (torch.arange(409) < 400)
    for name in "kv":
        assert (found[name][~seen] == 0).all() and found[name][seen].any()


def test_nan_is_not_hidden(backend):
    case = AttentionCase(lengths_q=(40, 5))
    for name in "qkv":
        inputs = case.inputs(torch.bfloat16)
        inputs[name][3, 1, 2] = math.nan
        found = results(case, backend, inputs)
        assert found["output"][3, 1].isnan().any() and found["q"][3, 1].isnan().any()
        for part in ("output", *"qkv"):
            assert found[part][:, 0].isfinite().all() and found[part][40:].isfinite().all()


def test_nan_does_not_reach_the_sequence_before(backend):
    """Tiles end behind a sequence, where the next one has its rows."""
    case = AttentionCase(lengths_q=(40, 90), lengths_k=(75, 90))
    clean = results(case, backend, case.inputs(torch.bfloat16))
    for name in "qkv":
        inputs = case.inputs(torch.bfloat16)
        inputs[name][-90:] = math.nan
        found = results(case, backend, inputs)
        assert found["output"][40:].isnan().all()
        assert all(torch.equal(found[part][:-90], clean[part][:-90]) for part in ("output", *"qkv"))


def test_a_sequence_knows_nothing_of_its_neighbours(backend):
    """The same bits alone, in front of others, and as part of a dense batch."""
    case = AttentionCase(lengths_q=(70, 70), causal=True, dropout_p=0.2)
    inputs = case.inputs(torch.bfloat16)

    def gradients(case, inputs):
        leaves = [x.detach().requires_grad_() for x in inputs.values()]
        out = call(case, backend, list(inputs))(*leaves)
        return torch.autograd.grad(out, leaves, out.detach())

    packed = gradients(case, inputs)
    dense = gradients(replace(case, dense=True), {name: x.unflatten(0, (2, 70)) for name, x in inputs.items()})
    alone = gradients(replace(case, lengths_q=(70,)), {name: x[:70] for name, x in inputs.items()})
    for of_packed, of_dense, of_alone in zip(packed, dense, alone, strict=True):
        assert torch.equal(of_dense.flatten(0, 1), of_packed) and torch.equal(of_alone, of_packed[:70])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dropout_mask_is_the_defined_one(backend, dtype):
    """One-hot values make the output the matrix of dropped weights: equal weights, so that it shows the mask."""
    num_queries, num_keys, p = 45, 128, 0.3
    case = AttentionCase(
        lengths_q=(7, num_queries), lengths_k=(9, num_keys), heads=3, key_heads=1, width=num_keys, dropout_p=p
    )
    inputs = case.inputs(dtype)
    inputs["q"].zero_()
    inputs["v"][9:, 0] = torch.eye(num_keys)
    weights = call(case, backend, list(inputs))(*inputs.values())[7:].transpose(0, 1)
    keep = attention_keep_mask(num_queries, num_keys, 3, 1, p, case.options()["seed"])
    assert torch.equal(weights != 0, keep)
    torch.testing.assert_close(weights, (keep * dropout_scale(p) / num_keys).to(dtype))


def test_same_bits_in_every_order_of_the_threads(cuda_kernels, backend):
    case = AttentionCase(lengths_q=(150, 0, 9), heads=4, causal=True, width=64, dropout_p=0.2)
    inputs = case.inputs(torch.bfloat16)
    runs = []
    for order in (0, 1, 2):
        cuda_kernels.set_thread_order(order)
        runs.append(results(case, backend, inputs))
    assert all(same_bits(runs[0], run) for run in runs[1:])


@pytest.mark.parametrize("dims", [(1, 0, 2), (2, 1, 0)])
def test_any_strides(backend, dims):
    case = AttentionCase(lengths_q=(20, 45), width=8, heads=4)
    inputs = case.inputs(torch.bfloat16)
    back = [dims.index(i) for i in range(3)]
    strided = {name: x.permute(dims).contiguous().permute(back) for name, x in inputs.items()}
    assert same_bits(results(case, backend, strided), results(case, backend, inputs))


def test_expanded_cotangent(backend):
    case = AttentionCase(lengths_q=(20, 45), width=16)
    leaves = [x.requires_grad_() for x in case.inputs(torch.bfloat16).values()]
    out = call(case, backend, "qkv")(*leaves)
    expected = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
    found = torch.autograd.grad(out.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("width", "offset"), [(32, 0), (32, 1), (13, 0)])
def test_nothing_outside_the_tensors_is_read_or_written(backend, width, offset):
    """Outputs stand between guard zones of the emulation; the inputs here are surrounded by NaN."""
    skip_if_refused(backend, width)
    case = AttentionCase(lengths_q=(70, 3), width=width, heads=1, key_heads=1)
    inputs = case.inputs(torch.bfloat16)
    surrounded = {name: Surrounded(x, offset) for name, x in (inputs | {"grad": inputs["v"].flip(0)}).items()}
    leaves = [surrounded[name].tensor.requires_grad_() for name in "qkv"]
    out = call(case, backend, "qkv")(*leaves)
    found = torch.autograd.grad(out, leaves, surrounded["grad"].tensor)
    plain = [x.requires_grad_() for x in inputs.values()]
    expected = call(case, backend, "qkv")(*plain)
    torch.testing.assert_close(out, expected)
    assert all(map(torch.equal, found, torch.autograd.grad(expected, plain, inputs["v"].detach().flip(0))))
    with torch.no_grad():
        assert out.isfinite().all() and all(part.untouched_outside() for part in surrounded.values())


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({"dtype": torch.float32}, "float32"), ({"width": 129}, "at most 128"), ({"biased": True}, "no bias")],
)
def test_what_the_kernels_cannot_do_is_refused(facts, reason):
    usual = {"device": "cuda", "dtype": torch.bfloat16, "width": 64, "biased": False, "needs_grad": True}
    found = [why for why, refuses in native.SUPPORTS.refuses.items() if refuses(**usual | facts)]
    assert len(found) == 1 and reason in found[0]
    assert not any(refuses(**usual | facts | {"device": "cpu"}) for refuses in native.SUPPORTS.refuses.values())


@pytest.mark.parametrize(("needs_grad", "chosen"), [(False, "native"), (True, "stock")])
def test_the_backward_runs_when_asked_for_by_name(monkeypatch, needs_grad, chosen):
    """No recorded run has verified it, so that `auto` passes it by, and the forward that would lead to it."""
    monkeypatch.setattr(extension, "cuda_ops_loaded", lambda: True)
    facts = {"device": "cuda", "dtype": torch.bfloat16, "width": 64, "biased": False, "needs_grad": needs_grad}
    facts |= {"packed": True, "compiling": False, "dropped": False, "return_lse": False}

    def choice(requested, backends):
        return choose("attention", requested, backends, torch.device("cuda"), torch.bfloat16, facts)

    assert choice("auto", {"native": native, "stock": stock}) == chosen
    assert choice("native", {"native": native}) == "native"
    if needs_grad:
        with pytest.raises(ValueError, match="no recorded run has verified its backward on cuda; ask for it by name"):
            choice("auto", {"native": native})
