"""A tiny BERT on real text: it learns, and learns the same with every backend, stopped or not, at any thread count."""

from functools import partial

import pytest
import torch

from fastssl.models.bert import BertForPreTraining
from fastssl.models.bert_config import BertConfig
from fastssl.nn.backend import set_backend
from fastssl.training import Trainer, TrainingConfig, evaluate
from fastssl.training.log import METRICS_FILE, read_metrics

SETTINGS = {"max_steps": 60, "learning_rate": 3e-3, "warmup_steps": 10, "logging_steps": 5, "num_threads": 1}

pytestmark = pytest.mark.usefixtures("plain_run")


def train(run, corpus, *, backend="auto", norm_position="post", **settings):
    """Train and return (losses over the steps, last held-out metrics, weights)."""
    train_data, eval_data, vocab_size = corpus
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        norm_position=norm_position,
    )
    model = BertForPreTraining(config)
    set_backend(model, backend)
    training = TrainingConfig(output_dir=str(run), **SETTINGS | settings)
    result = Trainer(model, training, train_data, eval_data=eval_data).train()
    losses = [row["loss"] for row in read_metrics(run / METRICS_FILE) if "loss" in row]
    return losses, result.evaluation, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_fused_and_reference_give_the_same_curve(tmp_path, small_corpus, norm_position):
    run = partial(train, corpus=small_corpus, norm_position=norm_position)
    fused, fused_held_out, _ = run(tmp_path / "fused")
    reference, reference_held_out, _ = run(tmp_path / "reference", backend="reference")
    assert fused[-1] < fused[0] - 0.8, "it must learn"
    assert fused == pytest.approx(reference, rel=2e-3)
    for name, value in reference_held_out.items():
        assert fused_held_out[name] == pytest.approx(value, rel=5e-3, abs=5e-3), name


def test_resumed_is_bit_identical(tmp_path, small_corpus):
    settings = {"max_steps": 12, "save_steps": 5, "gradient_accumulation_steps": 2}
    _, held_out, weights = train(tmp_path / "straight", small_corpus, **settings)
    checkpoint = str(tmp_path / "straight" / "checkpoint-5")
    _, resumed_held_out, resumed = train(
        tmp_path / "resumed", small_corpus, resume_from_checkpoint=checkpoint, **settings
    )
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())
    assert held_out == resumed_held_out


def test_checkpointed_activations_change_nothing(tmp_path, small_corpus):
    losses, _, weights = train(tmp_path / "kept", small_corpus, max_steps=10)
    again, _, recomputed = train(tmp_path / "recomputed", small_corpus, max_steps=10, gradient_checkpointing=True)
    assert again == losses
    assert all(torch.equal(value, recomputed[name]) for name, value in weights.items())


def test_thread_count_changes_only_rounding(tmp_path, small_corpus):
    one, _, _ = train(tmp_path / "one", small_corpus, max_steps=6, logging_steps=1)
    two, _, _ = train(tmp_path / "two", small_corpus, max_steps=6, logging_steps=1, num_threads=2)
    assert two == pytest.approx(one, rel=1e-3)


def test_a_checkpoint_is_a_model_directory(tmp_path, small_corpus):
    _, held_out, _ = train(tmp_path, small_corpus, max_steps=4)
    model = BertForPreTraining.from_pretrained(tmp_path / "checkpoint-4")
    assert evaluate(model, small_corpus[1]) == held_out
