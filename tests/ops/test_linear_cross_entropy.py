"""Linear cross-entropy: the definition against PyTorch, every backend against the definition in float64."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastssl import extension
from fastssl.ops.linear_cross_entropy import native
from fastssl.ops.linear_cross_entropy.api import linear_cross_entropy
from fastssl.ops.linear_cross_entropy.cases import EDGE_CASES, LinearCrossEntropyCase
from tests.oracle import assert_within_budget, check_against_reference, gradients

BACKENDS = [pytest.param("native", marks=pytest.mark.native), "stock", "reference"]
DTYPES = [torch.float32, torch.bfloat16]
REDUCTIONS = ["none", "sum", "mean"]
DIFFERENTIABLE = ("hidden", "weight", "bias")


def call(case, inputs, backend, **options):
    """Return linear_cross_entropy as a function of hidden, weight and bias."""
    names = [name for name in DIFFERENTIABLE if name in inputs]

    def function(*tensors):
        return linear_cross_entropy(
            **dict(zip(names, tensors, strict=True)),
            targets=inputs["targets"],
            backend=backend,
            **case.options,
            **options,
        )

    return function


def floats(inputs):
    return [inputs[name] for name in DIFFERENTIABLE if name in inputs]


def check(case, inputs, **options):
    names = [name for name in DIFFERENTIABLE if name in inputs]
    tested, reference = call(case, inputs, "native", **options), call(case, inputs, "reference", **options)
    check_against_reference(tested, reference, floats(inputs), names)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["prime", "all options"])
def test_gradcheck_of_the_reference(name, reduction):
    case = EDGE_CASES[name]
    inputs = LinearCrossEntropyCase(num_rows=5, width=3, vocab_size=7, options=case.options).inputs(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in floats(inputs)]
    assert torch.autograd.gradcheck(call(case, inputs, "reference", reduction=reduction), leaves)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["prime", "no bias", "smoothing", "none ignored"])
def test_parity_with_pytorch(backend, reduction, name):
    case = EDGE_CASES[name]
    inputs = case.inputs(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in floats(inputs)]
    got = call(case, inputs, backend, reduction=reduction)(*leaves)
    expected = F.cross_entropy(F.linear(*leaves), inputs["targets"], reduction=reduction, **case.options)
    torch.testing.assert_close(got, expected)
    cotangent = torch.randn(got.shape)
    for a, b in zip(
        torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_native_against_the_definition(capability, name, reduction, dtype):
    case = EDGE_CASES[name]
    if name == "all ignored" and reduction == "mean":
        pytest.skip("a test of its own")
    check(case, case.inputs(dtype), reduction=reduction)


@pytest.mark.native
@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(0, 300),
    width=st.integers(1, 40),
    vocab_size=st.integers(1, 300),
    labelled=st.floats(0.01, 1.0),
    bias=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.3]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    softcap=st.sampled_from([None, 4.0]),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_shape(num_rows, width, vocab_size, labelled, bias, label_smoothing, z_loss, softcap, reduction):
    case = LinearCrossEntropyCase(
        num_rows=num_rows,
        width=width,
        vocab_size=vocab_size,
        labelled=labelled,
        bias=bias,
        options={"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap},
    )
    check(case, case.inputs(torch.float32), reduction=reduction)


@pytest.mark.native
@pytest.mark.parametrize("has_bf16_arithmetic", [True, False])
@pytest.mark.parametrize("name", ["prime", "several chunks", "all options", "logits of 1e4"])
def test_bfloat16_on_machines_with_and_without_its_arithmetic(monkeypatch, name, has_bf16_arithmetic):
    monkeypatch.setattr(native, "_has_bf16_arithmetic", lambda: has_bf16_arithmetic)
    case = EDGE_CASES[name]
    check(case, case.inputs(torch.bfloat16))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_rows", [0, 6])
def test_mean_over_no_labels_is_zero_with_zero_gradients(backend, num_rows):
    case = LinearCrossEntropyCase(num_rows=num_rows, width=4, vocab_size=9, labelled=0.0)
    inputs = case.inputs(torch.float32)
    inputs["hidden"].fill_(float("nan"))
    leaves = [tensor.requires_grad_() for tensor in floats(inputs)]
    loss = call(case, inputs, backend)(*leaves)
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, leaves):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_rows_are_dropped_before_the_product(backend):
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.float32)
    expected = gradients(call(case, inputs, backend), floats(inputs), torch.ones(()))
    inputs["hidden"][inputs["targets"] == -100] = float("inf")
    for a, b in zip(gradients(call(case, inputs, backend), floats(inputs), torch.ones(())), expected, strict=True):
        assert torch.equal(a, b)


def check_that_nothing_is_looked_for(case, backend, call):
    """Without ignored rows to look for, the bits are those of a search that finds none."""
    inputs = case.inputs(torch.float32)

    def results(**options):
        loss = call(case, inputs, backend, **options)(*floats(inputs))
        cotangent = torch.rand(loss.shape, generator=torch.Generator().manual_seed(5))
        return loss, *gradients(call(case, inputs, backend, **options), floats(inputs), cotangent)

    for reduction in REDUCTIONS:
        expected, found = results(reduction=reduction), results(reduction=reduction, ignore_index=None)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["none ignored", "no rows"])
def test_nothing_is_looked_for(backend, name):
    check_that_nothing_is_looked_for(EDGE_CASES[name], backend, call)


@pytest.mark.native
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_mixed_dtypes(capability, weight_dtype):
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.bfloat16, weight_dtype)
    check(case, inputs)
    loss = call(case, inputs, "native")(*floats(inputs))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize("name", ["several chunks", "smoothing", "no rows", "all ignored"])
def test_stats(backend, needs_gradient, name):
    case = EDGE_CASES[name]
    inputs = case.inputs(torch.float32)
    tensors = [tensor.requires_grad_(needs_gradient) for tensor in floats(inputs)]
    loss, stats = call(case, inputs, backend, reduction="sum", return_stats=True)(*tensors)
    logits = F.linear(*tensors).detach()
    labelled = inputs["targets"] != -100
    torch.testing.assert_close(stats.lse, logits.logsumexp(-1) * labelled)
    torch.testing.assert_close(stats.losses.sum(), loss)
    assert stats.num_correct == ((logits.argmax(-1) == inputs["targets"]) & labelled).sum()
    assert not any(tensor.requires_grad for tensor in stats)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_logits_count_as_correct_for_the_first_class_alone(backend):
    targets = torch.arange(40)
    _, stats = linear_cross_entropy(torch.zeros(40, 4), torch.randn(40, 4), targets, return_stats=True, backend=backend)
    assert stats.num_correct == 1


@pytest.mark.native
def test_shift_of_all_logits_changes_lse_alone(capability):
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.float32)
    hidden, weight, bias = floats(inputs)
    loss, stats = call(case, inputs, "native", return_stats=True)(hidden, weight, bias)
    shifted_loss, shifted = call(case, inputs, "native", return_stats=True)(hidden, weight, bias + 8)
    torch.testing.assert_close(loss, shifted_loss)
    torch.testing.assert_close(shifted.lse, torch.where(inputs["targets"] == -100, 0.0, stats.lse + 8))


@pytest.mark.native
def test_masked_out_classes():
    """A bias of -inf takes a class out of the softmax."""
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.float32)
    inputs["bias"][50:] = -torch.inf
    inputs["targets"] = torch.where(inputs["targets"] >= 50, -100, inputs["targets"])
    out = gradients(call(case, inputs, "native"), floats(inputs), torch.ones(()))
    assert all(gradient.isfinite().all() for gradient in out)
    assert torch.equal(out[1][50:], torch.zeros_like(out[1][50:]))


@pytest.mark.native
def test_nan_reaches_the_loss(capability):
    hidden = torch.randn(3, 8)
    hidden[1, 2] = torch.nan
    losses = linear_cross_entropy(hidden, torch.randn(50, 8), torch.tensor([1, 2, 3]), reduction="none")
    assert losses.isnan().tolist() == [False, True, False]


@pytest.mark.native
def test_scaled_and_repeated_backward():
    case = EDGE_CASES["several chunks"]
    inputs = case.inputs(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in floats(inputs)]
    loss = call(case, inputs, "native")(*leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    copies = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss * 3, leaves)
    for kept, copy, tripled in zip(first, copies, second, strict=True):
        assert torch.equal(kept, copy)
        torch.testing.assert_close(tripled, 3 * copy)


@pytest.mark.native
def test_tied_and_leading_dimensions():
    weight = torch.randn(11, 6)
    targets = torch.tensor([[3, -100, 0], [10, 5, 1]])

    def function(backend):
        return lambda weight: linear_cross_entropy(
            weight[targets.clamp(min=0)], weight, targets, reduction="none", backend=backend
        )

    check_against_reference(function("native"), function("reference"), [weight], ["weight"])


@pytest.mark.native
def test_same_bits_on_repeat_and_row_kernel_for_any_thread_count(capability, with_threads):
    case = EDGE_CASES["several chunks"]
    inputs = case.inputs(torch.float32)

    def run():
        return gradients(call(case, inputs, "native", reduction="sum"), floats(inputs), torch.ones(()))

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)

    def kernel():
        logits = torch.randn(300, 101, generator=torch.Generator().manual_seed(0))
        per_row = [torch.empty(300), torch.empty(300), torch.empty(300, dtype=torch.bool)]
        grad_bias = torch.empty(101)
        targets = torch.arange(300) % 101
        torch.ops.fastssl.softmax_cross_entropy_(
            logits, None, targets, None, 0.1, 0.0, 0.0, True, *per_row, grad_bias, False
        )
        return [logits, *per_row, grad_bias]

    first = with_threads(1, kernel)
    for num_threads in (2, 3):
        for a, b in zip(first, with_threads(num_threads, kernel), strict=True):
            assert torch.equal(a, b)


@pytest.mark.native
def test_gradients_of_the_logits_hold_no_subnormal_numbers(capability):
    """A trained model's logits lie a hundred apart; the products after the kernel crawl over subnormal factors."""
    logits = torch.linspace(-110, 0, 4003).repeat(3, 1)
    per_row = [torch.empty(3), torch.empty(3), torch.empty(3, dtype=torch.bool)]
    targets, row_grads = torch.tensor([4002, 0, 2000]), torch.full((3,), 1e-3)
    torch.ops.fastssl.softmax_cross_entropy_(
        logits, None, targets, row_grads, 0.0, 0.0, 0.0, True, *per_row, None, False
    )
    magnitude = logits.abs()
    assert ((magnitude == 0) | (magnitude >= torch.finfo(torch.float32).tiny)).all()
    assert (magnitude > 0).sum() > 8000


