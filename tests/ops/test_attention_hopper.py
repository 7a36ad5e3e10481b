"""How the kernels for compute capability 9.0 divide their work; test_attention_cuda.py has what they compute."""

from dataclasses import replace

import pytest
import torch

from fastssl import extension
from fastssl.ops.attention import hopper, stock, triton_backend
from fastssl.ops.attention.cases import AttentionCase
from fastssl.ops.backend import choose
from tests.ops.test_attention import call, check
from tests.ops.test_attention_cuda import results, same_bits

pytestmark = [pytest.mark.native, pytest.mark.cuda]

FACTS = {"device": "cuda", "dtype": torch.bfloat16, "width": 64, "biased": False, "needs_grad": True}
FACTS |= {"packed": True, "compiling": False, "dropped": False, "return_lse": False}


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(lengths_q=(300, 140), heads=1, key_heads=1, width=64, dropout_p=0.1),
        AttentionCase(lengths_q=(300, 130, 7), heads=1, key_heads=1, width=64, causal=True),
        AttentionCase(lengths_q=(450,), heads=1, key_heads=1, width=64, window=(150, 40)),
        AttentionCase(lengths_q=(200,), heads=2, key_heads=1, width=64),
        AttentionCase(lengths_q=(200, 130), heads=1, key_heads=1, width=128),
    ],
    ids=["plain", "causal", "window", "grouped", "wide"],
)
def test_same_bits_however_the_work_is_divided(cuda_kernels, hopper_runs, case):
    """Several tiles share the keys in shared memory, or each has its own; a block has one item or all of them.

    But for blocks that take turns: `test_blocks_that_take_turns`.
    """
    inputs = case.inputs(torch.bfloat16)
    cuda_kernels.set_device(num_multiprocessors=1)
    found = results(case, "hopper", inputs)
    cuda_kernels.set_device(num_multiprocessors=3)
    assert same_bits(found, results(case, "hopper", inputs))
    check(case, inputs, "hopper")


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(lengths_q=(450, 130), lengths_k=(520, 130), heads=1, key_heads=1, width=64),
        AttentionCase(lengths_q=(70,), lengths_k=(520,), heads=2, key_heads=1, width=128),
        AttentionCase(lengths_q=(600,), lengths_k=(530,), heads=1, key_heads=1, width=64, causal=True),
        AttentionCase(lengths_q=(300,), lengths_k=(700,), heads=1, key_heads=1, width=64, window=(250, 100)),
        AttentionCase(lengths_q=(130, 130), lengths_k=(390, 390), heads=2, key_heads=1, width=16, dense=True),
    ],
    ids=["plain", "few queries", "causal", "window", "dense"],
)
def test_blocks_that_take_turns(cuda_kernels, hopper_runs, monkeypatch, case):
    """Sequences of up to six blocks, of which one, three or all run at the same time; bits depend on no other order.

    Under a mask they do not even depend on how many run at the same time.
    """
    monkeypatch.setattr(hopper, "TWO_PASSES_UP_TO", 0)
    inputs, found = case.inputs(torch.bfloat16), []
    for blocks, order in ((1, 0), (3, 0), (3, 1)):
        cuda_kernels.set_device(num_multiprocessors=blocks)
        cuda_kernels.set_thread_order(order)
        found.append(results(case, "hopper", inputs))
    check(case, inputs, "hopper")
    assert same_bits(*found[1:])
    assert same_bits(*found[:2]) or not (case.causal or case.window)
    cuda_kernels.set_device(num_multiprocessors=6)
    check(case, inputs, "hopper")


