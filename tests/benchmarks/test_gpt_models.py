from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.models import character_run, generation
from benchmarks.models.character_run import Record, Windows, assert_same_model, finish
from benchmarks.models.gpt_pretraining_step import assert_same_step, linear_shapes, random_batch, useful_flops
from benchmarks.models.training_step import saved
from benchmarks.peers import hugging_face, hugging_face_gpt
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.nn.quantized import quantize

CONFIG = GPTConfig(
    vocab_size=211, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip
BLOCK_MATRICES = 2 * (4 * 32 * 32 + 2 * 32 * 128)
VECTORS = 2 * (4 * 32 + 96 + 32 + 128 + 32) + 2 * 32
"""Norms and biases of both blocks, and the last norm."""


@pytest.fixture(scope="module")
def model() -> GPTForCausalLM:
    torch.manual_seed(0)
    return GPTForCausalLM(CONFIG).eval()


def test_the_same_step_is_found_and_another_is_not(model: GPTForCausalLM, monkeypatch):
    batch = random_batch(CONFIG, (2, 11))
    with saved(model) as directory:
        assert_same_step(directory, batch)
        monkeypatch.setattr(hugging_face, "loss", lambda peer, padded: 1.001 * peer(**padded).loss)
        with pytest.raises(AssertionError, match="loss"):
            assert_same_step(directory, batch)


def test_work_of_a_step_counts_what_came_before_alone():
    batch = random_batch(CONFIG, (3, 7))
    products = 6 * (21 * BLOCK_MATRICES + 3 * 6 * 211 * 32)
    assert sum(shape.flops for shape in linear_shapes(CONFIG, batch)) == products
    assert useful_flops(CONFIG, batch) == products + 12 * 2 * 32 * 3 * (7 * 8 / 2)


def test_a_decoding_token_reads_every_weight_and_all_rows_of_the_cache(model: GPTForCausalLM):
    assert generation.weight_bytes(model) == 4 * (BLOCK_MATRICES + VECTORS + 211 * 32)
    steps, row_bytes = 4, 2 * 4 * 2 * 32
    expected = steps * generation.weight_bytes(model) + 3 * row_bytes * (10 + 11 + 12 + 13)
    assert generation.decoded_bytes(model, 3, prompt_length=10, new_tokens=5) == expected


def test_eight_bits_are_about_a_quarter(model: GPTForCausalLM):
    padded_head = 224 * 32
    scales_and_sums = 2 * 4 * (2 * (96 + 32 + 128 + 32) + 211)
    expected = BLOCK_MATRICES + padded_head + 4 * VECTORS + scales_and_sums
    assert generation.weight_bytes(quantize(model)) == expected


def test_a_prompt_needs_the_last_row_alone_of_the_last_block():
    whole, last = BLOCK_MATRICES // 2, 2 * 32 * 32
    products = 2 * (9 * (whole + last) + (whole - last) + 211 * 32)
    assert generation.prefill_flops(CONFIG, 9) == products + 4 * 32 * (9 * 10 / 2 + 9)


def test_greedy_texts_and_scores_are_those_of_hugging_face(model: GPTForCausalLM):
    prompts = generation.random_prompts("gpt2-nano", 2, 5) % 211
    with saved(model) as directory:
        peer = hugging_face_gpt.load(directory).eval()
    texts, readings = hugging_face_gpt.greedy(peer, prompts, 6)
    assert [text.tokens for text in model.generate(prompts.tolist(), max_new_tokens=6)] == texts.tolist()
    assert len(readings) == 6 and readings == sorted(readings)
    generation.assert_near(model, peer, prompts)
    with torch.no_grad():
        model.gpt.final_norm.weight.neg_()
    with pytest.raises(AssertionError, match="cosine"):
        generation.assert_near(model, peer, prompts)
    with torch.no_grad():
        model.gpt.final_norm.weight.neg_()


def test_windows_are_the_same_in_both_forms_and_repeat():
    windows = Windows(np.arange(1000), seed=4)
    inputs, targets = windows.inputs_and_targets(3)
    batch = windows.batch(0, 3)
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(batch.input_ids, inputs.flatten()) and torch.equal(batch.next_tokens, targets.flatten())
    assert batch.cu_seqlens.diff().tolist() == [character_run.CONTEXT] * character_run.BATCH_SIZE
    assert torch.equal(windows.batch(0, 3).input_ids, batch.input_ids)
    assert not torch.equal(windows.batch(0, 4).input_ids, batch.input_ids)


def test_the_recipes_model_is_ours(tmp_path: Path, monkeypatch):
    text = tmp_path / "text"
    text.write_text("abcdefghij" * 200)
    assert_same_model(text)
    theirs = character_run.their_model(10)
    theirs.blocks[0].num_heads = 2
    monkeypatch.setattr(character_run, "their_model", lambda vocab_size: theirs)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_model(text)


def test_a_record_leaves_the_measuring_out_and_ends_that_differ_are_told(tmp_path: Path):
    losses = {character_run.OURS: (3.0, 1.9), character_run.PEER: (3.1, 2.1)}
    files = {name: tmp_path / f"{len(name)}.csv" for name in losses}
    for name, (first, second) in losses.items():
        values = iter((first, second, 0.0))
        record = Record(files[name], 10, lambda values=values: next(values))

        def train(pause, record=record) -> None:
            for _ in range(3):
                record.note()
                pause()

        launch = record.timed(train)
        assert launch() >= 0 and launch() >= 0
    assert "20 steps: fastssl ends at a held-out loss of 1.900" in finish(files, whole=False)
    with pytest.raises(AssertionError, match=r"0\.200 apart"):
        finish(files, whole=True)
