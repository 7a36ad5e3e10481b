"""The AdamW update: every backend against the definition in float64, and torch's own optimizer."""

import pytest
import torch

from fastssl.ops.adamw.api import adamw_, squared_norm
from fastssl.ops.adamw.cases import EDGE_CASES
from tests.oracle import assert_within_budget

BACKENDS = [pytest.param("native", marks=pytest.mark.native), "stock", "reference"]
NUMBERS = {"step": 3, "lr": 0.01, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.1, "gradient_factor": 0.3}


def updated(inputs, backend, **changed):
    """Return parameters and averages after a step, as copies."""
    copies = {name: [t.clone() for t in tensors] for name, tensors in inputs.items()}
    adamw_(**copies, **NUMBERS | changed, backend=backend)
    for before, after in zip(inputs["gradients"], copies["gradients"], strict=True):
        assert torch.equal(before.to_dense(), after.to_dense())
    return [t for name in ("parameters", "exp_avgs", "exp_avg_sqs") for t in copies[name]]


def check(name, backend, **changed):
    inputs, wide = (EDGE_CASES[name].inputs(dtype) for dtype in (torch.float32, torch.float64))
    wide = {key: [t.double() for t in tensors] for key, tensors in inputs.items()}
    rows = zip(updated(inputs, backend, **changed), updated(inputs, "reference", **changed),
               updated(wide, "reference", **changed), strict=True)  # fmt: skip
    for index, (out, same, exact) in enumerate(rows):
        if out.numel():
            assert_within_budget(f"{name} {index}", out, same, exact)


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_against_the_definition(name, backend):
    check(name, backend)


@pytest.mark.native
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_every_instruction_set(capability, name, weight_decay):
    check(name, "native", weight_decay=weight_decay, step=1)


@pytest.mark.native
@pytest.mark.parametrize("name", ["rows", "wide rows"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rows_that_never_had_a_gradient_are_not_missed(name, weight_decay):
    """With zero averages in untouched rows, leaving them out changes nothing, over several steps and row sets."""
    inputs = EDGE_CASES[name].inputs(torch.float32)
    for tensor in inputs["exp_avgs"] + inputs["exp_avg_sqs"]:
        tensor.zero_()
    told = {key: [t.clone() for t in tensors] for key, tensors in inputs.items()}
    touched = [torch.zeros(len(g), dtype=torch.bool) if g.is_sparse else None for g in inputs["gradients"]]
    for step in range(1, 4):
        rows = torch.arange(len(inputs["parameters"][0]))[step % 2 :: 2][None]
        shape = inputs["parameters"][0].shape
        gradient = torch.sparse_coo_tensor(
            rows, torch.randn(rows.shape[1], *shape[1:]), shape, check_invariants=True
        ).coalesce()
        inputs["gradients"][0] = told["gradients"][0] = gradient
        numbers = NUMBERS | {"step": step, "weight_decay": weight_decay}
        adamw_(**inputs, **numbers, backend="native")
        adamw_(**told, **numbers, touched=touched, backend="native")
    for name in ("parameters", "exp_avgs", "exp_avg_sqs"):
        for a, b in zip(inputs[name], told[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.native
def test_many_steps_are_those_of_torch(with_threads):
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(40, 50, generator=generator), torch.randn(70, generator=generator)]
    gradients = [[torch.randn(t.shape, generator=generator) for t in start] for _ in range(20)]

    def ours():
        parameters = [t.clone() for t in start]
        m, v = ([torch.zeros_like(t) for t in start] for _ in range(2))
        for step, g in enumerate(gradients, start=1):
            adamw_(parameters, g, m, v, step=step, lr=0.02, weight_decay=0.1, backend="native")
        return parameters

    def theirs(dtype):
        parameters = [torch.nn.Parameter(t.to(dtype, copy=True)) for t in start]
        optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1)
        for step_gradients in gradients:
            for p, g in zip(parameters, step_gradients, strict=True):
                p.grad = g.to(dtype, copy=True)
            optimizer.step()
        return [p.data for p in parameters]

    first = with_threads(1, ours)
    for a, same, exact in zip(first, theirs(torch.float32), theirs(torch.float64), strict=True):
        assert_within_budget("parameter", a, same, exact)
    for a, b in zip(first, with_threads(2, ours), strict=True):
        assert torch.equal(a, b)


@pytest.mark.native
def test_the_sum_of_squares(capability, with_threads):
    tensors = [torch.randn(3, 70_001), torch.randn(5), torch.empty(0), torch.randn(40, 30).t()]
    exact = sum(t.double().square().sum() for t in tensors)
    ours = [with_threads(n, lambda: squared_norm(tensors)) for n in (1, 2)]
    torch.testing.assert_close(ours[0], exact, rtol=1e-6, atol=0)
    assert ours[0].item() == ours[1].item()
    assert squared_norm([]).item() == 0
    assert squared_norm([torch.tensor([1.0, float("nan")])]).isnan()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gradients": [torch.zeros(2)]}, r"of shape \(3,\), got torch.float32 of shape \(2,\)"),
        ({"gradients": [torch.zeros(3, device="meta")]}, "gradient of parameter 0 must be on cpu, got meta"),
        ({"exp_avgs": []}, "one entry a parameter"),
        ({"step": 0}, "step >= 1"),
        ({"lr": -1.0}, "'lr': -1.0"),
        ({"beta2": 1.0}, "'beta2': 1.0"),
        ({"backend": "fastest"}, "does not exist"),
    ],
)
def test_errors(changed, message):
    arguments = {name: [torch.zeros(3)] for name in ("parameters", "gradients", "exp_avgs", "exp_avg_sqs")}
    with pytest.raises(ValueError, match=message):
        adamw_(**arguments | {"step": 1, "lr": 0.1} | changed)


