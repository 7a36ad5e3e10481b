"""Attention as an operator: layouts, determinism, autograd, compilation, autocast, choice of backend, errors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastssl.ops.attention import split_projection
from fastssl.ops.attention.api import attention
from fastssl.ops.attention.cases import EDGE_CASES, AttentionCase, offsets
from tests.oracle import check_against_reference, gradients

CASE = AttentionCase(lengths_q=(37, 1, 90), causal=True, dropout_p=0.1, width=24)


def results(case, inputs, **extra):
    """Return the output, lse and every gradient of a native call."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    out, lse = attention(**leaves, **case.options(), return_lse=True, backend="native", **extra)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves.values(), cotangent)]


def assert_same_bits(first, second):
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.native
@pytest.mark.parametrize("name", ["everything", "grouped", "own bias", "window"])
def test_same_bits_on_repeat_and_for_any_thread_count(capability, name):
    case, before = EDGE_CASES[name], torch.get_num_threads()
    inputs = case.inputs(torch.float32)
    try:
        torch.set_num_threads(1)
        expected = results(case, inputs)
        assert_same_bits(expected, results(case, inputs))
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert_same_bits(expected, results(case, inputs))
    finally:
        torch.set_num_threads(before)


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_and_dense_are_the_same_bits(capability, dtype):
    case = AttentionCase(lengths_q=(70, 70, 70), lengths_k=(150, 150, 150), dropout_p=0.2, causal=True, bias="own")
    packed = case.inputs(dtype)
    dense = {name: x if name == "bias" else x.unflatten(0, (3, -1)) for name, x in packed.items()}
    from_packed = results(case, packed)
    from_dense = results(AttentionCase(**{**case.__dict__, "dense": True}), dense)
    from_dense[1] = from_dense[1].transpose(0, 1)
    assert_same_bits([x.flatten() for x in from_packed], [x.flatten() for x in from_dense])


@pytest.mark.native
def test_neighbours_and_padding_change_nothing(capability):
    """A sequence gives the same bits alone and in front of others; a padded one those of its real part."""
    inputs = AttentionCase(lengths_q=(37, 90)).inputs(torch.float32)
    options = {"dropout_p": 0.1, "seed": 3, "backend": "native"}
    both = attention(**inputs, cu_seqlens_q=offsets((37, 90)), **options)
    alone = attention(**{name: x[:37] for name, x in inputs.items()}, cu_seqlens_q=offsets((37,)), **options)
    assert torch.equal(both[:37], alone)
    split = attention(**inputs, cu_seqlens_q=offsets((37, 0, 90)), **options)
    assert torch.equal(split[:37], alone)


@pytest.mark.native
@pytest.mark.parametrize("key_heads", [3, 1])
def test_the_gradient_of_a_fused_projection_is_not_copied(key_heads):
    case = AttentionCase(lengths_q=(40, 33), width=16, heads=3, key_heads=key_heads)
    fused = torch.randn(73, 3 + 2 * key_heads, 16, requires_grad=True)
    seen = []
    q, k, v = split_projection(fused, 3, key_heads)
    q.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    out = attention(q, k, v, **case.options(), backend="native")
    (gradient,) = torch.autograd.grad(out.square().sum(), fused)
    assert seen == [gradient.data_ptr()]
    split = fused.split((3, key_heads, key_heads), dim=1)
    copied = attention(*(x.clone() for x in split), **case.options(), backend="native")
    assert torch.equal(out, copied)
    assert torch.equal(gradient, torch.autograd.grad(copied.square().sum(), fused)[0])


def test_split_projection_takes_any_gradients():
    fused = torch.randn(5, 8, 4, requires_grad=True)
    q, k, _ = split_projection(fused, 4, 2)
    (gradient,) = torch.autograd.grad(q.sum() + (3 * k).sum(), fused)
    expected = torch.cat([torch.full((5, 4, 4), 1.0), torch.full((5, 2, 4), 3.0), torch.zeros(5, 2, 4)], dim=1)
    assert torch.equal(gradient, expected)
    with pytest.raises(ValueError, match=r"expected \(..., 12, D\) for 4 \+ 2 x 4 heads, got \(5, 8, 4\)"):
        split_projection(fused, 4)