@pytest.mark.native
def test_the_weight_gradient_uses_freed_memory_again():
    hidden, targets = torch.randn(9, 64), torch.arange(9)
    weight = torch.randn(8000, 64, requires_grad=True)
    addresses = set()
    for _ in range(3):
        linear_cross_entropy(hidden, weight, targets, backend="native").backward()
        addresses.add(weight.grad.data_ptr())
        weight.grad = None
    assert len(addresses) == 1


@pytest.mark.native
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["prime", "all ignored", "no rows"])
def test_poisoned_memory(poisoned_memory, name, reduction):
    case = EDGE_CASES[name]
    inputs = case.inputs(torch.float32)
    function = call(case, inputs, "native", reduction=reduction)
    out = function(*floats(inputs))
    for tensor in (out, *gradients(function, floats(inputs), torch.ones_like(out))):
        assert not tensor.isnan().any()


def test_chunks_are_even_and_bounded():
    assert native.chunk_rows(614, 768, 30522) == 614
    assert native.chunk_rows(1025, 768, 30522) == 513
    assert native.chunk_rows(1, 64, 30522) == 1
    assert native.chunk_rows(768, 128, 65) == 768
    assert all(native.chunk_rows(n, 4096, 2) <= native.MAX_CHUNK_ROWS for n in range(1, 9000, 97))


