"""Attention in Triton, on a GPU or in Triton's interpreter: held to the definition, and to what it promises beside."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.ops.attention import split_projection, triton_backend, triton_tuning
from fastssl.ops.attention.api import attention
from fastssl.ops.attention.cases import EDGE_CASES, AttentionCase, offsets
from fastssl.ops.philox import attention_keep_mask, dropout_scale
from tests.oracle import assert_within_budget, check_against_reference

pytestmark = pytest.mark.triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float16]
SMALL = {"short": DTYPES, "cross, causal": DTYPES[:1], "own bias": DTYPES[1:], "dense": DTYPES[:1]}
"""Cases that also run in 16 bits, and in which."""


def options_of(case):
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in case.options().items()}


def inputs_of(case, dtype=torch.float32):
    return {name: x.to(DEVICE) for name, x in case.inputs(dtype).items()}


def call(case, backend, names, **extra):
    """Return attention as a function of positional tensors."""

    def function(*tensors):
        given = dict(zip(names, tensors, strict=True)) | options_of(case) | extra
        return attention(**given, backend=backend)

    return function


def check(case, inputs, **extra):
    names = list(inputs)
    tested, reference = call(case, "triton", names, **extra), call(case, "reference", names, **extra)
    check_against_reference(tested, reference, list(inputs.values()), names)


def results(case, inputs, backend="triton", **extra):
    """Return the output, lse and every gradient."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    out, lse = call(case, backend, list(leaves), return_lse=True, **extra)(*leaves.values())
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves.values(), cotangent)]


def assert_same_bits(first, second):
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", [name for name in EDGE_CASES if name not in ("long, causal", "everything")])
def test_against_the_definition(name):
    check(EDGE_CASES[name], inputs_of(EDGE_CASES[name]))


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, dtypes in SMALL.items() for dtype in dtypes])
def test_16_bits_against_the_definition(name, dtype):
    check(EDGE_CASES[name], inputs_of(EDGE_CASES[name], dtype))


def test_everything_at_once():
    """With a scale that turns the scores round."""
    case = AttentionCase(
        lengths_q=(70, 0, 9), lengths_k=(135, 2, 20), heads=2, key_heads=1, window=(80, 5), alibi=True, bias="shared",
        dropout_p=0.2, scale=-0.3,
    )  # fmt: skip
    check(case, inputs_of(case))


def test_a_scale_of_zero_leaves_the_bias_alone():
    case = AttentionCase(lengths_q=(9, 5), lengths_k=(70, 0), alibi=True, bias="shared", dropout_p=0.2, scale=0.0)
    check(case, inputs_of(case))


def test_keys_that_all_queries_of_a_tile_see_inside_a_window():
    """Tiles of keys with and without a mask on both sides of the queries."""
    case = AttentionCase(lengths_q=(70,), lengths_k=(330,), heads=1, key_heads=1, window=(150, 20))
    check(case, inputs_of(case))


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 140)), min_size=1, max_size=2),
    heads=st.sampled_from([(1, 1), (2, 2), (2, 1)]),
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
    check(case, inputs_of(case))


@pytest.mark.parametrize("name", ["short", "cross, causal", "dense, cross"])
def test_lse_and_its_gradient(name):
    case = EDGE_CASES[name]
    inputs = inputs_of(case)

    def lse_and_gradients(backend, wide=lambda x: x):
        leaves = {name: wide(x).clone().requires_grad_() for name, x in inputs.items()}
        out, lse = call(case, backend, list(inputs), return_lse=True)(*leaves.values())
        seen = lse > -math.inf
        weights = torch.linspace(-1, 1, int(seen.sum()), device=DEVICE)
        loss = (lse[seen] * weights).sum() + out.float().square().sum()
        return [lse, *torch.autograd.grad(loss, leaves.values())]

    rows = zip(
        ["lse", *inputs],
        lse_and_gradients("triton"),
        lse_and_gradients("reference"),
        lse_and_gradients("reference", torch.Tensor.double),
        strict=True,
    )
    for name, got, same, reference in rows:
        assert_within_budget(name, got, same, reference, torch.float32)


