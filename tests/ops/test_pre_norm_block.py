"""A block in one call against its parts by their definitions, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl.ops.decoder_block.weights import LinearMap
from fastssl.ops.pre_norm_block import native
from fastssl.ops.pre_norm_block.api import pre_norm_block
from fastssl.ops.pre_norm_block.cases import EDGE_CASES, PreNormBlockCase
from fastssl.ops.pre_norm_block.dropout import BlockDropout
from fastssl.ops.quantized_linear import quantize_weight
from tests.oracle import assert_within_budget, check_against_reference

OUTPUTS = ("out", "stream")


def call(case: PreNormBlockCase, backend: str, names: list[str], weights: tuple[float, float] = (1.0, 1.0)):
    """Return a function of the tensors that gives both outputs side by side."""

    def function(*tensors: Tensor) -> Tensor:
        arguments = case.arguments(dict(zip(names, tensors, strict=True)))
        out, stream = pre_norm_block(**arguments, backend=backend)
        return torch.cat((out * weights[0], stream * weights[1]), dim=1)

    return function


def check(case: PreNormBlockCase, backend: str = "native") -> None:
    tensors = case.tensors()
    names = list(tensors)
    check_against_reference(call(case, backend, names), call(case, "reference", names), list(tensors.values()), names)


@pytest.mark.native
@pytest.mark.parametrize("name", EDGE_CASES)
def test_native_against_the_definition(capability, name):
    check(EDGE_CASES[name])


@pytest.mark.parametrize("name", [name for name, case in EDGE_CASES.items() if not any(case.dropout)])
def test_stock_against_the_definition(name):
    check(EDGE_CASES[name], "stock")


def test_gradcheck_of_the_reference():
    case = PreNormBlockCase(lengths=(3, 2), width=8, heads=2, head_dim=4, mlp_width=12, dropout=(0.3, 0.3, 0.3))
    tensors = case.tensors(torch.float64)
    function = call(case, "reference", list(tensors))
    assert torch.autograd.gradcheck(function, [tensor.requires_grad_() for tensor in tensors.values()])


@pytest.mark.native
@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), max_size=4),
    width=st.integers(1, 6),
    head_dim=st.sampled_from([8, 16, 24]),
    key_heads=st.integers(1, 2),
    group=st.sampled_from([2, 4]),
    mlp_width=st.integers(1, 9),
    dropout=st.sampled_from([(0.0, 0.0, 0.0), (0.1, 0.0, 0.5), (0.0, 0.3, 0.0)]),
    bias=st.booleans(),
    residual=st.booleans(),
    causal=st.booleans(),
    rotary=st.booleans(),
)
def test_any_shape(lengths, width, head_dim, key_heads, group, mlp_width, dropout, bias, residual, causal, rotary):
    check(
        PreNormBlockCase(
            lengths=tuple(lengths),
            width=16 * width,
            heads=key_heads * group,
            key_heads=key_heads,
            head_dim=head_dim,
            mlp_width=16 * mlp_width,
            dropout=dropout,
            bias=bias,
            residual=residual,
            causal=causal,
            rotary=rotary,
        )
    )


@pytest.mark.native
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_gradient_through_one_output_alone(weights):
    case = EDGE_CASES["dropout"]
    tensors = case.tensors()
    names = list(tensors)
    functions = (call(case, backend, names, weights) for backend in ("native", "reference"))
    check_against_reference(*functions, list(tensors.values()), names)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    out, stream = pre_norm_block(**case.arguments(leaves), backend="native")
    (out if weights[0] else stream).sum().backward()
    assert leaves["down.weight"].grad.count_nonzero() == (leaves["down.weight"].numel() if weights[0] else 0)


@pytest.mark.native
@pytest.mark.parametrize("name", ["dropout", "shared keys, window"])
def test_threads_share_the_work_and_not_the_result(name, with_threads):
    case = EDGE_CASES[name]

    def run() -> list[Tensor]:
        leaves = {key: tensor.requires_grad_() for key, tensor in case.tensors().items()}
        outputs = pre_norm_block(**case.arguments(leaves), backend="native")
        return [*outputs, *torch.autograd.grad(outputs, leaves.values(), [torch.ones_like(x) for x in outputs])]

    one, again, *others = (with_threads(n, run) for n in (1, 1, 2, 7))
    rows = len(OUTPUTS) + 2
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(one[:rows], other[:rows], strict=True))  # a row is one thread's
        torch.testing.assert_close(one[rows:], other[rows:])


@pytest.mark.native
def test_dropout_masks_are_those_of_the_parts():
    case = EDGE_CASES["dropout"]
    arguments = case.arguments(case.tensors())
    with torch.no_grad():
        outputs = [pre_norm_block(**arguments, backend=backend) for backend in ("native", "reference")]
    wide = case.arguments(case.tensors(torch.float64))
    exact = pre_norm_block(**wide, backend="reference")
    for name, out, same, expected in zip(OUTPUTS, *outputs, exact, strict=True):
        assert_within_budget(name, out, same, expected)
    other = arguments | {"dropout": arguments["dropout"]._replace(output_seed=torch.tensor(4))}
    assert not torch.equal(pre_norm_block(**other)[1], outputs[0][1])


@pytest.mark.native
def test_nothing_is_kept_where_nothing_is_learnt():
    case = EDGE_CASES["gpt"]
    frozen = pre_norm_block(**case.arguments(case.tensors()))
    assert not any(output.requires_grad for output in frozen)
    leaves = case.tensors()
    leaves["residual"].requires_grad_()
    out, stream = pre_norm_block(**case.arguments(leaves), backend="native")
    (out.sum() + stream.sum()).backward()
    assert leaves["residual"].grad is not None and leaves["addend"].grad is None and leaves["up.weight"].grad is None


@pytest.mark.native
@pytest.mark.parametrize("name", ["gpt", "first block", "dropout", "rotary"])
def test_opcheck(name):
    case = EDGE_CASES[name]
    tensors = case.tensors()
    arguments = case.arguments(tensors)
    heads = (case.heads, case.key_heads or case.heads, case.head_dim)
    window = (2**31 - 1, 0)
    dropout = arguments["dropout"]
    if not any(case.dropout):
        dropout = BlockDropout()
    options = native.options_of(
        arguments["weights"],
        arguments["cu_seqlens"],
        heads,
        case.activation,
        window,
        0.25,
        arguments["rotary"],
        dropout,
    )
    parameters = native.packed(native.parameters_of(arguments["weights"]), tensors["addend"])
    operators = torch.ops.fastssl
    forward = (tensors["addend"], tensors.get("residual"), parameters, *options)
    torch.library.opcheck(operators.pre_norm_block_forward.default, forward)
    out, inner, stream, *saved = operators.pre_norm_block_forward(*forward)
    stream = stream if stream.numel() else tensors["addend"]
    backward = (torch.ones_like(out), None, inner, stream, *saved, parameters, *options)
    torch.library.opcheck(operators.pre_norm_block_backward.default, backward)


@pytest.mark.native
@pytest.mark.slow
def test_compiles():
    case = EDGE_CASES["dropout"]

    def losses(function) -> list[Tensor]:
        leaves = {key: tensor.requires_grad_() for key, tensor in case.tensors().items()}
        out, stream = function(leaves)
        loss = (out * stream).sum()
        return [loss, *torch.autograd.grad(loss, leaves.values())]

    def block(leaves):
        return pre_norm_block(**case.arguments(leaves), backend="native")

    torch.testing.assert_close(losses(torch.compile(block)), losses(block))


@pytest.mark.native
@pytest.mark.parametrize("name", ["cu_seqlens", "cos", "sin", "addend_seed", "attention_seed", "output_seed"])
def test_what_changes_between_forward_and_backward_is_noticed(name):
    case = PreNormBlockCase(lengths=(4, 6), width=32, heads=2, head_dim=16, mlp_width=64)
    arguments = case.arguments({key: tensor.requires_grad_() for key, tensor in case.tensors().items()})
    changed = {key: torch.tensor(7) for key in BlockDropout._fields[3:]}
    changed |= {"cos": torch.ones(10, 8), "sin": torch.zeros(10, 8), "cu_seqlens": arguments["cu_seqlens"]}
    seeds = {key: changed[key] for key in BlockDropout._fields[3:]}
    arguments |= {
        "rotary": (changed["cos"], changed["sin"]),
        "dropout": BlockDropout(addend_p=0.3, attention_p=0.3, output_p=0.3, **seeds),
    }
    out, stream = pre_norm_block(**arguments, backend="native")
    changed[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (out.sum() + stream.sum()).backward()


@pytest.mark.parametrize("backend", ["auto", "stock", "reference"])
@pytest.mark.parametrize("width", [32, 20])
def test_autocast_changes_nothing(backend, width):
    case = PreNormBlockCase(lengths=(4, 6), width=width, heads=2, head_dim=16, mlp_width=64)
    expected, found = [], []
    for results, enabled in ((expected, False), (found, True)):
        leaves = {key: tensor.requires_grad_() for key, tensor in case.tensors().items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results += pre_norm_block(**case.arguments(leaves), backend=backend)
        results += torch.autograd.grad(sum(part.sum() for part in results), leaves.values())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_the_kernel_does_not_take_is_left_to_others():
    case = PreNormBlockCase(lengths=(4, 3), width=24, heads=2, head_dim=12, mlp_width=20)
    arguments = case.arguments(case.tensors())
    for auto, stock in zip(pre_norm_block(**arguments), pre_norm_block(**arguments, backend="stock"), strict=True):
        assert torch.equal(auto, stock)


@pytest.mark.native
def test_a_backend_says_why_it_cannot_serve():
    case = PreNormBlockCase(lengths=(4, 3), width=24, heads=2, head_dim=12, mlp_width=20)
    with pytest.raises(ValueError, match="a width is no multiple of 16"):
        pre_norm_block(**case.arguments(case.tensors()), backend="native")
    with pytest.raises(ValueError, match="float64"):
        pre_norm_block(**case.arguments(case.tensors(torch.float64)), backend="native")
    dropped = EDGE_CASES["dropout"]
    with pytest.raises(ValueError, match="draws other masks"):
        pre_norm_block(**dropped.arguments(dropped.tensors()), backend="stock")


def test_wrong_calls_are_explained():
    case = EDGE_CASES["gpt"]
    a = case.arguments(case.tensors())
    weights = a["weights"]
    with pytest.raises(ValueError, match=r"addend must have shape \(N, E\)"):
        pre_norm_block(**(a | {"addend": a["addend"][0]}))
    with pytest.raises(ValueError, match="residual must have addend's shape"):
        pre_norm_block(**(a | {"residual": a["residual"][1:]}))
    with pytest.raises(ValueError, match="activation must be one of"):
        pre_norm_block(**(a | {"activation": "relu"}))
    with pytest.raises(ValueError, match=r"out must take H D and qkv give \(H \+ 2 H_k\) D numbers"):
        pre_norm_block(**(a | {"head_dim": 40}))
    with pytest.raises(ValueError, match=r"up must have a weight of shape \(384, 96\)"):
        wrong = weights._replace(up=LinearMap(weights.up.weight[:, :-1], None))
        pre_norm_block(**(a | {"weights": wrong}))
    with pytest.raises(ValueError, match="mlp_norm must be a layer norm, got kind 'rms_norm'"):
        wrong = weights._replace(mlp_norm=weights.mlp_norm._replace(kind="rms_norm"))
        pre_norm_block(**(a | {"weights": wrong}))
    with pytest.raises(ValueError, match="must rise from 0 to the 192 rows"):
        pre_norm_block(**(a | {"cu_seqlens": a["cu_seqlens"][:-1]}))
    with pytest.raises(ValueError, match=r"rotary must be two float32 tensors \(N, D / 2\) = \(192, 16\)"):
        pre_norm_block(**(a | {"rotary": (torch.zeros(192, 32), torch.zeros(192, 32))}))
    for wrong in ((torch.zeros(192, 16),), (torch.zeros(192, 16), None)):
        with pytest.raises(ValueError, match="rotary must be two float32 tensors"):
            pre_norm_block(**(a | {"rotary": wrong}))
    with pytest.raises(ValueError, match="cu_seqlens must be a tensor, got list"):
        pre_norm_block(**(a | {"cu_seqlens": a["cu_seqlens"].tolist()}))
    with pytest.raises(ValueError, match="out must have a floating weight, got a QuantizedWeight; weights of 8 bits"):
        eight_bits = LinearMap(quantize_weight(weights.out.weight), None)
        pre_norm_block(**(a | {"weights": weights._replace(out=eight_bits)}))
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        pre_norm_block(**(a | {"dropout": BlockDropout(addend_p=1.0)}))
