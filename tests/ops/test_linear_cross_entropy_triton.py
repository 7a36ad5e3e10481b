"""Linear cross-entropy in Triton, on a GPU or in Triton's interpreter: the definition in float64, and what it adds."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.ops.linear_cross_entropy import chunks, on_gpu, triton_backend
from fastssl.ops.linear_cross_entropy.api import linear_cross_entropy
from fastssl.ops.linear_cross_entropy.cases import EDGE_CASES, LinearCrossEntropyCase
from tests.ops.test_linear_cross_entropy import check_that_nothing_is_looked_for
from tests.oracle import assert_within_budget, check_against_reference, gradients

pytestmark = [
    pytest.mark.triton,
    # The interpreter computes by numpy, which tells of infinities and of NaN, meant or in unused memory.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
REDUCTIONS = ["none", "sum", "mean"]
DIFFERENTIABLE = ("hidden", "weight", "bias")
# The interpreter takes milliseconds a row: many rows are a test of their own, with chunks of few.
SMALL_CASES = {name: case for name, case in EDGE_CASES.items() if case.num_rows < 100}


def call(case, inputs, backend="triton", **options):
    """Return linear_cross_entropy as a function of hidden, weight and bias, which it takes to the device and back."""
    names = [name for name in DIFFERENTIABLE if name in inputs]

    def function(*tensors):
        found = linear_cross_entropy(
            **{name: tensor.to(DEVICE) for name, tensor in zip(names, tensors, strict=True)},
            targets=inputs["targets"].to(DEVICE),
            backend=backend,
            **case.options,
            **options,
        )
        if not options.get("return_stats"):
            return found.cpu()
        loss, stats = found
        return loss.cpu(), *(tensor.cpu() for tensor in stats)

    return function


def floats(inputs):
    return [inputs[name] for name in DIFFERENTIABLE if name in inputs]


def check(case, inputs, **options):
    names = [name for name in DIFFERENTIABLE if name in inputs]
    check_against_reference(
        call(case, inputs, **options), call(case, inputs, "reference", **options), floats(inputs), names
    )


def all_gradients(case, inputs, **options):
    function = call(case, inputs, **options)
    out = function(*floats(inputs))
    return [out, *gradients(function, floats(inputs), torch.ones_like(out))]


def observed(run, see):
    """Return `chunks.run` that shows each chunk once it is a gradient."""

    def seeing(hidden, weight, logits, row_kernel, gradients):
        def kernel(chunk, *rest):
            row_kernel(chunk, *rest)
            see(chunk)

        run(hidden, weight, logits, kernel, gradients)

    return seeing


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of five rows."""
    monkeypatch.setattr(triton_backend, "chunk_rows", lambda num_rows, width: min(num_rows, 5))


