"""The Triton kernels of attention, in the tiles and with the arguments that calls on an A100 or an H100 would take.

Each call runs on tensors without memory, and its launches are compiled instead of made.
"""

import pytest
import torch
import triton

from fastssl.ops.attention import triton_backend, triton_tuning
from fastssl.ops.attention.cases import AttentionCase
from tests.cuda_check.triton_compilation import CAPABILITIES, DTYPES, Resources, compile_and_check

SMALLEST_SHARED_BYTES = 99 * 1024
"""What a block may have on sm_86 and sm_89, which take the tiles of sm_80."""
BERT = {"lengths_q": (512,) * 4, "heads": 12, "key_heads": 12, "width": 64}
LONG = BERT | {"lengths_q": (2048,) * 2, "dropout_p": 0.1}
SHORT = BERT | {"lengths_q": (30, 64, 50)}
EVERYTHING = {
    "lengths_q": (500, 300), "lengths_k": (400, 600), "heads": 12, "key_heads": 4, "window": (200, 30), "alibi": True,
    "bias": "own", "dropout_p": 0.1,
}  # fmt: skip
HOT = {
    "bert": ("bf16", BERT | {"dropout_p": 0.1}),
    "bert, fp16, served": ("fp16", BERT),
    "bert, one tile of keys": ("bf16", SHORT | {"dropout_p": 0.1}),
    "gpt": ("bf16", BERT | {"causal": True, "dense": True, "dropout_p": 0.1}),
    "alibi": ("bf16", BERT | {"causal": True, "alibi": True}),
    "window": ("bf16", BERT | {"window": (128, 128), "dense": True}),
    "bias": ("bf16", BERT | {"lengths_k": (512,) * 4, "bias": "shared", "dense": True, "dropout_p": 0.1}),
    "narrow": ("bf16", BERT | {"width": 32, "dropout_p": 0.1}),
    "long": ("bf16", LONG),
    "long, bias": ("bf16", LONG | {"lengths_k": (2048,) * 2, "bias": "shared", "dense": True}),
    "wide": ("bf16", BERT | {"width": 128, "dropout_p": 0.1}),
    "wide, causal, grouped": ("fp16", BERT | {"width": 128, "key_heads": 4, "causal": True}),
}
"""dtype and call; but for SPILL_BYTES nothing may use local memory. Backwards of long sequences draw dropout again."""
SPILL_BYTES = {
    (90, "bert"): {"attention_forward": 148},
    (90, "bert, one tile of keys"): {"attention_forward": 148},
    (90, "long"): {"attention_forward": 60},
    (90, "wide"): {"attention_grad_q": 32, "attention_grad_kv": 8},
    (90, "wide, causal, grouped"): {"attention_forward": 152, "attention_grad_q": 104, "attention_grad_kv": 320},
}
"""(capability, call) -> kernel -> what it may spill, stores and loads together: these tiles were the fastest of
`benchmarks/gpu/tile_search.py` all the same."""
REST = {
    "padded width": ("bf16", BERT | {"width": 80, "causal": True}),
    "widest": ("bf16", BERT | {"width": 256}),
    "fp32": ("fp32", BERT | {"dropout_p": 0.1}),
    "fp32, wide, causal": ("fp32", BERT | {"width": 128, "causal": True}),
    "bias, odd rows": ("bf16", BERT | {"bias": "own", "dropout_p": 0.1}),
    "everything": ("bf16", EVERYTHING | {"width": 64}),
}
"""These must fit, and may spill."""


def tensors_of(case: AttentionCase, dtype: torch.dtype) -> tuple[list, dict[str, torch.Tensor]]:
    """Return q, k and v, and the other arguments of the backend, all on the meta device."""
    inputs = {name: tensor.to("meta") for name, tensor in case.inputs(dtype).items()}
    if "bias" in inputs and case.lengths_q == case.lengths_k:  # no larger than the scores, so rows lie on sectors
        inputs["bias"] = inputs["bias"][..., : max(case.lengths_q), : max(case.lengths_k)].contiguous()
    options = {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in case.options().items()}
    left, right = case.window or (None, None)
    unbounded = 2**31 - 1
    rest = [
        inputs.get("bias"),
        options.get("cu_seqlens_q"),
        options.get("cu_seqlens_k"),
        options.get("alibi_slopes"),
        torch.empty((), dtype=torch.int64, device="meta") if case.dropout_p > 0 else None,
        unbounded if left is None else left,
        0 if case.causal else unbounded if right is None else right,
        case.dropout_p,
        case.width**-0.5,
        None if case.dense else max(case.lengths_q),
        None if case.dense else max(case.lengths_k or case.lengths_q),
    ]
    return [inputs[name] for name in "qkv"], rest