_PEAK = """
import re, torch
from fastssl.ops.linear_cross_entropy.api import linear_cross_entropy
def peak_bytes():  # ru_maxrss would begin at the peak of the process that forked this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
rows, width, classes = 8192, 64, 4000
hidden = torch.randn(rows, width, requires_grad=True)
weight = torch.randn(classes, width, requires_grad=True)
targets = torch.randint(classes, (rows,))
for backend in ("native", "stock"):
    linear_cross_entropy(hidden[:64], weight, targets[:64], backend=backend).backward()
    before = peak_bytes()
    linear_cross_entropy(hidden, weight, targets, backend=backend).backward()
    print((peak_bytes() - before) / (4 * rows * classes))
"""


@pytest.mark.native
def test_peak_memory_is_far_below_all_logits():
    """Peak growth in units of the whole logits: a chunk of 256 rows is 1/32 of them; PyTorch needs two or more."""
    output = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, check=True, text=True).stdout
    native_peak, stock_peak = map(float, output.split())
    assert native_peak < 0.25
    assert stock_peak > 1.5


@pytest.mark.native
def test_opcheck():
    case = EDGE_CASES["all options"]
    inputs = case.inputs(torch.float32)
    hidden, weight, bias = floats(inputs)
    options = (-100, 0.2, 1e-2, 10.0, torch.float32)
    op = torch.ops.fastssl.linear_cross_entropy.default
    for row_grads, needs in ((None, (True, True, True)), (torch.ones(23), (True, False, False))):
        torch.library.opcheck(op, (hidden, weight, inputs["targets"], bias, row_grads, *options, *needs))


