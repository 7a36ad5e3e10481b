"""A model of seconds learns in its context: from documents of hidden operations, nothing else."""

import json
import random

import pytest
import torch

from fastssl.data.batch import PackedBatch
from fastssl.data.in_context_corpus import INSTRUCTIONS, TaskFamilies, document
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.tasks.in_context.config import DemonstrationConfig, InContextConfig, TaskColumnConfig
from fastssl.tasks.in_context.experiment import measure_in_context
from fastssl.tasks.in_context.layout import LayoutConfig

STEPS, DOCUMENTS_PER_STEP, LINES = 200, 24, 4
FAMILIES = TaskFamilies(num_words=8, seed=0)


def text(draw: random.Random) -> str:
    """Some words, all of them copied or all in the same made-up language."""
    return document(FAMILIES, "translate", LINES, draw)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    draw = random.Random(0)
    tokenizer = Tokenizer.train_byte_pairs([text(draw) for _ in range(300)], vocab_size=420)
    bounds = tokenizer.bounds
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=48, bos_token_id=bounds.bos, eos_token_id=bounds.eos,
        initializer_range=0.08, embedding_dropout_prob=0,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    model = GPTForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        texts = tokenizer.encode_many([text(draw) for _ in range(DOCUMENTS_PER_STEP)])
        batch = PackedBatch.from_sequences([[bounds.bos, *ids, bounds.eos] for ids in texts], predict_next=True)
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()
        schedule.step()
    path = tmp_path_factory.mktemp("learnt")
    model.save_pretrained(path)
    tokenizer.save(path)
    return path


@pytest.mark.parametrize("scoring", ["likelihood", "generation"])
def test_one_example_tells_the_operation(directory, tmp_path, scoring):
    draw = random.Random("questions")
    tasks = FAMILIES.tasks("translate", draw)
    rows = []
    for number in range(60):
        operation, ask = tasks[number % 4]
        prompt, answer, choices = ask(draw)
        rows.append({"prompt": prompt, "completion": answer, "choices": choices, "operation": operation})
    task = tmp_path / "translate.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = InContextConfig(
        model=(directory,),
        task=(task,),
        output_dir=tmp_path / "out",
        columns=TaskColumnConfig(group_column="operation"),
        layout=LayoutConfig(instruction=(INSTRUCTIONS["translate"],), begin_with_bos=True),
        demonstrations=DemonstrationConfig(shots=(0, 3), num_seeds=1),
        scoring=scoring,
    )
    report = measure_in_context(config, say=lambda _: None)
    accuracy = {(point.shots, point.answers): point.accuracy for point in report.points}
    # Without an example the operation cannot be known: one in four.
    assert accuracy[0, "true"] <= 0.45
    assert accuracy[3, "true"] >= 0.8
    assert report.models[0].is_unchanged