@pytest.mark.native
@pytest.mark.parametrize("dims", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_any_strides(capability, dims):
    case = AttentionCase(lengths_q=(20, 45), width=8, heads=4, bias="shared")
    inputs = case.inputs(torch.float32)
    expected = results(case, inputs)
    back = [dims.index(i) for i in range(3)]
    strided = {name: x.permute(dims).contiguous().permute(back) for name, x in inputs.items()}
    leaves = [x.detach().requires_grad_() for x in strided.values()]
    out = attention(**dict(zip(strided, leaves, strict=True)), **case.options(), backend="native")
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad(out, leaves, cotangent.permute(dims).contiguous().permute(back))
    assert_same_bits([expected[0], *expected[2:]], [out.detach(), *found])


@pytest.mark.native
def test_expanded_cotangent(capability):
    inputs = CASE.inputs(torch.float32)
    names = list(inputs)

    def total(backend):
        return lambda *x: attention(**dict(zip(names, x, strict=True)), **CASE.options(), backend=backend).sum()[None]

    check_against_reference(total("native"), total("reference"), list(inputs.values()), names)


@pytest.mark.native
def test_one_tensor_as_query_key_and_value(capability):
    x = torch.randn(30, 2, 16)
    options = {"cu_seqlens_q": offsets((10, 20))}
    check_against_reference(
        lambda y: attention(y, y, y, **options, backend="native"),
        lambda y: attention(y, y, y, **options, backend="reference"),
        [x],
        ["x"],
    )


@pytest.mark.native
def test_poisoned_memory_never_shows(capability, poisoned_memory):
    for name in ("short", "prime", "cross, causal", "window far apart, causal", "grouped", "everything"):
        for tensor in results(EDGE_CASES[name], EDGE_CASES[name].inputs(torch.float32)):
            assert not tensor.isnan().any(), name


@pytest.mark.native
@pytest.mark.parametrize("name", ["short", "dense, cross", "everything", "grouped"])
def test_opcheck(name):
    case = EDGE_CASES[name]
    inputs, options = case.inputs(torch.float32), case.options()
    cu_q = options.get("cu_seqlens_q")
    cu_k = options.get("cu_seqlens_k", cu_q)
    rest = (inputs.get("bias"), options.get("alibi_slopes"), 90, 5, 6554, torch.tensor(3), 0.25)
    qkv = [inputs[name] for name in "qkv"]
    torch.library.opcheck(torch.ops.fastssl.attention_forward, (*qkv, cu_q, cu_k, *rest))
    out, lse = torch.ops.fastssl.attention_forward(*qkv, cu_q, cu_k, *rest)
    arguments = (torch.ones_like(out), None, *qkv, out, lse, cu_q, cu_k, *rest, "bias" in inputs)
    same_rows = qkv[0].shape[:-2] == qkv[1].shape[:-2]
    for together in {False, same_rows}:
        torch.library.opcheck(torch.ops.fastssl.attention_backward, (*arguments, together))


@pytest.mark.native
@pytest.mark.parametrize("dense", [False, True])
def test_gradients_lie_as_the_inputs_do(dense):
    """Slices of one projection get slices of one buffer; tensors of their own get packed ones, fit to be a .grad."""
    shape = (2, 5, 12, 8) if dense else (10, 12, 8)
    offsets = {} if dense else {"cu_seqlens_q": torch.tensor([0, 4, 10], dtype=torch.int32)}
    fused = torch.randn(shape)
    slices = [part.requires_grad_() for part in fused.split((6, 3, 3), dim=-2)]
    apart = [part.detach().clone().requires_grad_() for part in slices]
    of_slices, of_apart = (torch.autograd.grad(attention(*qkv, **offsets).sin().sum(), qkv) for qkv in (slices, apart))
    assert len({gradient.untyped_storage().data_ptr() for gradient in of_slices}) == 1
    assert all(gradient.is_contiguous() for gradient in of_apart)
    for one, other in zip(of_slices, of_apart, strict=True):
        assert torch.equal(one, other)


@pytest.mark.native
@pytest.mark.parametrize("case", [CASE, AttentionCase(lengths_q=(20, 20), dense=True, bias="shared")])
def test_compiles_whole_and_dynamic(case):
    """One graph serves every number of tokens, and gives the bits of the eager call."""
    seed = torch.tensor(11)
    options = {name: x for name, x in case.options().items() if name not in ("seed", "cu_seqlens_q")}

    def step(inputs, cu_seqlens):
        out = attention(**inputs, **options, cu_seqlens_q=cu_seqlens, seed=seed)
        return (out * out).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in (case.lengths_q, (50, 50), (13, 13)):
        shaped = AttentionCase(**{**case.__dict__, "lengths_q": lengths})
        inputs = {name: x.requires_grad_() for name, x in shaped.inputs(torch.float32).items()}
        cu_seqlens = shaped.options().get("cu_seqlens_q")
        expected = torch.autograd.grad(step(inputs, cu_seqlens), inputs.values())
        found = torch.autograd.grad(compiled(inputs, cu_seqlens), inputs.values())
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.native
def test_compiles_with_one_tensor_as_query_key_and_value():
    x, cu_seqlens = torch.randn(30, 2, 16), offsets((10, 20))

    def step(x):
        return attention(x, x, x, cu_seqlens_q=cu_seqlens)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(*(gradients(f, [x], torch.ones_like(x))[0] for f in (step, compiled)))


@pytest.mark.native
def test_autocast():
    inputs = {name: x.requires_grad_() for name, x in CASE.inputs(torch.float32).items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(**inputs, **CASE.options())
    low = attention(**{name: x.bfloat16() for name, x in inputs.items()}, **CASE.options())
    assert out.dtype == torch.bfloat16 and torch.equal(out, low)
    grads = torch.autograd.grad(out.float().sum(), inputs.values())
    assert all(g.dtype == torch.float32 for g in grads)


@pytest.mark.native
def test_fp32_bias_beside_16_bit_inputs(capability):
    case = AttentionCase(lengths_q=(30, 20), bias="shared")
    low = case.inputs(torch.bfloat16)
    low["bias"] = case.inputs(torch.float32)["bias"]
    names, values = list(low), list(low.values())

    def function(backend):
        return lambda *x: attention(**dict(zip(names, x, strict=True)), **case.options(), backend=backend)

    check_against_reference(function("native"), function("reference"), values, names)
    assert gradients(function("native"), values, torch.ones_like(low["q"]))[3].dtype == torch.float32


def test_seeds():
    inputs = CASE.inputs(torch.float32)
    options = {name: x for name, x in CASE.options().items() if name != "seed"}
    torch.manual_seed(1)
    drawn = attention(**inputs, **options)
    assert not torch.equal(drawn, attention(**inputs, **options))
    torch.manual_seed(1)
    assert torch.equal(drawn, attention(**inputs, **options))
    fixed = attention(**inputs, **options, seed=2**63 + 1)
    assert torch.equal(fixed, attention(**inputs, **options, seed=torch.tensor(1 - 2**63)))


@pytest.mark.parametrize("backend", ["reference", "stock", pytest.param("native", marks=pytest.mark.native)])
@pytest.mark.parametrize("side", [2**31 - 1, 2**31, 2**32, 2**33 + 3, 2**40])
def test_a_window_beyond_32_bits_hides_nothing(backend, side):
    x, slopes = torch.randn(1, 40, 2, 16), torch.rand(2)
    expected = attention(x, x, x, alibi_slopes=slopes, backend="reference")
    for window in ((side, None), (None, side), (side, side)):
        torch.testing.assert_close(attention(x, x, x, alibi_slopes=slopes, window=window, backend=backend), expected)


@pytest.mark.parametrize("scale", [0.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scale_that_is_not_positive(scale, dtype):
    """PyTorch's own causal attention gives NaN there."""
    q, k, v = torch.randn(3, 2, 9, 2, 16, dtype=dtype, generator=torch.Generator().manual_seed(1))
    expected = attention(q, k, v, causal=True, scale=scale, backend="reference")
    for backend in ("stock", "auto"):
        torch.testing.assert_close(attention(q, k, v, causal=True, scale=scale, backend=backend), expected)


@pytest.mark.parametrize("backend", ["auto", "stock", "reference"])
def test_shapes_without_numbers(backend):
    """On the meta device, and in the mode in which tracers work out shapes."""
    shapes = [torch.empty(2, 3, heads, 8, device="meta") for heads in (4, 2, 2)]
    assert attention(*shapes, backend=backend).shape == (2, 3, 4, 8)
    with FakeTensorMode():
        assert attention(*(torch.randn(x.shape) for x in shapes), backend=backend).shape == (2, 3, 4, 8)


@pytest.mark.native
def test_packed_shapes_without_numbers():
    with FakeTensorMode():
        x = torch.randn(5, 1, 8, requires_grad=True)
        out = attention(x, x, x, cu_seqlens_q=torch.tensor([0, 2, 5], dtype=torch.int32))
        assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


def test_float64_falls_back():
    inputs = CASE.inputs(torch.float64)
    assert attention(**inputs, **CASE.options()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"it takes torch.float32.*tensors are torch.float64"):
        attention(**inputs, **CASE.options(), backend="native")


def test_stock_refuses_what_it_cannot_express():
    inputs = CASE.inputs(torch.float32)
    with pytest.raises(ValueError, match=r"another dropout mask; .*does not return lse"):
        attention(**inputs, **CASE.options(), return_lse=True, backend="stock")


def _bad(change, message):
    return pytest.param(change, message, id=message[:40])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        _bad({"q": torch.zeros(5, 8)}, r"expected q \(N, H, D\).*got q \(5, 8\)"),
        _bad({"k": torch.zeros(6, 2, 4), "v": torch.zeros(6, 2, 4)}, "head width 8, k and v have 4"),
        _bad({"k": torch.zeros(6, 3, 8), "v": torch.zeros(6, 3, 8)}, "must divide the query heads; got 3 and 4"),
        _bad({"v": torch.zeros(6, 2, 8).double()}, "share one floating dtype"),
        _bad({"k": torch.zeros(6, 2, 8, device="meta"), "v": torch.zeros(6, 2, 8, device="meta")}, "k must be on cpu"),
        _bad({"bias": torch.zeros(4, 9, 9, device="meta")}, "bias must be on cpu like q, got meta"),
        _bad({"cu_seqlens_k": torch.zeros(3, device="meta")}, "cu_seqlens_k must be on cpu like q, got meta"),
        _bad({"cu_seqlens_q": None}, "needs cu_seqlens_q"),
        _bad({"cu_seqlens_q": torch.tensor([0, 2, 5])}, "must be a 1-D int32 tensor"),
        _bad({"cu_seqlens_q": torch.tensor([0, 2, 4], dtype=torch.int32)}, "rise from 0 to the 5 rows of q"),
        _bad({"cu_seqlens_k": torch.tensor([0, 7, 6], dtype=torch.int32)}, "rise from 0 to the 6 rows of k"),
        _bad({"cu_seqlens_k": torch.tensor([0, 6], dtype=torch.int32)}, "describes 2 sequences, cu_seqlens_k 1"),
        _bad({"max_seqlen_q": 2}, "max_seqlen_q=2 is below the longest sequence, 3"),
        _bad({"window": (1, 2, 3)}, r"window must be \(left, right\)"),
        _bad({"window": (-2, 0)}, r"window must be \(left, right\)"),
        _bad({"window": 3}, r"window must be \(left, right\), each a whole number of keys, None or -1; got 3"),
        _bad({"window": (1.5, None)}, r"each a whole number of keys, None or -1; got \(1.5, None\)"),
        _bad({"cu_seqlens_q": [0, 2, 5]}, "cu_seqlens_q must be a tensor, got list"),
        _bad({"dropout_p": 0.1, "seed": 1.5}, "seed must be an int or a 0-d int64 tensor, got 1.5"),
        _bad({"bias": torch.zeros(2, 9, 9)}, "bias must be .* with H = 4"),
        _bad({"bias": torch.zeros(4, 9, 9).double()}, "bias must be torch.float32"),
        _bad({"bias": torch.zeros(4, 9, 3)}, "covers 9 queries and 3 keys.*have 3 and 4"),
        _bad({"bias": torch.zeros(3, 4, 9, 9)}, "bias has 3 sequences, the input has 2"),
        _bad({"alibi_slopes": torch.zeros(2)}, r"shape \(4,\)"),
        _bad({"alibi_slopes": torch.zeros(4, requires_grad=True)}, "gets no gradient"),
        _bad({"dropout_p": 1.0}, "below 1"),
        _bad({"dropout_p": 0.1, "seed": torch.zeros(2)}, "0-d int64"),
        _bad({"backend": "cuda"}, "does not exist"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(change, message):
    good = {
        "q": torch.zeros(5, 4, 8),
        "k": torch.zeros(6, 2, 8),
        "v": torch.zeros(6, 2, 8),
        "cu_seqlens_q": torch.tensor([0, 2, 5], dtype=torch.int32),
        "cu_seqlens_k": torch.tensor([0, 2, 6], dtype=torch.int32),
    }
    attention(**good)
    with pytest.raises(ValueError, match=message):
        attention(**(good | change))


def test_dense_input_takes_no_offsets():
    x = torch.zeros(2, 3, 1, 4)
    with pytest.raises(ValueError, match="belong to packed"):
        attention(x, x, x, cu_seqlens_q=offsets((3, 3)))
    with pytest.raises(ValueError, match="q has 2 sequences, k and v have 1"):
        attention(x, x[:1], x[:1])


@pytest.mark.native
def test_offsets_that_would_leave_the_tensors_are_stopped_in_the_operator():
    """Under torch.compile the values of the offsets are checked here alone."""
    x = torch.zeros(5, 1, 8)
    for bad in ([0, 9, 5], [0, 2, 6], [-1, 2, 5], [1, 2, 5]):
        cu_seqlens = torch.tensor(bad, dtype=torch.int32)
        with pytest.raises(RuntimeError, match="cu_seqlens must rise from 0"):
            torch.ops.fastssl.attention_forward(
                x, x, x, cu_seqlens, cu_seqlens, None, None, 2**31 - 1, 2**31 - 1, 0, None, 1.0
            )
