"""The CUDA kernels of linear cross-entropy, on a GPU or in the emulation, against the definition in float64."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fastssl.ops.linear_cross_entropy import chunks, native, on_gpu
from fastssl.ops.linear_cross_entropy.cases import EDGE_CASES
from tests.ops.surroundings import Surrounded
from tests.ops.test_linear_cross_entropy import REDUCTIONS, call, check, check_that_nothing_is_looked_for, floats
from tests.ops.test_linear_cross_entropy_triton import observed
from tests.oracle import assert_within_budget, gradients

pytestmark = [pytest.mark.native, pytest.mark.cuda]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One call of the row kernel."""

    num_rows: int = 5
    num_classes: int = 101
    dtype: torch.dtype = torch.float32
    magnitude: float = 3.0
    bias: bool = False
    row_grads: bool = False
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0
    row_padding: int = 0
    offset: int = 0

    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Return logits, bias, targets and the gradients of the rows' losses."""
        generator = torch.Generator().manual_seed(17)
        logits = (torch.randn(self.num_rows, self.num_classes, generator=generator) * self.magnitude).to(self.dtype)
        targets = torch.randint(self.num_classes, (self.num_rows,), generator=generator)
        targets[: self.num_rows // 2] = logits[: self.num_rows // 2].argmax(-1)
        bias = torch.randn(self.num_classes, generator=generator) if self.bias else None
        return logits, bias, targets, torch.rand(self.num_rows, generator=generator) if self.row_grads else None


def definition(case: Rows, wide: torch.dtype) -> tuple[Tensor, ...]:
    """Return losses, lse, gradients of the logits and of a bias, and correctness; arithmetic in `wide`.

    As on the CPU, logits are rounded to their dtype when bias and softcap have been applied.
    """
    logits, bias, targets, row_grads = case.inputs()
    z = logits.to(wide).requires_grad_()
    capped = z if bias is None else z + bias.to(wide)
    if case.softcap:
        capped = case.softcap * torch.tanh(capped / case.softcap)
    if bias is not None or case.softcap:
        capped = capped + (capped.detach().to(case.dtype).to(wide) - capped.detach())
    lse = capped.logsumexp(-1)
    target_logit = capped.gather(-1, targets[:, None]).squeeze(-1)
    losses = lse - (1 - case.label_smoothing) * target_logit - case.label_smoothing * capped.mean(-1)
    losses = losses + case.z_loss * lse.square()
    (grad,) = torch.autograd.grad(losses, z, torch.ones_like(losses) if row_grads is None else row_grads.to(wide))
    return losses.detach(), lse.detach(), grad, grad.sum(0), capped.detach().to(case.dtype).argmax(-1) == targets


def run(ops, case: Rows, with_gradient: bool = True, bias_start: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return what `definition` returns, by the kernel, and check that it keeps to its tensors."""
    logits, bias, targets, row_grads = case.inputs()
    parts = {
        "logits": Surrounded(logits, case.offset, case.row_padding),
        "losses": Surrounded(torch.zeros(case.num_rows)),
        "lse": Surrounded(torch.zeros(case.num_rows)),
        "grad_bias": Surrounded(torch.zeros(case.num_classes) if bias_start is None else bias_start),
    }
    if bias is not None:
        parts["bias"] = Surrounded(bias, case.offset)
    correct = torch.zeros(case.num_rows, dtype=torch.bool)
    tensors = {name: part.tensor for name, part in parts.items()}
    ops.softmax_cross_entropy_(
        tensors["logits"],
        tensors.get("bias"),
        targets,
        row_grads,
        case.label_smoothing,
        case.z_loss,
        case.softcap,
        with_gradient,
        tensors["losses"],
        tensors["lse"],
        correct,
        tensors["grad_bias"],
        bias_start is not None,
    )
    assert all(part.untouched_outside() for part in parts.values())
    return tensors["losses"], tensors["lse"], tensors["logits"].clone(), tensors["grad_bias"], correct


def check_rows(ops, case: Rows, **options) -> None:
    found = run(ops, case, **options)
    same, ref = definition(case, torch.float32), definition(case, torch.float64)
    names = ("losses", "lse", "gradient", "bias gradient")
    for name, a, b, c in zip(names, found, same, ref, strict=False):
        rounded = case.dtype if "gradient" in name else None
        assert_within_budget(name, a, b if rounded is None else b.to(rounded), c, rounded)
    assert torch.equal(found[4], ref[4])


@pytest.fixture
def as_on_gpu(cuda_kernels, monkeypatch):
    """Let the native backend take CPU tensors for CUDA tensors: padded rows, chunks for a GPU, nothing asked of it."""
    monkeypatch.setattr(native, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(native, "SUPPORTS", replace(native.SUPPORTS, refuses={}))
    return cuda_kernels


@pytest.mark.parametrize(
    ("dtype", "reduction"), [(torch.float32, "none"), (torch.bfloat16, "sum"), (torch.float16, "mean")]
)
@pytest.mark.parametrize("name", EDGE_CASES)
def test_against_the_definition(as_on_gpu, name, dtype, reduction):
    if name == "logits of 1e4" and dtype == torch.float16:
        pytest.skip("1e4 times a normal deviate overflows float16")
    check(EDGE_CASES[name], EDGE_CASES[name].inputs(dtype), reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_reduction_in_every_dtype(as_on_gpu, dtype, reduction):
    check(EDGE_CASES["prime"], EDGE_CASES["prime"].inputs(dtype), reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_chunks_and_wide_weights(as_on_gpu, monkeypatch, dtype):
    monkeypatch.setattr(on_gpu, "chunk_rows", lambda num_rows, width: min(num_rows, 16))
    case = EDGE_CASES["none ignored"]
    check(case, case.inputs(dtype))
    check(case, case.inputs(dtype, torch.float32))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["prime", "all options", "all ignored", "no bias"])
def test_under_capture_every_row_takes_part_and_idle_ones_count_for_nothing(as_on_gpu, monkeypatch, name, reduction):
    case = EDGE_CASES[name]
    inputs = case.inputs(torch.float32)
    inputs["hidden"][inputs["targets"] == -100] = torch.nan
    function = call(case, inputs, "native", reduction=reduction, return_stats=True)

    def results():
        loss, stats = function(*floats(inputs))
        cotangent = torch.rand(loss.shape, generator=torch.Generator().manual_seed(3))
        return loss, *stats, *gradients(lambda *tensors: function(*tensors)[0], floats(inputs), cotangent)

    expected = results()
    monkeypatch.setattr(on_gpu, "is_capturing", lambda tensor: True)
    for found, wanted in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("capturing", [True, False])
def test_nothing_is_looked_for(as_on_gpu, monkeypatch, capturing):
    monkeypatch.setattr(on_gpu, "is_capturing", lambda tensor: capturing)
    check_that_nothing_is_looked_for(EDGE_CASES["none ignored"], "native", call)
    monkeypatch.setattr(torch.Tensor, "nonzero", None)
    monkeypatch.setattr(native, "_with_idle_rows", None)
    inputs = EDGE_CASES["none ignored"].inputs(torch.float32)
    gradients(call(EDGE_CASES["none ignored"], inputs, "native", ignore_index=None), floats(inputs), torch.ones(()))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_padding_spreads_no_infinite_operand(as_on_gpu, monkeypatch, value):
    """A logit of the padding is infinity times 0; with a softcap, only that is NaN in the gradient of the logits."""
    case, padding = EDGE_CASES["softcap"], []
    monkeypatch.setattr(chunks, "run", observed(chunks.run, lambda chunk: padding.append(chunk[:, 53:].clone())))
    inputs = case.inputs(torch.float32)
    inputs["hidden"][3, 4], inputs["targets"][3] = value, 7
    found, wanted = (
        gradients(call(case, inputs, backend), floats(inputs), torch.ones(())) for backend in ("native", "reference")
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert padding and all(part.shape[1] == 11 and not part.any() for part in padding)


@pytest.mark.parametrize("name", ["prime", "all options"])
def test_poisoned_memory(as_on_gpu, poisoned_memory, name):
    inputs = EDGE_CASES[name].inputs(torch.bfloat16, torch.float32)
    for tensor in gradients(call(EDGE_CASES[name], inputs, "native"), floats(inputs), torch.ones(())):
        assert not tensor.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 2048, 9001])
def test_scale(cuda_kernels, count, dtype):
    x = torch.randn(count).to(dtype)
    for offset in (0, 1):
        for factor in (1.0, 0.37):
            placed = Surrounded(x, offset)
            cuda_kernels.ops.scale_(placed.tensor, torch.tensor(factor))
            assert torch.equal(placed.tensor, (x.float() * factor).to(dtype))
            assert placed.untouched_outside()


def test_the_cpu_is_asked_for_no_float16():
    inputs = EDGE_CASES["prime"].inputs(torch.float16)
    with pytest.raises(ValueError, match="it multiplies no float16 on the CPU"):
        call(EDGE_CASES["prime"], inputs, "native")(*floats(inputs))


OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "row gradients": {"row_grads": True},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 1e-3},
    "softcap": {"softcap": 5.0},
    "all": {
        "bias": True,
        "row_grads": True,
        "label_smoothing": 0.2,
        "z_loss": 1e-2,
        "softcap": 10.0,
    },
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_options(cuda_kernels, name, dtype):
    for num_classes, padding in ((101, 3), (600, 8), (2056, 0)):
        case = Rows(num_classes=num_classes, dtype=dtype, row_padding=padding, **OPTIONS[name])
        check_rows(cuda_kernels.ops, case)


@pytest.mark.parametrize("in_shared_memory", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [1, 2, 7, 8, 9, 255, 2048, 2049, 5003])
def test_sizes_and_alignments(cuda_kernels, num_classes, dtype, in_shared_memory):
    if not in_shared_memory:
        cuda_kernels.set_device(shared_bytes_per_block=0)
    to_whole_vectors = -num_classes % 8
    for padding, offset in ((to_whole_vectors, 0), (8 + to_whole_vectors, 0), (to_whole_vectors, 1), (0, 0)):
        case = Rows(
            num_rows=3, num_classes=num_classes, dtype=dtype, row_padding=padding, offset=offset, **OPTIONS["all"]
        )
        check_rows(cuda_kernels.ops, case)


@pytest.mark.parametrize(
    ("num_classes", "dtype", "num_rows"),
    [(30522, torch.float32, 1), (30522, torch.bfloat16, 2), (50257, torch.float32, 1), (50257, torch.bfloat16, 1)],
)
def test_real_vocabularies(cuda_kernels, num_classes, dtype, num_rows):
    options = {"num_rows": num_rows, "num_classes": num_classes, "dtype": dtype, "bias": True}
    check_rows(cuda_kernels.ops, Rows(row_padding=-num_classes % 8, **options))
    check_rows(cuda_kernels.ops, Rows(**options, magnitude=1e4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits(cuda_kernels, dtype):
    check_rows(cuda_kernels.ops, Rows(num_classes=700, dtype=dtype, magnitude=1e4, label_smoothing=0.1))


@pytest.mark.parametrize("num_rows", [0, 1, 63, 64, 65, 200])
def test_bias_gradient_over_blocks_of_rows(cuda_kernels, num_rows):
    for padding in (5, 7):
        case = Rows(num_rows=num_rows, num_classes=43, row_padding=padding, dtype=torch.bfloat16)
        start = torch.randn(43)
        written, added = run(cuda_kernels.ops, case)[3], run(cuda_kernels.ops, case, bias_start=start)[3]
        torch.testing.assert_close(written, definition(case, torch.float64)[3].float(), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(added, start + written)


def test_without_gradient_the_logits_stay(cuda_kernels):
    for options in OPTIONS.values():
        case = Rows(num_classes=1234, **options)
        with_gradient, without = run(cuda_kernels.ops, case), run(cuda_kernels.ops, case, with_gradient=False)
        torch.testing.assert_close(with_gradient[:2], without[:2])
        assert torch.equal(with_gradient[4], without[4])
        assert torch.equal(without[2], case.inputs()[0])


@pytest.mark.parametrize("target", [-1, -100, 101, 2**40])
def test_a_target_outside_the_vocabulary_gives_nan(cuda_kernels, monkeypatch, target):
    inputs = Rows(num_classes=101).inputs()
    inputs[2][1] = target
    monkeypatch.setattr(Rows, "inputs", lambda _: inputs)
    losses, lse, gradient, _, correct = run(cuda_kernels.ops, Rows(num_classes=101))
    assert losses.isnan().tolist() == [False, True, False, False, False]
    assert gradient.isnan().all(-1).tolist() == [False, True, False, False, False]
    assert lse.isfinite().all() and not correct[1]


def test_equal_logits_count_as_correct_for_the_first_class_alone(cuda_kernels):
    for shared_bytes in (0, 200_000):
        cuda_kernels.set_device(shared_bytes_per_block=shared_bytes)
        for with_gradient in (True, False):
            logits, targets = torch.zeros(40, 40), torch.arange(40)
            logits[:, 0] = -1
            per_row = [torch.empty(40), torch.empty(40), torch.empty(40, dtype=torch.bool)]
            options = (None, targets, None, 0.0, 0.0, 0.0, with_gradient)
            cuda_kernels.ops.softmax_cross_entropy_(logits, *options, *per_row, None, False)
            assert per_row[2].nonzero().tolist() == [[1]]


@pytest.mark.parametrize("bias_value", [-torch.inf, torch.nan])
def test_masked_out_classes_and_nan(cuda_kernels, bias_value):
    """Whole threads see nothing but -inf, or NaN."""
    logits, _, targets, _ = Rows(num_classes=3000).inputs()
    bias = torch.zeros(3000)
    bias[40:] = bias_value
    targets %= 40
    per_row = [torch.empty(5), torch.empty(5), torch.empty(5, dtype=torch.bool)]
    expected = torch.nn.functional.cross_entropy(logits + bias, targets, reduction="none")
    gradient = logits.clone()
    cuda_kernels.ops.softmax_cross_entropy_(gradient, bias, targets, None, 0.0, 0.0, 0.0, True, *per_row, None, False)
    torch.testing.assert_close(per_row[0], expected, equal_nan=True)
    if bias_value == -torch.inf:
        assert torch.equal(gradient[:, 40:], torch.zeros(5, 2960)) and gradient.isfinite().all()


@pytest.mark.parametrize("num_classes", [300, 5000])
def test_same_bits_in_every_order_of_the_threads(cuda_kernels, num_classes):
    case = Rows(num_rows=70, num_classes=num_classes, dtype=torch.bfloat16, bias=True, label_smoothing=0.1)
    runs = []
    for order in (0, 1, 2):
        cuda_kernels.set_thread_order(order)
        runs.append(run(cuda_kernels.ops, case))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a, b)