@pytest.mark.native
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [-100, None])
def test_compile_with_dynamic_shapes(reduction, ignore_index):
    options = {"reduction": reduction, "return_stats": True, "ignore_index": ignore_index}

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(hidden, weight, bias, targets):
        return linear_cross_entropy(hidden, weight, targets, bias=bias, **options)

    for num_rows in (12, 30):
        labelled = 1.0 if ignore_index is None else 0.6
        case = LinearCrossEntropyCase(num_rows=num_rows, width=8, vocab_size=21, labelled=labelled)
        inputs = case.inputs(torch.float32)
        leaves = [tensor.requires_grad_() for tensor in floats(inputs)]
        loss, stats = compiled(*leaves, inputs["targets"])
        expected, expected_stats = call(case, inputs, "native", **options)(*leaves)
        torch.testing.assert_close((loss, *stats), (expected, *expected_stats))
        for a, b in zip(
            torch.autograd.grad(loss.square().sum(), leaves),
            torch.autograd.grad(expected.square().sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.native
def test_autocast_rounds_the_operands_of_the_product_alone():
    case = EDGE_CASES["prime"]
    inputs = case.inputs(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in floats(inputs)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = call(case, inputs, "native")(*leaves)
        reference = call(case, inputs, "reference")(*leaves)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=1e-3, atol=0)
    for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(reference, leaves), strict=True):
        assert a.dtype == torch.float32
        assert_within_budget("gradient", a, b, b.double(), torch.bfloat16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_class_that_a_bias_rules_out_leaves_the_loss_of_the_others(backend, softcap):
    if backend == "stock" and softcap:
        pytest.skip("PyTorch's cross-entropy has no softcap")
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(rows, 8, generator=generator).requires_grad_() for rows in (3, 5))
    bias = torch.tensor([0.0, 0.0, -torch.inf, 0.0, 0.0])
    losses = []
    for classes, targets in (([0, 1, 2, 3, 4], [0, 1, 3]), ([0, 1, 3, 4], [0, 1, 2])):
        losses.append(
            linear_cross_entropy(
                hidden, weight[classes], torch.tensor(targets), bias=bias[classes], softcap=softcap, backend=backend
            )
        )
    if softcap is None:
        torch.testing.assert_close(*losses)
        for found, expected in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in losses), strict=True):
            torch.testing.assert_close(found, expected)
    assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize("backend", ["auto", "stock"])
@pytest.mark.parametrize("ignore_index", [None, -100])
def test_shapes_without_numbers(backend, ignore_index):
    """On the meta device, and in the mode in which tracers work out shapes."""
    options = {"ignore_index": ignore_index, "backend": backend}
    shapes = [torch.empty(6, 8, device="meta"), torch.empty(9, 8, device="meta")]
    loss = linear_cross_entropy(*shapes, torch.zeros(6, dtype=torch.int64, device="meta"), **options)
    assert loss.shape == () and loss.dtype == torch.float32
    if backend == "auto" and not extension.cpu_ops_loaded():
        return
    with FakeTensorMode():
        hidden, weight = (torch.randn(x.shape, requires_grad=True) for x in shapes)
        loss = linear_cross_entropy(hidden, weight, torch.zeros(6, dtype=torch.int64), **options)
        assert [g.shape for g in torch.autograd.grad(loss, (hidden, weight))] == [(6, 8), (9, 8)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.ones(9, 5)}, r"weight \(V, E\), got \(3, 4\) and \(9, 5\)"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, r"targets must be torch.int64 of shape \(3,\)"),
        ({"targets": torch.zeros(3)}, "got torch.float32"),
        ({"targets": torch.tensor([0, 9, 1])}, r"targets\[1\] is 9, expected 0 <= target < V = 9"),
        ({"targets": torch.tensor([0, 1, -1])}, r"targets\[2\] is -1.*ignore_index = -100"),
        (
            {"targets": torch.tensor([0, -100, 1]), "ignore_index": None},
            r"targets\[1\] is -100, expected 0 <= target < V = 9, since ignore_index is None",
        ),
        ({"bias": torch.ones(4)}, r"bias must have shape \(9,\)"),
        ({"hidden": torch.ones(3, 4, dtype=torch.int64)}, "hidden must be floating point"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"label_smoothing": 1.5}, "label_smoothing must be between 0 and 1"),
        ({"z_loss": -1.0}, "z_loss must be at least 0"),
        ({"softcap": 0.0}, "softcap must be above 0"),
        ({"softcap": 1e-46}, "softcap must be above 0"),
        ({"softcap": float("inf")}, "and finite, or None for no cap, got inf"),
        ({"backend": "stock", "softcap": 3.0}, "has no softcap"),
        ({"backend": "native", "hidden": torch.ones(3, 4).half(), "weight": torch.ones(9, 4).half()}, "float16"),
    ],
)
def test_errors(arguments, message):
    arguments = {
        "hidden": torch.ones(3, 4),
        "weight": torch.ones(9, 4),
        "targets": torch.zeros(3, dtype=torch.int64),
    } | arguments
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)


@pytest.mark.native
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_inside_of_vmap(reduction):
    hidden, weights, targets = torch.randn(3, 5, 8), torch.randn(3, 7, 8), torch.tensor([1, -100, 2, 3, 0])
    run = partial(linear_cross_entropy, targets=targets, reduction=reduction, backend="native")
    found = torch.func.vmap(run)(hidden, weights)
    expected = [run(*one) for one in zip(hidden, weights, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))