LAYOUTS = {
    "as the parameter": lambda t: t,
    "expanded": lambda t: t[:1, :1].expand(t.shape),
    "transposed": lambda t: t.T.contiguous().T,
    "every other": lambda t: torch.stack((t, t + 9), dim=2)[:, :, 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", ["auto", "stock"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_strides_of_a_gradient_change_nothing(backend, layout, dtype):
    draw = lambda: torch.rand(6, 4, generator=torch.Generator().manual_seed(2)).to(dtype)  # noqa: E731
    gradient = LAYOUTS[layout](draw())
    results = []
    for given, name in ((gradient, backend), (gradient.clone(memory_format=torch.contiguous_format), "reference")):
        state = [draw() for _ in range(3)]
        adamw_([state[0]], [given], [state[1]], [state[2]], **NUMBERS | {"gradient_factor": 1.0}, backend=name)
        results += state
    for found, expected in zip(results[:3], results[3:], strict=True):
        torch.testing.assert_close(found, expected, atol=0.02 if dtype == torch.bfloat16 else 1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strided", range(3))
def test_parameters_and_averages_of_any_strides_are_left_to_the_definition(strided, dtype):
    generator = torch.Generator().manual_seed(2)
    packed = [torch.rand(6, 4, generator=generator).to(dtype) for _ in range(4)]
    results = []
    for layout in (False, True):
        state = [t.T.contiguous().T if layout and place == strided else t.clone() for place, t in enumerate(packed)]
        gradient = state.pop()
        adamw_([state[0]], [gradient], [state[1]], [state[2]], **NUMBERS, backend="auto" if layout else "reference")
        results.append(state)
        if layout:
            with pytest.raises(ValueError, match="a parameter or an average is not contiguous"):
                adamw_([state[0]], [gradient], [state[1]], [state[2]], **NUMBERS, backend="stock")
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backward_over_parameters_that_a_step_has_changed_is_refused(backend):
    inputs = EDGE_CASES["rows"].inputs(torch.float32)
    parameters = [parameter.requires_grad_() for parameter in inputs["parameters"]]
    losses = [parameter.square().sum() for parameter in parameters]
    adamw_(**inputs, **NUMBERS, backend=backend)
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(2, dtype=torch.bool), r"touched of parameter 1 must be torch.bool of shape \(3,\)"),
        (torch.ones(3), "touched of parameter 1 must be torch.bool"),
        (torch.ones(6, dtype=torch.bool)[::2], "touched of parameter 1 must be contiguous"),
        (torch.ones(3, dtype=torch.bool, device="meta"), "on cpu, one a row, got torch.bool .* on meta"),
    ],
)
def test_wrong_touched_rows_are_refused_before_anything_is_updated(rows, message, backend):
    parameters = [torch.ones(3, 2), torch.ones(3, 2)]
    gradients = [torch.ones(3, 2), torch.ones(3, 2).to_sparse(1).coalesce()]
    averages = [[torch.zeros(3, 2) for _ in range(2)] for _ in range(2)]
    with pytest.raises(ValueError, match=message):
        adamw_(parameters, gradients, *averages, **NUMBERS, touched=[None, rows], backend=backend)
    assert all(parameter.eq(1).all() for parameter in parameters)