@pytest.mark.parametrize("length", [300, 530])
def test_bounds_of_the_lengths_change_no_bit(cuda_kernels, hopper_runs, length):
    """Nor would bounds that are wrong: they only decide how the work is divided."""
    case = AttentionCase(lengths_q=(length, 30), heads=1, key_heads=1, width=64, causal=True)
    q, k, v = case.inputs(torch.bfloat16).values()
    everything = 2**31 - 1

    def forward(longest):
        offsets = case.options()["cu_seqlens_q"]
        arguments = (offsets, None, None, everything, 0, 0, None, 0.125, longest, longest, 0)
        out, lse, kept = torch.ops.fastssl.attention_hopper_forward(q, k, v, *arguments)
        rest = (out, None, q, k, v, out, lse, kept, *arguments, False)
        grads = torch.ops.fastssl.attention_hopper_backward(*rest, length > hopper.TWO_PASSES_UP_TO)
        return dict(enumerate((out, lse, *grads)))

    unknown, told, wrong = forward(0), forward(length), forward(100)
    assert same_bits(unknown, told) and same_bits(unknown, wrong)
    check(case, case.inputs(torch.bfloat16), "hopper")


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(lengths_q=(300, 5, 140), heads=2, key_heads=2, width=64, dropout_p=0.3),
        AttentionCase(lengths_q=(70,), lengths_k=(300,), heads=4, key_heads=2, width=128, dropout_p=0.3, causal=True),
        AttentionCase(lengths_q=(140, 140), heads=2, key_heads=1, width=64, dropout_p=0.3, dense=True),
    ],
    ids=["packed", "grouped", "dense"],
)
def test_decisions_that_are_kept_are_those_that_are_drawn(hopper_runs, monkeypatch, case):
    """The backward takes the forward's bits where a bound of the lengths is known, and draws them anew without."""
    inputs = case.inputs(torch.bfloat16)
    bounds = {"max_seqlen_q": max(case.lengths_q), "max_seqlen_k": max(case.lengths_k or case.lengths_q)}
    seen = []
    forward = hopper.forward_saving
    monkeypatch.setattr(hopper, "forward_saving", lambda *arguments: seen.append(forward(*arguments)) or seen[-1])

    def gradients(**bounds):
        leaves = [x.detach().requires_grad_() for x in inputs.values()]
        out = call(case, "hopper", list(inputs), **bounds)(*leaves)
        return dict(enumerate(torch.autograd.grad(out, leaves, out.detach())))

    kept = gradients(**bounds)
    if not case.dense:  # there the lengths are known
        drawn = gradients()
        assert seen[-1][2].numel() == 0
    else:
        monkeypatch.setattr(hopper, "BYTES_OF_A_TILE", 10**6)
        drawn = gradients()
    assert seen[0][2].numel() > 0 and same_bits(kept, drawn)


@pytest.mark.parametrize("dense", [False, True])
def test_heads_take_turns_where_their_keys_do_not_fit_the_cache(cuda_kernels, hopper_runs, dense):
    """Rows of so many keys that only one head, or two of three, is worked on at a time."""
    num_keys = 400 + 128 * (465 if dense else 310)  # the last 400 fall into the same tiles alone
    case = AttentionCase(
        lengths_q=(130,), lengths_k=(num_keys,), heads=3, key_heads=3, width=16, window=(9, 0), dense=dense
    )
    inputs = case.inputs(torch.bfloat16)
    with torch.no_grad():
        out = call(case, "hopper", "qkv")(*inputs.values())
        last = {name: x[..., -(400 if name != "q" else 130) :, :, :] for name, x in inputs.items()}
        expected = call(replace(case, lengths_k=(400,)), "hopper", "qkv")(*last.values())
    assert torch.equal(out, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="more than the emulation does in a minute")
@pytest.mark.parametrize("causal", [False, True])
def test_more_blocks_take_turns_than_run_at_a_time(hopper_runs, monkeypatch, causal):
    """160 of them share the queries; two passes are the other way to the same gradients."""
    case = AttentionCase(lengths_q=(20_480,), heads=1, key_heads=1, width=64, causal=causal)
    inputs, found = case.inputs(torch.bfloat16), []
    for longest_in_two_passes in (0, 0, 10**6):
        monkeypatch.setattr(hopper, "TWO_PASSES_UP_TO", longest_in_two_passes)
        found.append(results(case, "hopper", inputs))
    assert same_bits(*found[:2])
    for name in "qkv":
        torch.testing.assert_close(found[0][name], found[2][name], rtol=2**-6, atol=2**-6 * found[2][name].std())


