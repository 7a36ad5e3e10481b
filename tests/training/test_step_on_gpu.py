"""On a GPU, the host sends a training step off without waiting for anything."""

from collections.abc import Callable

import pytest
import torch

from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.training import TrainingConfig
from fastssl.training.distributed import World
from fastssl.training.optimizer import clip_factor_on_device, gradient_norm, make_optimizer
from fastssl.training.step import NumberedBatch, SentNumbers, accumulate_gradients

SIZES = {"vocab_size": 1999, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def models() -> dict[str, torch.nn.Module]:
    return {
        "bert": BertForMaskedLM(BertConfig(**SIZES, intermediate_size=256, max_position_embeddings=128)),
        "gpt": GPTForCausalLM(GPTConfig(**SIZES, max_position_embeddings=128, bos_token_id=None, eos_token_id=None)),
    }


def batch_for(name: str) -> PackedBatch:
    ids = torch.arange(4, 4 + 3 * 64).view(3, 64)
    labels = torch.where(torch.arange(64) % 7 == 3, ids, -100)
    return PackedBatch.from_padded(ids, **{"labels": labels} if name == "bert" else {"causal_labels": ids})


def training_step(name: str, device: str, dtype: torch.dtype) -> Callable[[], SentNumbers]:
    """Return a step of a small model as the training loop takes it on a GPU."""
    model = models()[name].to(device).train()
    optimizer = make_optimizer(model, TrainingConfig(output_dir="run", max_steps=3))
    batches = [NumberedBatch(epoch=0, index=0, batch=batch_for(name).to(device))]

    def step() -> SentNumbers:
        losses, metrics = accumulate_gradients(model, batches, dtype=dtype, world=World())
        norm = gradient_norm(optimizer)
        sent = SentNumbers.send(1, losses, norm, metrics, batches)
        optimizer.step(gradient_factor=clip_factor_on_device(norm, 1.0, losses))
        optimizer.zero_grad(set_to_none=True)
        return sent

    return step


def test_a_gpu_is_told_which_tokens_predict():
    """In a batch that was brought there, whose host knows how many they are, the loss is that of all rows."""
    model, batch = models()["gpt"].eval(), batch_for("gpt")
    expected = model(batch)
    assert batch.predicting_tokens() is None
    object.__setattr__(batch, "_counted", batch.target_counts())
    assert torch.equal(batch.predicting_tokens(), (batch.next_tokens != -100).nonzero().flatten())
    found = model(batch)
    torch.testing.assert_close(found.loss, expected.loss)
    assert {name: float(value) for name, value in found.metrics.items()} == pytest.approx(
        {name: float(value) for name, value in expected.metrics.items()}
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_the_host_does_not_wait_inside_a_step(name: str):
    step = training_step(name, "cuda", torch.bfloat16)
    first = step().report(World()).loss
    torch.cuda.set_sync_debug_mode("error")
    try:
        sent = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sent.report(World()).loss < first
