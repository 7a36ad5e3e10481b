"""Attention: the definition against PyTorch, every backend against the definition in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.ops.attention.api import BACKENDS, attention
from fastssl.ops.attention.cases import EDGE_CASES, AttentionCase
from fastssl.ops.philox import attention_keep_mask, dropout_scale
from tests.oracle import assert_within_budget, check_against_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def call(case, backend, names, **extra):
    """Return attention as a function of positional tensors."""

    def function(*tensors):
        return attention(**dict(zip(names, tensors, strict=True)), **case.options(), backend=backend, **extra)

    return function


def check(case, inputs, backend="native"):
    names = list(inputs)
    check_against_reference(call(case, backend, names), call(case, "reference", names), list(inputs.values()), names)


def masked(case, inputs):
    """Return the output of a dense or one-sequence case by `torch.softmax` over an explicit mask: a second opinion."""
    q, k, v = (inputs[name] for name in "qkv")
    num_queries, num_keys = q.shape[-3], k.shape[-3]
    distance = torch.arange(num_keys) - (torch.arange(num_queries)[:, None] + num_keys - num_queries)
    left, right = case.window or (None, None)
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool)
    if left is not None:
        visible &= distance >= -left
    if right is not None:
        visible &= distance <= right
    if case.causal:
        visible &= distance <= 0
    return F.scaled_dot_product_attention(
        *(x.transpose(-3, -2) for x in (q, k, v)), attn_mask=visible, scale=case.scale
    ).transpose(-3, -2)


@pytest.mark.parametrize("name", ["short", "cross, causal", "grouped", "alibi", "dense, cross", "everything"])
def test_gradcheck_of_the_reference(name):
    case = EDGE_CASES[name]
    limit = {"lengths_q": case.lengths_q, "lengths_k": case.lengths_k or case.lengths_q}
    small = {side: tuple(min(n, 6) for n in lengths) for side, lengths in limit.items()}
    case = AttentionCase(**{**case.__dict__, **small, "width": 3})
    inputs = case.inputs(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]

    def function(*tensors):
        out, lse = call(case, "reference", list(inputs), return_lse=True)(*tensors)
        return out, lse[lse > -math.inf]

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "hopper"])
@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(lengths_q=(33, 33), dense=True),
        AttentionCase(lengths_q=(33, 33), dense=True, causal=True, scale=0.7),
        AttentionCase(lengths_q=(20,), lengths_k=(45,), dense=True, causal=True),
        AttentionCase(lengths_q=(45,), lengths_k=(45,), window=(7, 2)),
        AttentionCase(lengths_q=(1,), lengths_k=(45,), causal=True),
    ],
)
def test_parity_with_pytorch(backend, case):
    if backend == "native":
        pytest.importorskip("fastssl.extension").cpu_ops_loaded() or pytest.skip("not built")
    inputs = case.inputs(torch.float32)
    out = call(case, backend, list(inputs))(*inputs.values())
    torch.testing.assert_close(out, masked(case, inputs), atol=2e-6, rtol=1e-5)


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_native_against_the_definition(capability, name, dtype):
    check(EDGE_CASES[name], EDGE_CASES[name].inputs(dtype))


@pytest.mark.native
@pytest.mark.parametrize("width", [31, 32, 33, 64, 96, 128])
def test_head_widths(capability, width):
    case = AttentionCase(lengths_q=(65, 20), width=width, causal=True)
    check(case, case.inputs(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, case in EDGE_CASES.items() if case.dropout_p == 0])
def test_stock_against_the_definition(name, dtype):
    check(EDGE_CASES[name], EDGE_CASES[name].inputs(dtype), backend="stock")


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["short", "cross, causal", "alibi", "dense, cross", "dropout", "no keys"])
def test_lse_and_its_gradient(capability, name, dtype):
    case = EDGE_CASES[name]
    inputs = case.inputs(dtype)

    def lse_and_gradients(backend, wide=lambda tensor: tensor):
        leaves = {name: wide(tensor).clone().requires_grad_() for name, tensor in inputs.items()}
        out, lse = call(case, backend, list(inputs), return_lse=True)(*leaves.values())
        seen = lse > -math.inf
        loss = (lse[seen] * torch.linspace(-1, 1, int(seen.sum()))).sum() + out.float().square().sum()
        gradients = torch.autograd.grad(loss, leaves.values(), allow_unused=True)
        return [
            lse,
            *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves.values(), gradients, strict=True)),
        ]

    rows = zip(
        ["lse", *inputs],
        lse_and_gradients("native"),
        lse_and_gradients("reference"),
        lse_and_gradients("reference", torch.Tensor.double),
        strict=True,
    )
    for name, got, same, reference in rows:
        assert_within_budget(name, got, same, reference, dtype)
    lse = lse_and_gradients("native")[0]
    assert lse.dtype == torch.float32
    heads, rows = inputs["q"].shape[-2], inputs["q"].shape[:-2]
    assert lse.shape == ((rows[0], heads, rows[1]) if case.dense else (heads, rows[0]))


@pytest.mark.native
def test_a_query_that_sees_nothing_gives_zero(capability, poisoned_memory):
    case = AttentionCase(lengths_q=(90, 4), lengths_k=(20, 0), causal=True)
    inputs = {name: tensor.requires_grad_() for name, tensor in case.inputs(torch.float32).items()}
    out, lse = call(case, "native", list(inputs), return_lse=True)(*inputs.values())
    blind = torch.cat([torch.arange(90) < 70, torch.ones(4, dtype=torch.bool)])
    assert (out[blind] == 0).all() and (lse[:, blind] == -math.inf).all()
    assert torch.isfinite(lse[:, ~blind]).all()
    gradients = torch.autograd.grad(out.sum() + lse[:, ~blind].sum(), inputs.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert (gradients[0][blind] == 0).all()


@pytest.mark.native
def test_a_bias_of_minus_infinity_hides(capability):
    case = AttentionCase(lengths_q=(9,), lengths_k=(40,), bias="shared")
    inputs = case.inputs(torch.float32)
    inputs["bias"][:, 2] = -math.inf
    inputs["bias"][:, :, 7] = -math.inf
    check(case, inputs)
    out, lse = call(case, "native", list(inputs), return_lse=True)(*inputs.values())
    assert (out[2] == 0).all() and (lse[:, 2] == -math.inf).all()


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("backend", ["reference", "stock"])
@pytest.mark.parametrize("number", [-1e9, LOWEST, 3e38])
def test_equal_scores_of_any_size_are_equal_weights(backend, number):
    check_equal_scores(backend, number, 40)


@pytest.mark.native
@pytest.mark.parametrize("num_keys", [40, 48, 300])
@pytest.mark.parametrize("number", [-1e9, LOWEST, 3e38])
def test_equal_scores_of_any_size_are_equal_weights_natively(capability, number, num_keys):
    check_equal_scores("native", number, num_keys)


def check_equal_scores(backend, number, num_keys):
    """A row of one number hides nothing, and where its output is not used it gives no gradient of NaN."""
    case = AttentionCase(lengths_q=(64,), lengths_k=(num_keys,), heads=2, key_heads=2, bias="shared")
    inputs = case.inputs(torch.float32)
    inputs["bias"][:, 2] = number
    inputs["bias"][:, 3, 1::2] = LOWEST
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    out = call(case, backend, list(leaves))(*leaves.values())
    torch.testing.assert_close(out[2], leaves["v"].mean(0))
    used = torch.ones_like(out).index_fill(0, torch.tensor([2]), 0.0)
    found = torch.autograd.grad((out * used).sum(), leaves.values())
    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in leaves.items()}
    exact = call(case, "reference", list(wide))(*wide.values())
    expected = torch.autograd.grad((exact * used.double()).sum(), wide.values())
    for one, other in zip((out * used, *found), (exact * used, *expected), strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores(capability, dtype):
    case = AttentionCase(lengths_q=(40, 140), causal=True)
    inputs = case.inputs(dtype)
    inputs["q"] *= 100
    inputs["k"] *= 100
    check(case, inputs)
    rising = AttentionCase(lengths_q=(300,), width=1, heads=1, key_heads=1, scale=1.0)
    inputs = rising.inputs(dtype)
    inputs["q"].fill_(100.0)
    inputs["k"][:, 0, 0] = torch.linspace(-100, 100, 300).to(dtype)
    check(rising, inputs)


@pytest.mark.native
def test_nan_is_not_hidden(capability):
    case = AttentionCase(lengths_q=(40, 5))
    for name in "qkv":
        inputs = case.inputs(torch.float32)
        inputs[name][3, 1, 2] = math.nan
        out = call(case, "native", list(inputs))(*inputs.values())
        assert out[3, 1].isnan().any()
        assert torch.isfinite(out[:, 0]).all() and torch.isfinite(out[40:]).all()


@pytest.mark.native
@pytest.mark.parametrize("of_all_keys", [False, True])
def test_nan_among_the_scores_is_not_hidden_in_lse_and_gradients(capability, of_all_keys):
    case = AttentionCase(lengths_q=(5,), lengths_k=(40,), heads=1, key_heads=1, bias="shared")
    results = []
    for backend in ("native", "reference"):
        inputs = case.inputs(torch.float32)
        inputs["bias"][:, 3, slice(None) if of_all_keys else 7] = math.nan
        leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
        out, lse = call(case, backend, list(leaves), return_lse=True)(*leaves.values())
        results.append([out, lse, *torch.autograd.grad(out.sum(), leaves.values())])
    for name, one, other in zip(("out", "lse", *inputs), *results, strict=True):
        assert torch.equal(one.isnan(), other.isnan()), name
    assert results[0][1].isnan().tolist() == [[False, False, False, True, False]]


@pytest.mark.native
def test_rows_of_the_softmax_sum_to_one(capability):
    case = AttentionCase(lengths_q=(75, 300), causal=True)
    inputs = case.inputs(torch.float32)
    inputs["v"].fill_(1.0)
    out = call(case, "native", list(inputs))(*inputs.values())
    torch.testing.assert_close(out, torch.ones_like(out), atol=1e-6, rtol=0)


@pytest.mark.native
def test_the_future_changes_nothing(capability):
    case = AttentionCase(lengths_q=(140,), causal=True)
    inputs = case.inputs(torch.float32)
    before = call(case, "native", list(inputs))(*inputs.values())
    for tensor in inputs.values():
        tensor[77:] = torch.randn_like(tensor[77:]) * 1e3
    after = call(case, "native", list(inputs))(*inputs.values())
    assert (before[:77] - after[:77]).abs().max() == 0


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dropout_mask_is_the_defined_one(capability, dtype):
    """One-hot values make the output the matrix of dropped weights: equal weights, so that it shows the mask."""
    num_queries, num_keys, p = 45, 128, 0.3
    case = AttentionCase(
        lengths_q=(7, num_queries), lengths_k=(9, num_keys), heads=3, key_heads=1, width=num_keys, dropout_p=p
    )
    inputs = case.inputs(dtype)
    inputs["q"].zero_()
    inputs["v"][9:, 0] = torch.eye(num_keys)
    leaf = inputs["v"].clone().requires_grad_()
    out = call(case, "native", list(inputs))(inputs["q"], inputs["k"], leaf)
    keep = attention_keep_mask(num_queries, num_keys, 3, 1, p, case.options()["seed"])
    weights = out[7:].detach().transpose(0, 1)
    assert torch.equal(weights != 0, keep)
    expected = keep * dropout_scale(p) / num_keys
    torch.testing.assert_close(weights, expected.to(dtype))
    (gradient,) = torch.autograd.grad(out[7:, 2].sum(), leaf)
    torch.testing.assert_close(gradient[9:, 0, 0].float(), expected[2].sum(0).float(), atol=1e-2, rtol=1e-2)


@pytest.mark.native
def test_the_gradient_of_the_bias_is_zero_outside(capability, poisoned_memory):
    case = AttentionCase(lengths_q=(70, 12), lengths_k=(40, 150), bias="own", window=(30, 30))
    inputs = case.inputs(torch.float32)
    bias = inputs["bias"].requires_grad_()
    (gradient,) = torch.autograd.grad(call(case, "native", list(inputs))(*inputs.values()).sum(), bias)
    assert gradient.shape == bias.shape
    assert (gradient[0, :, 70:] == 0).all() and (gradient[0, :, :, 40:] == 0).all()
    assert (gradient[1, :, 12:] == 0).all() and (gradient[1, :, :, 150:] == 0).all()
    assert (gradient[1, :, 11, :119] == 0).all() and (gradient[1, :, :12, :150] != 0).any()


@pytest.mark.native
@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_scores_of_a_query_that_sees_one_key_have_no_gradient(capability, dropout_p):
    options = {"width": 36, "bias": "own", "causal": True, "window": (0, None), "dropout_p": dropout_p}
    case = AttentionCase(lengths_q=(8, 30), lengths_k=(61, 30), **options)
    inputs = {name: tensor.requires_grad_() for name, tensor in case.inputs(torch.float32).items()}
    out = call(case, "native", list(inputs))(*inputs.values())
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    grad_q, grad_k, _, grad_bias = torch.autograd.grad((out * weights).sum(), inputs.values())
    assert (grad_bias == 0).all() and (grad_q == 0).all() and (grad_k == 0).all()


@pytest.mark.native
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 150)), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    width=st.integers(1, 40),
    causal=st.booleans(),
    window=st.none() | st.tuples(st.none() | st.integers(0, 100), st.none() | st.integers(0, 100)),
    alibi=st.booleans(),
    bias=st.sampled_from([None, "shared", "own"]),
    dropout_p=st.sampled_from([0.0, 0.25]),
)
def test_any_combination(lengths, heads, width, **options):
    lengths_q, lengths_k = zip(*lengths, strict=True)
    case = AttentionCase(
        lengths_q=lengths_q, lengths_k=lengths_k, heads=heads[0], key_heads=heads[1], width=width, **options
    )
    check(case, case.inputs(torch.float32))
