import pytest
import torch

from fastssl import extension
from fastssl.ops.backend import refusals
from fastssl.ops.layer_norm import native


@pytest.mark.native
def test_a_binary_of_other_sources_is_told_from_a_good_one():
    with pytest.raises(RuntimeError, match=r"has no operator fastssl::of_tomorrow\. Build it again"):
        extension._register("fastssl::of_tomorrow", lambda: None)


@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch is a CUDA build")
def test_cuda_operators_are_loaded_beside_a_cuda_pytorch_alone():
    assert not extension.cuda_ops_loaded()
    facts = {"x_dtype": torch.float32, "residual_dtype": torch.float32, "parameter_dtypes": (torch.float32,)}
    reasons = refusals(native.SUPPORTS, torch.device("cuda"), torch.float32, facts)
    assert reasons == ["the compiled CUDA operators are not installed, or the GPU is older than 8.0"]
