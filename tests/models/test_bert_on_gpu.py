"""BERT on a GPU is BERT on the CPU: the same loss and gradients, and bit for bit the same dropout masks."""

import copy

import pytest
import torch

from benchmarks.models import batches
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.training.precision import autocast

pytestmark = pytest.mark.cuda
CONFIG = BertConfig(
    vocab_size=1999,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
    max_position_embeddings=256,
)
DTYPES = {torch.float32: 2e-4, torch.bfloat16: 5e-2}
"""dtype of the arithmetic -> relative error of a gradient, as a norm."""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_same_loss_gradients_and_dropout_as_on_the_cpu(dtype, training):
    torch.manual_seed(0)
    model = BertForMaskedLM(CONFIG).train(training)
    (batch,) = batches.of_lengths(1, (5, 64, 130, 1, 77), vocab_size=CONFIG.vocab_size, mask_rate=0.3)
    on_gpu = copy.deepcopy(model).cuda()
    expected = model(batch, seed=7).loss
    expected.backward()
    with autocast(torch.device("cuda"), dtype):
        loss = on_gpu(batch.to("cuda"), seed=7).loss
    loss.backward()
    tolerance = DTYPES[dtype]
    assert abs(loss.item() - expected.item()) <= tolerance * expected.item()
    for (name, ours), theirs in zip(on_gpu.named_parameters(), model.parameters(), strict=True):
        error = (ours.grad.cpu() - theirs.grad).norm() / theirs.grad.norm().clamp_min(1e-6)
        assert error <= tolerance, f"{name}: {error:.2e}"
