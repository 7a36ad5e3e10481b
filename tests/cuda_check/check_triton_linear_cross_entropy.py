"""The row kernel of linear cross-entropy keeps its running state in registers, for narrow and for wide vocabularies."""

import pytest
import torch

from fastssl.ops.linear_cross_entropy import triton_kernels
from fastssl.ops.linear_cross_entropy.triton_backend import row_kernel_config
from tests.cuda_check.triton_compilation import CAPABILITIES, compile_and_check

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VOCABULARIES = [1, 1000, 30522, 50257, 128256]
OPTIONS = {
    "masked LM": {"bias": True},
    "causal LM": {"bias": False},
    "every option": {"bias": True, "softcap": True, "smoothed": True},
    "losses alone": {"bias": True, "gradient": False},
}


def integer(value: int) -> str:
    return "i32:16" if value % 16 == 0 else "i32"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_softmax_cross_entropy(options, vocab_size, dtype, capability):
    with_gradient = options.get("gradient", True)
    config = row_kernel_config(vocab_size, DTYPES[dtype], with_gradient)
    types = {
        "logits": f"*{dtype}",
        "bias": "*fp32",
        "targets": "*i64",
        "row_grads": "*fp32",
        "losses": "*fp32",
        "lse": "*fp32",
        "correct": "*i1",
        "row_stride": "i32:16",
        "num_classes": integer(vocab_size),
        "ignore_index": "i32",
        "label_smoothing": "fp32",
        "z_loss": "fp32",
        "softcap": "fp32",
    }
    constants = {
        "SMOOTHED": options.get("smoothed", False),
        "WITH_GRADIENT": with_gradient,
        "GROUPS": config.groups,
        "GROUP": config.group,
    }
    absent = {
        "bias": not options["bias"],
        "softcap": not options.get("softcap"),
        "row_grads": not options["bias"],
        "ignore_index": not options.get("smoothed"),
    }
    constants |= {name: None for name, missing in absent.items() if missing}
    if vocab_size == 1:  # a launch makes a constant of the integer 1
        constants["num_classes"] = 1
    compile_and_check(
        triton_kernels.softmax_cross_entropy,
        {name: kind for name, kind in types.items() if name not in constants},
        constants,
        capability=capability,
        num_warps=config.num_warps,
        num_stages=1,
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", ["i32:16", "i32", "i64"])
def test_scale(length, dtype, capability):
    compile_and_check(
        triton_kernels.scale,
        {"values": f"*{dtype}", "factor": "*fp32", "length": length},
        {"BLOCK": 2048},
        capability=capability,
        num_warps=4,
        num_stages=1,
    )