def test_rows_that_copies_do_not_reach_are_packed_first(cuda_kernels, hopper_runs):
    """An address that is no multiple of 16 bytes, rows that are, and one row for all."""
    case = AttentionCase(lengths_q=(70,), lengths_k=(70,), heads=2, key_heads=2, width=16)
    inputs = case.inputs(torch.bfloat16)
    moved = {name: torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape) for name, x in inputs.items()}
    assert same_bits(results(case, "hopper", moved), results(case, "hopper", inputs))
    shared = inputs | {"v": inputs["v"][:1].expand(70, 2, 16)}
    packed = shared | {"v": shared["v"].contiguous()}
    with torch.no_grad():
        assert torch.equal(*(call(case, "hopper", "qkv")(*x.values()) for x in (shared, packed)))


@pytest.mark.parametrize("kept_tiles", [0, 2])
@pytest.mark.parametrize("dense", [False, True])
def test_the_fake_kernels_allocate_as_the_operators_do(cuda_kernels, hopper_runs, dense, kept_tiles):
    case = AttentionCase(lengths_q=(70, 70), heads=2, key_heads=1, width=16, dense=dense)
    q, k, v = case.inputs(torch.bfloat16).values()
    offsets = case.options().get("cu_seqlens_q")
    everything, seed = 2**31 - 1, torch.tensor(3)
    arguments = (offsets, None, None, everything, everything, 1000, seed, 0.25, 0, 0, kept_tiles)
    out, lse, kept = torch.ops.fastssl.attention_hopper_forward(q, k, v, *arguments)
    fake = hopper._forward_fake(q, k, v, *arguments)
    assert [(x.shape, x.dtype) for x in (out, lse, kept)] == [(x.shape, x.dtype) for x in fake]
    for together, one_pass in ((False, False), (True, False), (False, True)):
        rest = (q, k, v, out, lse, kept, *arguments, together, one_pass)
        found = torch.ops.fastssl.attention_hopper_backward(out, None, *rest)
        assert [x.shape for x in found] == [x.shape for x in hopper._backward_fake(out, None, *rest)]


def test_nothing_to_copy(cuda_kernels, hopper_runs):
    case = AttentionCase(lengths_q=(3, 2), lengths_k=(0, 0), width=16)
    found = results(case, "hopper", case.inputs(torch.bfloat16))
    assert (found["output"] == 0).all() and (found["lse"] == -torch.inf).all()


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({"width": 60}, "multiple of 8"), ({"width": 136}, "at most 128"), ({"biased": True}, "no bias")],
)
def test_what_the_kernels_cannot_do_is_refused(monkeypatch, facts, reason):
    monkeypatch.setattr(extension, "has_capability", lambda capability: capability == (9, 0))
    assert not any(refuses(**FACTS) for refuses in hopper.SUPPORTS.refuses.values())
    found = [why for why, refuses in hopper.SUPPORTS.refuses.items() if refuses(**FACTS | facts)]
    assert len(found) == 1 and reason in found[0]


def test_other_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(extension, "cuda_ops_loaded", lambda: True)
    monkeypatch.setattr(extension, "has_capability", lambda capability: False)
    with pytest.raises(ValueError, match=r"compute capability 9\.0 alone; use backend='auto'"):
        choose("attention", "hopper", {"hopper": hopper}, torch.device("cuda"), torch.bfloat16, FACTS)


def test_no_recorded_run_has_verified_them(monkeypatch):
    """So that they run when asked for by name alone."""
    monkeypatch.setattr(extension, "cuda_ops_loaded", lambda: True)
    monkeypatch.setattr(extension, "has_capability", lambda capability: True)
    backends = {"hopper": hopper, "triton": triton_backend, "stock": stock}

    def choice(requested):
        return choose("attention", requested, backends, torch.device("cuda"), torch.bfloat16, FACTS)

    assert choice("auto") != "hopper" and choice("hopper") == "hopper"
