import pytest
import torch

from fastssl.models.bert_config import BertConfig
from fastssl.tasks.step_benchmark import StepConfig, TrainingStep, measure_step, random_batch
from fastssl.tasks.step_profile import REST, draw_profile, profile_step

# As many tokens as the feed-forward network is wide: products must be told apart all the same.
CONFIG = BertConfig(
    vocab_size=301, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=16,
)  # fmt: skip
SETTINGS = StepConfig(per_device_train_batch_size=4, max_seq_length=16, steps=2)


def test_the_batch_is_dense_and_a_seventh_of_it_is_predicted():
    batch = random_batch(CONFIG, SETTINGS)
    assert batch.cu_seqlens.tolist() == [0, 16, 32, 48, 64]
    assert batch.masked_labels.numel() == 10  # of 64, rounded up
    assert torch.equal(batch.input_ids[batch.masked_positions], batch.masked_labels)


def test_a_step_trains():
    step = TrainingStep(CONFIG, SETTINGS)
    before = [parameter.clone() for parameter in step._model.parameters()]
    step()
    assert all(not torch.equal(old, new) for old, new in zip(before, step._model.parameters(), strict=True))


def test_speed_is_told_of_useful_work():
    speed = measure_step(CONFIG, SETTINGS)
    assert speed.tokens_per_second == pytest.approx(64 / speed.seconds)
    per_token = 6 * 2 * (4 * 32 * 32 + 2 * 32 * 64) + 12 * 2 * 32 * 16 + 6 * (32 * 32 + 301 * 32) * 10 / 64
    assert speed.flops_per_second == pytest.approx(per_token * speed.tokens_per_second)
    assert speed.share_of_matmul > 0


def test_the_parts_of_a_step_add_up(tmp_path):
    step = TrainingStep(CONFIG, SETTINGS)
    step()
    parts = profile_step(step, CONFIG, steps=2)
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert [part.seconds for part in parts] == sorted((part.seconds for part in parts), reverse=True)
    flops = {part.part: part.flops for part in parts}
    rows, width, layers = 64, 32, 2
    assert flops["products: feed-forward"] == 6 * rows * width * 64 * 2 * layers
    assert flops["products: queries, keys, values"] == 6 * rows * width * 96 * layers
    assert flops["products: attention's output, head"] == 6 * width * width * (rows * layers + 10)
    assert flops["products: vocabulary"] == 6 * 10 * width * 301
    assert {"attention", "activation", "optimizer", "layer norms with residual and dropout", REST} <= set(flops)
    draw_profile(parts, "a step", tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_sequences_longer_than_the_model_are_refused():
    with pytest.raises(ValueError, match="max_seq_length is 17, the model has 16 positions"):
        TrainingStep(CONFIG, StepConfig(max_seq_length=17))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        StepConfig(steps=0)