def type_of(value: object, specialized: bool = True) -> str | tuple[str, ...]:
    """Return the type of an argument as Triton's launcher would find it."""
    if isinstance(value, torch.Tensor):
        names = {dtype: name for name, dtype in DTYPES.items()} | {torch.int32: "i32", torch.int64: "i64"}
        return f"*{names[value.dtype]}"
    if isinstance(value, tuple):
        return type(value)(*map(type_of, value))
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int) and abs(value) < 2**31
    return "i32:16" if specialized and value % 16 == 0 else "i32"


def compile_launch(
    kernel: triton.JITFunction,
    tile: triton_tuning.Tile,
    given: dict[str, object],
    *,
    capability: int,
    hot: bool,
    spill_bytes: int = 0,
) -> Resources:
    signature, constants = {}, {}
    for parameter in kernel.params:
        value = given[parameter.name]
        specialized = not parameter.do_not_specialize
        is_one = specialized and isinstance(value, int) and value == 1  # a launch makes a constant of the integer 1
        if parameter.is_constexpr or value is None or is_one:
            constants[parameter.name] = value
        else:
            signature[parameter.name] = type_of(value, specialized)
    return compile_and_check(
        kernel,
        signature,
        constants,
        capability=capability,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        hot=hot,
        spill_bytes=spill_bytes,
    )


@pytest.fixture
def launches(monkeypatch):
    """Return a function that gives the launches of a call in both directions, as (kernel, tile, arguments)."""

    def of(case: AttentionCase, dtype: torch.dtype, capability: int) -> list[tuple]:
        made = []

        def launch(call, kernel, tile, programs, **own):
            assert programs > 0
            blocks = {"BLOCK_T": tile.queries, "BLOCK_S": tile.keys, "INTERPRETED": False}
            made.append((kernel, tile, call.arguments | own | blocks))

        monkeypatch.setattr(triton_backend._Call, "_launch", launch)
        monkeypatch.setattr(triton_tuning, "capability_of", lambda _: capability)
        qkv, rest = tensors_of(case, dtype)
        saved = triton_backend.forward_saving(*qkv, *rest)
        triton_backend._backward(torch.empty_like(qkv[0]), None, *qkv, *saved, *rest, case.bias is not None, False)
        return made

    return of


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", [*HOT, *REST])
def test_every_launch_of_a_call(launches, name, capability):
    dtype, options = (HOT | REST)[name]
    case = AttentionCase(**options)
    for kernel, tile, given in launches(case, DTYPES[dtype], capability):
        spill_bytes = SPILL_BYTES.get((capability, name), {}).get(kernel.__name__, 0)
        found = compile_launch(kernel, tile, given, capability=capability, hot=name in HOT, spill_bytes=spill_bytes)
        if capability == 80:
            assert found.shared_bytes <= SMALLEST_SHARED_BYTES, f"{kernel.__name__} in {tile}: {found}"


def test_the_calls_launch_every_kernel(launches):
    made = [
        kernel.__name__ for dtype, options in HOT.values() for kernel, _, _ in
        launches(AttentionCase(**options), DTYPES[dtype], 90)
    ]  # fmt: skip
    assert set(made) == set(triton_tuning.TILES)


@pytest.mark.parametrize("capability", [86, 89, 120])
def test_gpus_with_less_shared_memory_take_the_tiles_of_sm_80(capability):
    for width in (32, 64, 128, 256):
        for element_size in (2, 4):
            shape = {"width": width, "element_size": element_size, "longest_q": 512, "longest_k": 512}
            for choose in triton_tuning.TILES.values():
                for dropped in (False, True):
                    for biased in (False, True):
                        options = shape | {"dropped": dropped, "drawn": dropped, "biased": biased, "windowed": False}
                        ampere, other = (
                            choose(triton_tuning.Shape(capability=number, **options)) for number in (80, capability)
                        )
                        assert ampere == other