def test_a_query_that_sees_nothing_gives_zero(poisoned_memory):
    case = AttentionCase(lengths_q=(90, 4), lengths_k=(20, 0), causal=True)
    inputs = {name: x.requires_grad_() for name, x in inputs_of(case).items()}
    out, lse = call(case, "triton", list(inputs), return_lse=True)(*inputs.values())
    blind = torch.cat([torch.arange(90) < 70, torch.ones(4, dtype=torch.bool)])
    assert (out[blind] == 0).all() and (lse[:, blind] == -math.inf).all()
    assert torch.isfinite(lse[:, ~blind]).all()
    gradients = torch.autograd.grad(out.sum() + lse[:, ~blind].sum(), inputs.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert (gradients[0][blind] == 0).all()


def test_a_bias_of_minus_infinity_hides():
    case = AttentionCase(lengths_q=(9,), lengths_k=(40,), bias="shared")
    inputs = inputs_of(case)
    inputs["bias"][:, 2] = -math.inf
    inputs["bias"][:, :, 7] = -math.inf
    check(case, inputs)
    out, lse, *_ = results(case, inputs)
    assert (out[2] == 0).all() and (lse[:, 2] == -math.inf).all()


# Weights that a mask then hides may be infinite, which numpy tells in the interpreter.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
@pytest.mark.parametrize("number", [-1e9, torch.finfo(torch.float32).min, 3e38])
@pytest.mark.parametrize("scale", [None, 2.0, -0.5])
def test_equal_scores_of_any_size_are_equal_weights(number, scale):
    """And where the output of such a row is not used, it gives no gradient of NaN."""
    case = AttentionCase(lengths_q=(40,), lengths_k=(150,), heads=1, key_heads=1, bias="shared", scale=scale)
    inputs = inputs_of(case)
    inputs["bias"][:, 2] = number
    inputs["bias"][:, 3, 1::2] = torch.finfo(torch.float32).min
    used = torch.ones_like(inputs["q"]).index_fill(0, torch.tensor([2], device=DEVICE), 0.0)
    results = []
    for backend in ("triton", "reference"):
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
        out = call(case, backend, list(leaves))(*leaves.values())
        torch.testing.assert_close(out[2], leaves["v"].mean(0))
        results.append([out, *torch.autograd.grad((out * used).sum(), leaves.values())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_nan_in_a_bias_is_not_hidden():
    case = AttentionCase(lengths_q=(5,), lengths_k=(40,), heads=1, key_heads=1, bias="shared")
    inputs = inputs_of(case)
    inputs["bias"][:, 3, 7] = math.nan
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    out, lse = call(case, "triton", list(leaves), return_lse=True)(*leaves.values())
    assert out.isnan().any(-1).flatten().tolist() == lse.isnan().flatten().tolist() == [False] * 3 + [True, False]
    assert torch.autograd.grad(out.sum(), leaves["v"])[0].isnan().all()


def test_large_scores():
    case = AttentionCase(lengths_q=(40, 140), causal=True)
    inputs = inputs_of(case)
    inputs["q"] *= 100
    inputs["k"] *= 100
    if DEVICE == "cpu":
        check(case, inputs)
        return
    # A GPU rounds the scores of the backward otherwise than lse, and weights differ by what the last bits of lse mean.
    found = results(case, inputs)
    wanted = results(case, {name: x.double() for name, x in inputs.items()}, backend="reference")
    rounding = 4 * torch.finfo(torch.float32).eps * wanted[1].abs().max()
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= rounding * max(1.0, b.abs().max().item())


def test_nan_is_not_hidden():
    case = AttentionCase(lengths_q=(40, 5))
    for name in "qkv":
        inputs = inputs_of(case)
        inputs[name][3, 1, 2] = math.nan
        out = results(case, inputs)[0]
        assert out[3, 1].isnan().any()
        assert torch.isfinite(out[:, 0]).all() and torch.isfinite(out[40:]).all()


def test_the_future_changes_nothing():
    case = AttentionCase(lengths_q=(140,), heads=1, key_heads=1, causal=True, dropout_p=0.1)
    inputs = inputs_of(case)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    before = call(case, "triton", list(leaves))(*leaves.values())
    gradients = torch.autograd.grad(before[:77].square().sum(), leaves.values())
    assert all((gradient[77:] == 0).all() and (gradient[:77] != 0).any() for gradient in gradients)
    for x in inputs.values():
        x[77:] = torch.randn_like(x[77:]) * 1e3
    after = call(case, "triton", list(inputs))(*inputs.values())
    assert (before[:77] - after[:77]).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_dropout_mask_is_the_defined_one(dtype):
    """One-hot values make the output the matrix of dropped weights: equal weights, so that it shows the mask."""
    num_queries, num_keys, p = 45, 128, 0.3
    case = AttentionCase(
        lengths_q=(7, num_queries), lengths_k=(9, num_keys), heads=3, key_heads=1, width=num_keys, dropout_p=p
    )
    inputs = inputs_of(case, dtype)
    inputs["q"].zero_()
    inputs["v"][9:, 0] = torch.eye(num_keys)
    leaf = inputs["v"].clone().requires_grad_()
    out = call(case, "triton", list(inputs))(inputs["q"], inputs["k"], leaf)
    keep = attention_keep_mask(num_queries, num_keys, 3, 1, p, case.options()["seed"], device=DEVICE)
    weights = out[7:].detach().transpose(0, 1)
    assert torch.equal(weights != 0, keep)
    expected = keep * dropout_scale(p) / num_keys
    torch.testing.assert_close(weights, expected.to(dtype))
    (gradient,) = torch.autograd.grad(out[7:, 2].sum(), leaf)
    torch.testing.assert_close(gradient[9:, 0, 0].float(), expected[2].sum(0).float(), atol=1e-2, rtol=1e-2)


def drawn_again(monkeypatch):
    monkeypatch.setattr(triton_tuning, "words_to_keep", lambda *_: 0)


def words_kept(monkeypatch) -> list[int]:
    """Return a list that grows by the words that each backward reads of a query, 0 where it draws."""
    seen, backward = [], triton_backend._backward

    def watched(*arguments):
        seen.append(arguments[7].shape[-2])
        return backward(*arguments)

    monkeypatch.setattr(triton_backend, "_backward", watched)
    return seen


KEPT = {
    "packed": ({"lengths_q": (70, 0, 33, 5), "width": 32}, torch.bfloat16),
    "one tile of keys": ({"lengths_q": (45, 64), "width": 32}, torch.float32),
    "dense": ({"lengths_q": (41, 41), "dense": True, "bias": "own", "width": 16}, torch.float32),
    "cross, causal": ({"lengths_q": (40, 3), "lengths_k": (135, 70), "causal": True, "width": 32}, torch.bfloat16),
    "window": ({"lengths_q": (150,), "window": (20, 9), "width": 32}, torch.float32),
    "shared bias": ({"lengths_q": (35, 70), "bias": "shared", "alibi": True, "width": 32}, torch.bfloat16),
    "grouped": ({"lengths_q": (20, 97), "heads": 4, "key_heads": 2, "window": (None, 30), "width": 16}, torch.float32),
}


@pytest.mark.parametrize("name", KEPT)
def test_decisions_kept_or_drawn_again_are_the_same_bits(name, monkeypatch, poisoned_memory):
    options, dtype = KEPT[name]
    case = AttentionCase(**{"heads": 2, "key_heads": 2, "dropout_p": 0.3} | options)
    inputs = inputs_of(case, dtype)
    seen = words_kept(monkeypatch)
    kept = results(case, inputs)
    drawn_again(monkeypatch)
    assert_same_bits(kept, results(case, inputs))
    assert seen == [4 * math.ceil(max(case.lengths_k or case.lengths_q) / 128), 0]


def test_the_backward_reads_what_the_forward_kept(monkeypatch):
    """Without any decision to keep, no gradient is left."""
    case = AttentionCase(lengths_q=(40, 70), width=16, dropout_p=0.3)
    forward_saving = triton_backend.forward_saving

    def nothing_kept(*arguments):
        out, lse, kept_bits = forward_saving(*arguments)
        return out, lse, kept_bits.zero_()

    monkeypatch.setattr(triton_backend, "forward_saving", nothing_kept)
    assert (results(case, inputs_of(case))[-1] == 0).all()


@pytest.mark.parametrize(("width", "element_size", "longest"), [(64, 2, 1024), (64, 4, 2048), (8, 2, 128), (7, 2, 0)])
def test_decisions_take_no_more_memory_than_the_queries(width, element_size, longest):
    assert triton_tuning.words_to_keep(longest, width, element_size) == longest // 32
    assert triton_tuning.words_to_keep(longest + 1, width, element_size) == 0
    assert triton_tuning.words_to_keep(33, 64, 2) == 4


def test_when_decisions_are_kept(monkeypatch):
    """At a length that they fill, and where a gradient will want them."""
    seen = words_kept(monkeypatch)
    for length, words in ((128, 4), (129, 0)):
        for dense in (False, True):
            case = AttentionCase(lengths_q=(length,), heads=1, key_heads=1, width=4, dropout_p=0.1, dense=dense)
            results(case, inputs_of(case))
            assert seen.pop() == words
    short = AttentionCase(lengths_q=(20,), width=8)
    results(short, inputs_of(short))
    assert seen.pop() == 0
    monkeypatch.setattr(triton_backend, "forward_saving", None)
    case = AttentionCase(lengths_q=(20,), width=8, dropout_p=0.1)
    call(case, "triton", "qkv")(*inputs_of(case).values())
    with torch.no_grad():
        call(case, "triton", "qkv")(*(x.requires_grad_() for x in inputs_of(case).values()))


def test_a_compiled_graph_keeps_decisions_where_bounds_are_given(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for dense, longest, words in ((False, None, 0), (False, 200, 8), (True, None, 4)):
        case = AttentionCase(lengths_q=(20, 20), dropout_p=0.1, dense=dense)
        seed = torch.tensor(3, device=DEVICE)
        rest = (options_of(case).get("cu_seqlens_q"), None, None, seed, 2**31 - 1, 2**31 - 1, 0.1, 0.25, None, longest)
        *_, kept_bits = triton_backend.forward_saving(*inputs_of(case).values(), None, *rest)
        assert kept_bits.shape == ((2, 2, words, 20) if dense else (2, words, 40)) and kept_bits.dtype == torch.int32


@pytest.mark.parametrize("bias", ["own", "shared"])
def test_the_gradient_of_the_bias_is_zero_outside(bias, poisoned_memory):
    case = AttentionCase(lengths_q=(70, 12), lengths_k=(40, 150), bias=bias, window=(30, 30))
    gradient = results(case, inputs_of(case))[-1]
    assert gradient.dtype == torch.float32 and gradient.shape == case.inputs(torch.float32)["bias"].shape
    assert (gradient[..., 70:, :] == 0).all() and (gradient[..., 150:] == 0).all()
    if bias == "own":
        assert (gradient[0, :, :, 40:] == 0).all() and (gradient[1, :, 12:] == 0).all()
        assert (gradient[1, :, 11, :119] == 0).all() and (gradient[1, :, :12, :150] != 0).any()


def test_the_gradient_of_a_shared_bias_in_parts(monkeypatch):
    """However many sequences a program sums, their sum is the same but for rounding."""
    case = AttentionCase(lengths_q=(20, 3, 11, 0, 17), bias="shared", heads=1, key_heads=1)
    inputs = inputs_of(case)
    gradients = []
    for programs in (1, 2, 256):
        monkeypatch.setattr(triton_tuning, "BIAS_PROGRAMS", programs)
        gradients.append(results(case, inputs)[-1])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-5, rtol=1e-5)
    assert triton_tuning.parts_of_bias(1, 5) == (5, 1)


def test_same_bits_on_repeat():
    case = AttentionCase(lengths_q=(70, 9), lengths_k=(66, 12), key_heads=1, bias="shared", dropout_p=0.3)
    inputs = inputs_of(case)
    assert_same_bits(results(case, inputs), results(case, inputs))


def test_packed_and_dense_are_the_same_bits():
    case = AttentionCase(
        lengths_q=(66, 66), lengths_k=(70, 70), heads=1, key_heads=1, dropout_p=0.2, causal=True, bias="own"
    )
    packed = inputs_of(case)
    dense = {name: x if name == "bias" else x.unflatten(0, (2, -1)) for name, x in packed.items()}
    from_packed = results(case, packed)
    from_dense = results(AttentionCase(**{**case.__dict__, "dense": True}), dense)
    from_dense[1] = from_dense[1].transpose(0, 1)
    assert_same_bits([x.flatten() for x in from_packed], [x.flatten() for x in from_dense])


def test_neighbours_and_loose_bounds_change_nothing(poisoned_memory):
    case = AttentionCase(lengths_q=(68, 20), causal=True, dropout_p=0.1)
    inputs = inputs_of(case)
    both = results(case, inputs)
    assert_same_bits(both, results(case, inputs, max_seqlen_q=200))
    alone = AttentionCase(**{**case.__dict__, "lengths_q": (68,)})
    first = {name: x[:68] for name, x in inputs.items()}
    assert torch.equal(both[0][:68], call(alone, "triton", first)(*first.values()))
    split = call(case, "triton", inputs, cu_seqlens_q=offsets((68, 0, 20)).to(DEVICE))(*inputs.values())
    assert torch.equal(split[:68], both[0][:68])


def test_poisoned_memory_never_shows(poisoned_memory):
    for name in ("short", "prime", "cross, causal", "window far apart, causal", "no keys", "dense, cross"):
        for x in results(EDGE_CASES[name], inputs_of(EDGE_CASES[name])):
            assert not x.isnan().any(), name


@pytest.mark.parametrize("dims", [(1, 0, 2), (2, 1, 0)])
def test_any_strides(dims):
    case = AttentionCase(lengths_q=(20, 45), width=8, heads=2, bias="shared")
    inputs = inputs_of(case)
    expected = results(case, inputs)
    back = [dims.index(i) for i in range(3)]
    leaves = {name: x.permute(dims).contiguous().permute(back).detach().requires_grad_() for name, x in inputs.items()}
    out = call(case, "triton", list(leaves))(*leaves.values())
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    found = torch.autograd.grad(out, leaves.values(), cotangent.permute(dims).contiguous().permute(back))
    assert_same_bits([expected[0], *expected[2:]], [out.detach(), *found])
    far = torch.empty_strided((3, 2, 8), (2**24, 8, 1), device="meta")
    assert triton_backend._rows(far).row == 16  # rows out of reach of 32 bits are brought together


@pytest.mark.parametrize("key_heads", [2, 1])
def test_the_gradient_of_a_fused_projection_is_not_copied(key_heads):
    case = AttentionCase(lengths_q=(40, 33), width=16, heads=2, key_heads=key_heads)
    fused = torch.randn(73, 2 + 2 * key_heads, 16, device=DEVICE, requires_grad=True)
    seen = []
    q, k, v = split_projection(fused, 2, key_heads)
    q.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    out = call(case, "triton", "qkv")(q, k, v)
    (gradient,) = torch.autograd.grad(out.square().sum(), fused)
    assert seen == [gradient.data_ptr()]
    copied = call(case, "triton", "qkv")(*(x.clone() for x in fused.split((2, key_heads, key_heads), dim=1)))
    assert torch.equal(out, copied)
    assert torch.equal(gradient, torch.autograd.grad(copied.square().sum(), fused)[0])


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(lengths_q=(5, 0, 3), heads=1, key_heads=1, width=8),
        AttentionCase(lengths_q=(9,), lengths_k=(12,), dense=True, bias="own"),
    ],
)
def test_opcheck(case, poisoned_memory):
    """In poisoned memory, so that words that the forward need not write compare equal."""
    inputs, options = inputs_of(case), options_of(case)
    cu_q = options.get("cu_seqlens_q")
    bias, qkv = inputs.get("bias"), [inputs[name] for name in "qkv"]
    rest = (bias, cu_q, None, None, torch.tensor(3, device=DEVICE), 90, 5, 0.1, 0.25, None, None)
    for num_words in (0, 4):
        torch.library.opcheck(torch.ops.fastssl.triton_attention_forward, (*qkv, *rest, num_words))
        saved = torch.ops.fastssl.triton_attention_forward(*qkv, *rest, num_words)
        arguments = (torch.ones_like(qkv[0]), None, *qkv, *saved, *rest, bias is not None, False)
        torch.library.opcheck(torch.ops.fastssl.triton_attention_backward, arguments)


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(lengths_q=(37, 1), causal=True, dropout_p=0.1, width=8, heads=1, key_heads=1),
        AttentionCase(lengths_q=(20, 20), dense=True, bias="shared"),
    ],
)
def test_compiles_whole_and_dynamic(case):
    """One graph serves every number of tokens, and gives the bits of the eager call."""
    seed = torch.tensor(11, device=DEVICE)
    options = {name: x for name, x in case.options().items() if name not in ("seed", "cu_seqlens_q")}

    def step(inputs, cu_seqlens, longest):
        given = {**inputs, **options, "cu_seqlens_q": cu_seqlens, "max_seqlen_q": longest, "seed": seed}
        out = attention(**given, backend="triton")
        return (out * out).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in (case.lengths_q, (13, 13)):
        shaped = AttentionCase(**{**case.__dict__, "lengths_q": lengths})
        inputs = {name: x.requires_grad_() for name, x in inputs_of(shaped).items()}
        arguments = (inputs, options_of(shaped).get("cu_seqlens_q"), None if case.dense else max(lengths))
        expected = torch.autograd.grad(step(*arguments), inputs.values())
        found = torch.autograd.grad(compiled(*arguments), inputs.values())
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_what_it_refuses_and_when_auto_takes_it():
    wide = AttentionCase(lengths_q=(3,), width=257)
    with pytest.raises(ValueError, match="its tiles hold heads of width 256 at most"):
        results(wide, inputs_of(wide))
    with pytest.raises(ValueError, match=r"it takes torch.float32.*tensors are torch.float64"):
        results(EDGE_CASES["short"], inputs_of(EDGE_CASES["short"], torch.float64))
    assert (triton_backend.SUPPORTS.unverified_on, triton_backend.SUPPORTS.first_on) == (("cpu",), ("cuda",))


def test_a_graph_is_not_captured_without_bounds(monkeypatch):
    """Nothing may be read from the device then."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="max_seqlen_k is needed while a CUDA graph is captured"):
        triton_backend._longest("k", SimpleNamespace(is_cuda=True), None)
    assert triton_backend._longest("k", SimpleNamespace(is_cuda=True), 17) == 17


@pytest.mark.parametrize("capability", [0, 80, 90])
def test_every_call_has_tiles(capability):
    """Tiles hold what the kernels count on, for any width, length and dtype."""
    for width in (1, 16, 64, 80, 128, 192, 256):
        for element_size in (2, 4):
            for length in (1, 100, 128, 129, 5000):
                for dropped in (False, True):
                    for biased in (False, True):
                        shape = triton_tuning.Shape(
                            capability=capability, width=width, element_size=element_size, longest_q=length,
                            longest_k=length, dropped=dropped, drawn=dropped, biased=biased, windowed=False,
                        )  # fmt: skip
                        for choose in triton_tuning.TILES.values():
                            tile = choose(shape)
                            assert tile.keys % 32 == 0 and tile.queries in (16, 32, 64, 128)
                            assert triton_tuning.MOST_KEYS % tile.keys == 0 and tile.num_warps in (4, 8)
