from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.models import batches
from benchmarks.models.pretraining_step import linear_shapes, useful_flops
from benchmarks.models.training_step import TrainingStep, adamw, assert_same_step, in_turn, loss_of_fastssl, saved
from benchmarks.peers import hugging_face
from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig

CONFIG = BertConfig(
    vocab_size=211, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM(CONFIG)


@pytest.fixture
def batch() -> PackedBatch:
    generator = np.random.default_rng(1)
    sequences = [generator.integers(5, 200, length) for length in (31, 7, 12, 3)]
    return batches.masked(sequences, mask_id=4, generator=generator)


def test_masking_labels_15_percent_and_never_the_ends(batch: PackedBatch):
    assert batch.cu_seqlens.diff().tolist() == [31, 7, 12, 3]
    assert batch.masked_labels.numel() == 5 + 1 + 2 + 1
    assert (batch.input_ids[batch.masked_positions] == 4).all()
    ends = torch.cat((batch.cu_seqlens[:-1], batch.cu_seqlens[1:] - 1))
    assert not torch.isin(batch.masked_positions, ends).any()


def test_first_sequences(batch: PackedBatch):
    first = batches.first_sequences(batch, 2)
    assert first.cu_seqlens.tolist() == [0, 31, 38]
    assert torch.equal(first.input_ids, batch.input_ids[:38])
    assert torch.equal(first.masked_labels, batch.masked_labels[: first.masked_labels.numel()])


def test_padding_for_hugging_face(batch: PackedBatch):
    padded = hugging_face.inputs(batch)
    assert {name: tuple(tensor.shape) for name, tensor in padded.items()} == dict.fromkeys(padded, (4, 31))
    assert padded["attention_mask"].sum() == batch.num_tokens
    assert (padded["labels"] != -100).sum() == batch.masked_labels.numel()
    assert "attention_mask" not in hugging_face.inputs(batches.first_sequences(batch, 1))


def test_the_same_step_is_found_and_another_is_not(
    model: BertForMaskedLM, batch: PackedBatch, tmp_path: Path, monkeypatch
):
    with saved(model) as directory:
        assert_same_step(directory, batch)
        monkeypatch.setattr(hugging_face, "loss", lambda peer, padded: 1.001 * peer(**padded).loss)
        with pytest.raises(AssertionError, match="loss"):
            assert_same_step(directory, batch)


def test_a_step_trains_on_the_next_batch_and_forgets_its_gradients(model: BertForMaskedLM, batch: PackedBatch):
    seen = []

    def loss(trained: BertForMaskedLM, packed: PackedBatch) -> torch.Tensor:
        seen.append(packed.num_sequences)
        return loss_of_fastssl(trained, packed)

    before = model.bert.embeddings.word.weight.clone()
    batch_of = in_turn([batch, batches.first_sequences(batch, 2)])
    step = TrainingStep(model, loss, batch_of, adamw(model, fused=True), max_grad_norm=1.0)
    for _ in range(3):
        step()
    assert seen == [4, 2, 4]
    assert not torch.equal(model.bert.embeddings.word.weight, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_work_counts_real_tokens_alone(batch: PackedBatch):
    tokens, predicted, width, layers = 53, 9, 32, 2
    blocks = 6 * layers * (4 * width * width + 2 * width * 64) * tokens
    attention = 12 * layers * width * (31**2 + 7**2 + 12**2 + 3**2)
    head = 6 * (width * width + 211 * width) * predicted
    assert useful_flops(CONFIG, batch) == pytest.approx(blocks + attention + head)
    assert sum(shape.flops for shape in linear_shapes(CONFIG, [batch])) == pytest.approx(blocks + head)
