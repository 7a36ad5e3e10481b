"""A block of GPT-2 for one new token a sequence: in one call, in five, and by PyTorch's operators."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import read_of
from benchmarks.rotation import Rotation
from benchmarks.suites import Run
from benchmarks.timing import timed
from fastssl.ops.cached_attention.api import cached_attention
from fastssl.ops.decoder_block.api import decoder_block
from fastssl.ops.decoder_block.cases import DecoderBlockCase, gpt2_block
from fastssl.ops.decoder_block.reference import compose
from fastssl.ops.decoder_block.weights import BlockWeights, LinearMap
from fastssl.ops.quantized_linear.weight import QuantizedWeight
from fastssl.ops.skinny_linear.api import skinny_linear

LENGTH = 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
QUICK = ("1 sequence, fp32",)
LARGEST_DIFFERENCE = 0.05
"""Between rounded weights and those in fp32, in units of the largest output."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return one sequence and eight, with weights of every kind."""
    every = {
        f"{sequences} sequence{'s' * (sequences > 1)}, {kind}": partial(
            comparison, gpt2_block(sequences, LENGTH), dtype
        )
        for sequences in (1, 8)
        for kind, dtype in DTYPES.items()
    }
    return {name: every[name] for name in QUICK} if run.quick else every


@torch.inference_mode()
def comparison(case: DecoderBlockCase, dtype: torch.dtype) -> Comparison:
    """Compare with our operators one after the other, and with PyTorch's in fp32; weights and caches are cold."""
    arguments, wide = case.inputs(dtype), case.inputs()
    blocks, wide_blocks = _rotation(arguments), _rotation(wide)
    contenders = {
        OURS: partial(_call, arguments, blocks),
        "five calls": partial(_five_calls, arguments, blocks),
        "PyTorch fp32": partial(_call, wide, wide_blocks, backend="stock"),
    }

    def check() -> None:
        exact = decoder_block(**wide, backend="reference")
        for name, launch in contenders.items():
            difference = (launch() - exact).abs().max() / exact.abs().max()
            assert difference <= LARGEST_DIFFERENCE, f"{name}: differs from fp32 by {difference:.3f}"

    num_bytes = _num_bytes(arguments)
    return Comparison(
        contenders={name: timed(torch.inference_mode()(launch)) for name, launch in contenders.items()},
        check=torch.inference_mode()(check),
        work=num_bytes,
        unit="B",
        limit=read_of(num_bytes),
    )


def _call(arguments: dict, blocks: Rotation, backend: str = "auto") -> Tensor:
    return decoder_block(**(arguments | blocks.next()), backend=backend)


def _five_calls(arguments: dict, blocks: Rotation) -> Tensor:
    block = blocks.next()
    rest = {"activation": arguments["activation"], "window": None, "scale": None, "rotary": None}
    operands = (block["weights"], block["k_cache"], block["v_cache"], arguments["lengths"])
    return compose(skinny_linear, cached_attention, arguments["x"], *operands, **rest)


def _maps(weights: BlockWeights) -> dict[str, LinearMap]:
    return {name: part for name, part in weights._asdict().items() if isinstance(part, LinearMap)}


def _data(weight: Tensor | QuantizedWeight) -> Tensor:
    return weight.packed if isinstance(weight, QuantizedWeight) else weight


def _num_bytes(arguments: dict) -> int:
    weights = sum(_data(linear.weight).nbytes for linear in _maps(arguments["weights"]).values())
    return weights + arguments["k_cache"].nbytes + arguments["v_cache"].nbytes


def _rotation(arguments: dict) -> Rotation:
    def copy(weight: Tensor | QuantizedWeight) -> Tensor | QuantizedWeight:
        data = _data(weight).clone()
        return replace(weight, packed=data) if isinstance(weight, QuantizedWeight) else data

    def make() -> dict:
        weights = arguments["weights"]
        maps = {name: linear._replace(weight=copy(linear.weight)) for name, linear in _maps(weights).items()}
        caches = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
        return {"weights": weights._replace(**maps), **caches}

    return Rotation(make, _num_bytes(arguments))
