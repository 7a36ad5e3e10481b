"""The same weights, batches and settings in a plain loop over `transformers` give the same loss at every step."""

import pytest
import torch
import transformers

from fastssl.data.batch import IGNORED_LABEL
from fastssl.models.bert import BertForPreTraining
from fastssl.models.bert_config import BertConfig
from fastssl.training import Trainer, TrainingConfig
from fastssl.training.log import METRICS_FILE, read_metrics

STEPS, WARMUP, RATE, DECAY = 25, 5, 3e-3, 0.1


def padded(batch):
    """Return a packed batch as the arguments of Hugging Face's BertForPreTraining."""
    labels = torch.full_like(batch.input_ids, IGNORED_LABEL)
    labels[batch.masked_positions] = batch.masked_labels
    return {
        "input_ids": batch.unpack(batch.input_ids),
        "token_type_ids": batch.unpack(batch.token_type_ids),
        "attention_mask": batch.unpack(torch.ones_like(batch.input_ids)),
        "labels": batch.unpack(labels, padding_value=IGNORED_LABEL),
        "next_sentence_label": batch.sentence_labels,
    }


def plain_loop(model, data):
    decayed = [p for name, p in model.named_parameters() if not name.endswith("bias") and "LayerNorm" not in name]
    rest = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-6)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses = []
    for index in range(STEPS):
        loss = model(**padded(data.batch(0, index))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("plain_run")
def test_same_loss_at_every_step_as_transformers(tmp_path, small_corpus):
    data, _, vocab_size = small_corpus
    assert data.num_batches(0) > STEPS
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForPreTraining(config)
    model.save_pretrained(tmp_path / "start")
    peer = transformers.BertForPreTraining.from_pretrained(tmp_path / "start").train()
    training = TrainingConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=STEPS,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        logging_steps=1,
    )
    Trainer(model, training, data).train()
    ours = [row["loss"] for row in read_metrics(tmp_path / "run" / METRICS_FILE)]
    assert ours == pytest.approx(plain_loop(peer, data), rel=1e-4)
    assert ours[-1] < ours[0] - 0.3