@pytest.mark.parametrize(
    ("reduction", "dtype"),
    [("none", torch.float32), ("sum", torch.bfloat16), ("mean", torch.float16)],
)
@pytest.mark.parametrize("name", SMALL_CASES)
def test_against_the_definition(name, reduction, dtype):
    if name == "all ignored" and reduction == "mean":
        pytest.skip("a test of its own")
    check(EDGE_CASES[name], EDGE_CASES[name].inputs(dtype), reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_reduction_in_every_dtype(reduction, dtype):
    case = LinearCrossEntropyCase(num_rows=6, width=5, vocab_size=29)
    check(case, case.inputs(dtype), reduction=reduction)


@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(0, 7),
    width=st.integers(1, 40),
    vocab_size=st.integers(1, 1200),
    labelled=st.floats(0.01, 1.0),
    bias=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.3]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    softcap=st.sampled_from([None, 4.0]),
    reduction=st.sampled_from(REDUCTIONS),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(num_rows, width, vocab_size, labelled, bias, label_smoothing, z_loss, softcap, reduction, dtype):
    case = LinearCrossEntropyCase(
        num_rows=num_rows,
        width=width,
        vocab_size=vocab_size,
        labelled=labelled,
        bias=bias,
        options={"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap},
    )
    check(case, case.inputs(dtype), reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("vocab_size", [256, 512, 513, 1024, 1531, 30522])
def test_several_blocks_of_classes(vocab_size, dtype):
    """Below, at and above whole blocks: 256 float32 or 512 bfloat16 classes for one warp."""
    case = LinearCrossEntropyCase(num_rows=3, width=8, vocab_size=vocab_size, options={"label_smoothing": 0.1})
    check(case, case.inputs(dtype), reduction="sum")


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("name", ["prime", "all options"])
def test_several_chunks(small_chunks, name, dtype):
    case = EDGE_CASES[name]
    check(case, case.inputs(dtype), reduction="sum")


def test_weight_gradients_of_many_chunks_are_summed_in_float32(monkeypatch):
    """Half of 512, and 64 times a half more, which a bfloat16 sum would lose one by one."""
    monkeypatch.setattr(triton_backend, "chunk_rows", lambda num_rows, width: 1)
    case = LinearCrossEntropyCase(num_rows=65, width=1, vocab_size=2)
    hidden = torch.ones(65, 1, dtype=torch.bfloat16)
    hidden[0] = 512
    weight = torch.zeros(2, 1, dtype=torch.bfloat16)
    inputs = {"hidden": hidden, "weight": weight, "targets": torch.zeros(65, dtype=torch.int64)}
    gradient = all_gradients(case, inputs, reduction="sum")[2]
    assert gradient.tolist() == [[-288.0], [288.0]]


@pytest.mark.parametrize("num_rows", [0, 6])
def test_mean_over_no_labels_is_zero_with_zero_gradients(num_rows):
    case = LinearCrossEntropyCase(num_rows=num_rows, width=4, vocab_size=9, labelled=0.0)
    inputs = case.inputs(torch.float32)
    inputs["hidden"].fill_(float("nan"))
    for tensor in all_gradients(case, inputs):
        assert torch.equal(tensor, torch.zeros_like(tensor))


def test_ignored_rows_are_dropped_before_the_product():
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.float32)
    expected = all_gradients(case, inputs)
    inputs["hidden"][inputs["targets"] == -100] = float("inf")
    for a, b in zip(all_gradients(case, inputs), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_that_come_through_give_zeros(monkeypatch, reduction):
    """Under capture of a CUDA graph rows cannot be dropped by their content."""
    case = EDGE_CASES["all options"]
    inputs = case.inputs(torch.float32)
    expected = all_gradients(case, inputs, reduction=reduction)
    stats = call(case, inputs, return_stats=True)(*floats(inputs))
    inputs["hidden"][inputs["targets"] == -100] = float("nan")
    monkeypatch.setattr(triton_backend, "is_capturing", lambda tensor: True)
    monkeypatch.setattr(chunks, "labelled_rows", None)
    for a, b in zip(all_gradients(case, inputs, reduction=reduction), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(call(case, inputs, return_stats=True)(*floats(inputs)), stats)
    ignored = inputs["targets"] == -100
    assert not all_gradients(case, inputs, reduction=reduction)[1][ignored].any()


@pytest.mark.parametrize("capturing", [True, False])
def test_nothing_is_looked_for(monkeypatch, capturing):
    monkeypatch.setattr(triton_backend, "is_capturing", lambda tensor: capturing)
    case = LinearCrossEntropyCase(num_rows=7, width=8, vocab_size=53, labelled=1.0)
    check_that_nothing_is_looked_for(case, "triton", call)
    monkeypatch.setattr(torch.Tensor, "nonzero", None)
    monkeypatch.setattr(torch.Tensor, "masked_fill", None)
    inputs = case.inputs(torch.float32)
    gradients(call(case, inputs, ignore_index=None), floats(inputs), torch.ones(()))


@pytest.mark.skipif(DEVICE != "cuda", reason="only a GPU is waited for")
@pytest.mark.parametrize("backend", ["triton", "stock"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_host_does_not_wait_where_every_row_has_a_label(reduction, backend):
    case = LinearCrossEntropyCase(num_rows=9, width=16, vocab_size=101, labelled=1.0)
    inputs = {name: tensor.to(DEVICE) for name, tensor in case.inputs(torch.bfloat16).items()}
    leaves = [tensor.requires_grad_() for tensor in floats(inputs)]

    def step():
        loss = linear_cross_entropy(
            *leaves[:2], inputs["targets"], bias=leaves[2], ignore_index=None, reduction=reduction, backend=backend
        )
        loss.sum().backward()

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a GPU")
def test_cuda_graph():
    case = EDGE_CASES["all options"]
    inputs = {name: tensor.to(DEVICE) for name, tensor in case.inputs(torch.bfloat16).items()}
    leaves = [tensor.requires_grad_() for tensor in floats(inputs)]

    def step():
        loss = linear_cross_entropy(
            *leaves[:2], inputs["targets"], bias=leaves[2], backend="triton", reduction="sum", **case.options
        )
        return [loss, *torch.autograd.grad(loss, leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    with torch.no_grad():
        leaves[0].mul_(-1)
        inputs["targets"].copy_(inputs["targets"].flip(0))
    graph.replay()
    for a, b in zip(replayed, step(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weight_dtype", DTYPES[:2])
def test_mixed_dtypes(weight_dtype):
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.bfloat16, weight_dtype)
    check(case, inputs)
    loss, *found = all_gradients(case, inputs)
    assert loss.dtype == torch.float32
    assert [gradient.dtype for gradient in found] == [tensor.dtype for tensor in floats(inputs)]


@pytest.mark.parametrize("rows_of_a_chunk", [5, 100])
def test_autocast_rounds_the_operands_of_the_product_alone(monkeypatch, rows_of_a_chunk):
    monkeypatch.setattr(triton_backend, "chunk_rows", lambda num_rows, width: min(num_rows, rows_of_a_chunk))
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = all_gradients(case, inputs)
        expected = all_gradients(case, inputs, backend="reference")
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert_within_budget("autocast", a, b, b.double(), torch.bfloat16)


def test_small_gradients_of_a_float16_mean_survive():
    case = LinearCrossEntropyCase(num_rows=16, width=8, vocab_size=4000, labelled=1.0, logit_magnitude=0.1)
    inputs = case.inputs(torch.float16)
    loss_scale = torch.tensor(65536.0)
    found = gradients(call(case, inputs), floats(inputs), loss_scale)
    expected = gradients(
        call(case, inputs, "reference"), [tensor.double() for tensor in floats(inputs)], loss_scale.double()
    )
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).norm() < 2e-3 * b.norm()
    unlabelled = torch.ones(4000, dtype=torch.bool).index_fill_(0, inputs["targets"], False)
    a, b = found[2][unlabelled].double(), expected[2][unlabelled]
    assert (a - b).norm() < 2e-3 * b.norm()


@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize("name", ["prime", "smoothing", "no rows", "all ignored"])
def test_stats(small_chunks, needs_gradient, name):
    case = EDGE_CASES[name]
    inputs = case.inputs(torch.float32)
    tensors = [tensor.requires_grad_(needs_gradient) for tensor in floats(inputs)]
    loss, losses, lse, num_correct = call(case, inputs, reduction="sum", return_stats=True)(*tensors)
    logits = F.linear(*tensors).detach()
    labelled = inputs["targets"] != -100
    torch.testing.assert_close(lse, logits.logsumexp(-1) * labelled)
    torch.testing.assert_close(losses.sum(), loss.detach())
    assert num_correct == ((logits.argmax(-1) == inputs["targets"]) & labelled).sum()
    assert not any(tensor.requires_grad for tensor in (losses, lse, num_correct))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("largest", [(0,), (5, 6), (7, 300, 301), (599,), (3, 598, 599), range(600)])
def test_the_first_of_equals_is_correct(largest, dtype):
    """In the same group of a load, in others, in other blocks."""
    bias = torch.zeros(600, dtype=dtype)
    bias[list(largest)] = 2.0
    targets = torch.tensor([largest[0], largest[-1], 299])
    _, stats = linear_cross_entropy(
        torch.zeros(3, 4, dtype=dtype, device=DEVICE),
        torch.ones(600, 4, dtype=dtype, device=DEVICE),
        targets.to(DEVICE),
        bias=bias.to(DEVICE),
        softcap=3.0,
        return_stats=True,
        backend="triton",
    )
    assert stats.num_correct == (targets == largest[0]).sum()


def test_shift_of_all_logits_changes_lse_alone():
    case = EDGE_CASES["smoothing"]
    inputs = case.inputs(torch.float32)
    hidden, weight, bias = floats(inputs)
    loss, _, lse, _ = call(case, inputs, return_stats=True)(hidden, weight, bias)
    shifted_loss, _, shifted, _ = call(case, inputs, return_stats=True)(hidden, weight, bias + 1024)
    torch.testing.assert_close(loss, shifted_loss, rtol=0, atol=1e-3)
    torch.testing.assert_close(shifted, torch.where(inputs["targets"] == -100, 0.0, lse + 1024))


def test_masked_out_classes():
    """A bias of -inf takes a class out of the softmax, also where it takes whole loads out."""
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.float32)
    inputs["bias"][50:] = -torch.inf
    inputs["bias"][:8] = -torch.inf
    outside = (inputs["targets"] >= 50) | (inputs["targets"] < 8)
    inputs["targets"] = torch.where(outside, -100, inputs["targets"])
    loss, *found = all_gradients(case, inputs)
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(*floats(inputs)), inputs["targets"]))
    assert all(gradient.isfinite().all() for gradient in found)
    assert not found[1][50:].any() and not found[1][:8].any()


def test_nan_reaches_the_loss():
    hidden = torch.randn(3, 8)
    hidden[1, 2] = torch.nan
    losses, (_, _, num_correct) = linear_cross_entropy(
        hidden.to(DEVICE),
        torch.randn(50, 8, device=DEVICE),
        torch.tensor([1, 2, 3], device=DEVICE),
        reduction="none",
        return_stats=True,
        backend="triton",
    )
    assert losses.isnan().tolist() == [False, True, False]
    assert num_correct <= 2


@pytest.mark.parametrize("target", [50, 2**40, -1])
def test_a_target_outside_the_vocabulary_is_nan_where_the_host_does_not_look(target):
    options = (-100, 0.0, 0.0, None, torch.float32)
    losses, _, _, *found = triton_backend.forward_with_gradients(
        torch.randn(2, 8, device=DEVICE),
        torch.randn(50, 8, device=DEVICE),
        torch.tensor([3, target], device=DEVICE),
        torch.randn(50, device=DEVICE),
        None,
        *options,
        *(True, True, True),
    )
    assert losses.isnan().tolist() == [False, True]
    assert found[0].isnan().any(-1).tolist() == [False, True]
    assert found[1].isnan().any() and found[2].isnan().any()


def test_scaled_and_repeated_backward():
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in floats(inputs)]
    loss = call(case, inputs)(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    copies = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss * 3, leaves)
    third = torch.autograd.grad(call(case, inputs)(*leaves) * 3, leaves)
    for kept, copy, tripled, scaled in zip(first, copies, second, third, strict=True):
        assert torch.equal(kept, copy)
        torch.testing.assert_close(tripled, 3 * copy)
        torch.testing.assert_close(scaled, 3 * copy)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_the_wanted_gradients(wanted):
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.float32)
    expected = all_gradients(case, inputs)[1 + wanted]
    tensors = [tensor.clone().requires_grad_(place == wanted) for place, tensor in enumerate(floats(inputs))]
    call(case, inputs)(*tensors).backward()
    assert torch.equal(tensors[wanted].grad, expected)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_same_bits_on_repeat(small_chunks, dtype):
    case = EDGE_CASES["all options"]
    inputs = case.inputs(dtype)
    for a, b in zip(all_gradients(case, inputs), all_gradients(case, inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["prime", "all ignored", "no rows"])
def test_poisoned_memory(poisoned_memory, name, reduction):
    case = EDGE_CASES[name]
    for tensor in all_gradients(case, case.inputs(torch.bfloat16), reduction=reduction):
        assert not tensor.isnan().any()


def test_opcheck():
    case = EDGE_CASES["all options"]
    inputs = {name: tensor[:9].to(DEVICE) for name, tensor in case.inputs(torch.float32).items()}
    hidden, weight, bias = floats(inputs)
    options = (0.2, 1e-2, 10.0, torch.float32)
    op = torch.ops.fastssl.linear_cross_entropy_triton.default
    targets = inputs["targets"].clamp(max=8)
    for ignore_index, row_grads, needs in (
        (-100, None, (True, True, True)),
        (None, torch.ones(9, device=DEVICE), (True, False, False)),
    ):
        labels = targets if ignore_index else targets.clamp(min=0)
        torch.library.opcheck(op, (hidden, weight, labels, bias, row_grads, ignore_index, *options, *needs))


@pytest.mark.parametrize(
    ("reduction", "dtype"), [("none", torch.float32), ("sum", torch.float16), ("mean", torch.float16)]
)
def test_compile_with_dynamic_shapes(reduction, dtype):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(hidden, weight, bias, targets):
        return linear_cross_entropy(
            hidden, weight, targets, bias=bias, reduction=reduction, return_stats=True, backend="triton"
        )

    for num_rows in (5, 8):
        case = LinearCrossEntropyCase(num_rows=num_rows, width=8, vocab_size=21)
        inputs = {name: tensor.to(DEVICE) for name, tensor in case.inputs(dtype).items()}
        leaves = [tensor.requires_grad_() for tensor in floats(inputs)]
        loss, stats = compiled(*leaves, inputs["targets"])
        expected, expected_stats = linear_cross_entropy(
            *leaves[:2], inputs["targets"], bias=leaves[2], reduction=reduction, return_stats=True, backend="triton"
        )
        torch.testing.assert_close((loss, *stats), (expected, *expected_stats))
        for a, b in zip(
            torch.autograd.grad(loss.square().sum(), leaves),
            torch.autograd.grad(expected.square().sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_chunks_are_even_and_whole_tiles():
    assert triton_backend.chunk_rows(1229, 768) == 1229
    assert triton_backend.chunk_rows(8192, 768) == 4096
    assert triton_backend.chunk_rows(8192, 4096) == 2048
    assert triton_backend.chunk_rows(20000, 64) == 6784
    assert triton_backend.chunk_rows(7000, 64) == 7000
    assert triton_backend.chunk_rows(0, 64) == 0


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "num_warps"),
    [
        (2, torch.float32, 1),
        (4096, torch.bfloat16, 1),
        (30522, torch.bfloat16, 8),
        (30522, torch.float32, 16),
        (50257, torch.bfloat16, 16),
        (128256, torch.bfloat16, 32),
        (262144, torch.float32, 16),
    ],
)
def test_wide_rows_get_more_warps(vocab_size, dtype, num_warps):
    config = triton_backend.row_kernel_config(vocab_size, dtype, with_gradient=True)
    assert config.num_warps == num_warps
    assert triton_backend.row_kernel_config(vocab_size, dtype, with_gradient=False).num_warps == min(num_warps, 8)
    assert config.group * dtype.itemsize == 16
    assert config.groups == 2 * 32 * num_warps


@pytest.mark.parametrize("weight_dtype", DTYPES[:2])
@pytest.mark.parametrize("vocab_size", [1, 64, 101, 30522, 50257])
def test_products_have_whole_cache_lines_of_classes(vocab_size, weight_dtype):
    weight = torch.randn(vocab_size, 3, dtype=weight_dtype)
    for dtype in DTYPES:
        matrix = on_gpu.padded_vocabulary(weight, dtype)
        num_rows = matrix.shape[0]
        assert vocab_size <= num_rows < vocab_size + 64 and num_rows * dtype.itemsize % 128 == 0 and num_rows % 16 == 0
        assert matrix.is_contiguous() and torch.equal(matrix[:vocab_size], weight.to(dtype))
        assert not matrix[vocab_size:].any()
    assert on_gpu.padded_vocabulary(weight[:64], weight_dtype).data_ptr() == weight.data_ptr() or vocab_size % 64


def test_what_it_refuses():
    double = torch.ones(3, 4, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match=r"takes .*, the tensors are torch.float64"):
        linear_cross_entropy(double, double, torch.zeros(3, dtype=torch.int64, device=DEVICE), backend="triton")


@pytest.mark.parametrize("rows_of_a_chunk", [5, 100])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_padding_spreads_no_infinite_operand(monkeypatch, rows_of_a_chunk, value):
    """A logit of the padding is infinity times 0; with a softcap, only that is NaN in the gradient of the logits."""
    case, padding = EDGE_CASES["softcap"], []
    monkeypatch.setattr(triton_backend, "chunk_rows", lambda num_rows, width: min(num_rows, rows_of_a_chunk))
    monkeypatch.setattr(chunks, "run", observed(chunks.run, lambda chunk: padding.append(chunk[:, 53:].clone())))
    inputs = case.inputs(torch.float32)
    inputs["hidden"][3, 4], inputs["targets"][3] = value, 7
    found, wanted = (
        gradients(call(case, inputs, backend), floats(inputs), torch.ones(())) for backend in ("triton", "reference")
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert padding and all(part.shape[1] == 11 and not part.any() for part in padding)


def test_the_gradient_of_the_weight_is_whole():
    inputs = {name: tensor.to(DEVICE) for name, tensor in EDGE_CASES["prime"].inputs(torch.float32).items()}
    weight = inputs["weight"].requires_grad_()
    optimizer = torch.optim.AdamW([weight])
    for _ in range(2):
        linear_cross_entropy(inputs["hidden"], weight, inputs["targets"], backend="triton").backward()
        assert weight.grad.shape == weight.shape and weight.grad.is_contiguous()
    optimizer.step()
