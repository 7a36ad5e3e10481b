"""Pretraining GPT as a whole: from text as it is to a model, resumed, gone on with, measured, refused."""

import itertools
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastssl import GPTForCausalLM, Tokenizer
from fastssl.data.causal import CausalObjectiveConfig
from fastssl.data.corpus import EXACT
from fastssl.data.encode import encode_files
from fastssl.data.lossless import byte_characters, byte_pair_tokenizer
from fastssl.tasks.gpt_pretraining import count_bytes
from fastssl.tasks.gpt_pretraining_config import (
    CausalCorpusConfig,
    CausalVocabularyConfig,
    GptModelConfig,
    GptPretrainingConfig,
    GptTrainingConfig,
)
from fastssl.tasks.pretraining import prepare_pretraining
from fastssl.tasks.pretraining_config import BatchConfig, VocabularyConfig
from tests.tasks.test_pretraining import make_config as bert_config
from tests.tasks.test_pretraining import write_text

SMALL = GptModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt", num_documents=60)


def make_config(text: Path, output_dir: Path, **changes) -> GptPretrainingConfig:
    training = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "num_threads": 1} | changes.pop("training", {})
    config = GptPretrainingConfig(
        corpus=CausalCorpusConfig(train_files=(text,), eval_fraction=0.1),
        vocabulary=CausalVocabularyConfig(vocab_size=300),
        model=SMALL,
        objective=CausalObjectiveConfig(max_seq_length=32),
        batches=BatchConfig(per_device_train_batch_size=4),
        training=GptTrainingConfig(output_dir=str(output_dir), **training),
    )
    return replace(config, **changes)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return GPTForCausalLM.from_pretrained(directory).state_dict()


def test_leaves_a_hugging_face_directory(text: Path, tmp_path: Path):
    result = prepare_pretraining(make_config(text, tmp_path / "run")).run()
    assert (result.step, result.stopped_by) == (4, "max_steps")
    ours = GPTForCausalLM.from_pretrained(tmp_path / "run").eval()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    tokenizer, published = Tokenizer.load(tmp_path / "run"), AutoTokenizer.from_pretrained(tmp_path / "run")
    ids = published(text.read_text()[:100])["input_ids"]
    assert ids == [tokenizer.bounds.bos, *tokenizer.encode(text.read_text()[:100])]
    assert ours.config.end_tokens == (tokenizer.bounds.eos,) == (published.eos_token_id,)
    assert ours.config.max_position_embeddings == 32
    with torch.no_grad():
        inputs = torch.tensor([ids[:30]])
        torch.testing.assert_close(ours(input_ids=inputs).logits, theirs(inputs).logits, rtol=1e-4, atol=1e-4)


def test_bits_per_byte_are_those_of_the_text(text: Path, tmp_path: Path):
    """The held-out loss once more, by transformers, over the text that was held out."""
    run = prepare_pretraining(make_config(text, tmp_path / "run"))
    found = run.run().evaluation
    content, tokenizer = text.read_bytes(), run.tokenizer
    tokens = [int(t) for part in run.held_out.parts for t in part.tokens]
    held_out = tokenizer.decode(tokens)
    assert content.endswith(held_out.encode())
    assert len(tokens) == pytest.approx(0.1 * (len(tokens) + run.train_data.document_bounds[-1]), abs=1)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    sequence, nats = torch.tensor([tokenizer.bounds.bos, *tokens, tokenizer.bounds.eos]), 0.0
    for begin in range(0, len(sequence) - 1, 32):
        piece = sequence[begin : begin + 33]
        with torch.no_grad():
            nats += float(F.cross_entropy(theirs(piece[None, :-1]).logits[0], piece[1:], reduction="sum"))
    assert found["eval_loss"] == pytest.approx(nats / (len(sequence) - 1), rel=1e-4)
    assert found["eval_causal_lm_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
    assert found["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / len(held_out.encode()), rel=1e-4)


def test_an_unknown_character_is_a_byte(tmp_path: Path):
    """And not the five of "<unk>", which would make the figure better the less a tokenizer knows."""
    text = tmp_path / "text.txt"
    text.write_text("aaaaaaabc" * 40)
    vocabulary = CausalVocabularyConfig(tokenizer_type="characters", vocab_size=3)
    run = prepare_pretraining(make_config(text, tmp_path / "run", vocabulary=vocabulary))
    assert count_bytes(run.held_out, run.tokenizer) == run.held_out.num_tokens == 36


def test_a_space_put_in_front_is_no_byte_of_the_text(tmp_path: Path):
    backend = byte_pair_tokenizer({c: i for i, c in enumerate(byte_characters())}, [], add_prefix_space=True)
    texts = ["hi", "é", "two words"] * 20
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shards = encode_files([tmp_path / "texts.jsonl"], Tokenizer(backend), tmp_path / "s", form=EXACT, progress=False)
    assert shards.num_tokens == sum(len(f" {text}".encode()) for text in texts)
    assert count_bytes(shards, Tokenizer(backend)) == sum(len(text.encode()) for text in texts)
    assert count_bytes(shards, Tokenizer.of_bytes()) == shards.num_tokens


def test_many_documents_are_held_out_whole(text: Path, tmp_path: Path):
    corpus = CausalCorpusConfig(train_files=(text,), eval_fraction=0.1, document_separator="")
    run = prepare_pretraining(make_config(text, tmp_path / "run", corpus=corpus))
    assert run.train_data.num_documents + run.eval_data.num_documents == 60
    documents = {document + "\n" for document in text.read_text().removesuffix("\n").split("\n\n")}
    part = run.held_out.parts[0]
    held_out = [run.tokenizer.decode(part.tokens[a:b]) for a, b in itertools.pairwise(part.sentence_offsets)]
    assert set(held_out) <= documents


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_resumed_run_ends_in_the_same_weights(text: Path, tmp_path: Path, kind: str):
    vocabulary = CausalVocabularyConfig(tokenizer_type=kind)
    constant = {"lr_scheduler_type": "constant"}
    for name, steps, resume in (("whole", 5, None), ("parts", 3, None), ("parts", 5, "last")):
        training = constant | {"max_steps": steps, "resume_from_checkpoint": resume}
        prepare_pretraining(make_config(text, tmp_path / name, vocabulary=vocabulary, training=training)).run()
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "parts")[name]), name


def test_a_resumed_run_keeps_its_tokenizer(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "run")).run()
    kept = tmp_path / "run" / "data" / "train"
    Tokenizer.of_bytes().save(tmp_path / "bytes")
    again = partial(make_config, text, tmp_path / "run", training={"resume_from_checkpoint": "last"})
    prepare_pretraining(again(vocabulary=CausalVocabularyConfig(tokenizer=kept)))
    with pytest.raises(ValueError, match=r"tokenizer=.*bytes is another than the run began with; leave it out"):
        prepare_pretraining(again(vocabulary=CausalVocabularyConfig(tokenizer=tmp_path / "bytes")))


def test_goes_on_from_a_directory(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "first")).run()
    config = make_config(
        text,
        tmp_path / "second",
        model=GptModelConfig(model=tmp_path / "first", dropout=0.0),
        vocabulary=CausalVocabularyConfig(),
    )
    run = prepare_pretraining(config)
    assert run.tokenizer.fingerprint == Tokenizer.load(tmp_path / "first").fingerprint
    assert run.model.config.hidden_dropout_prob == 0.0
    for name, tensor in weights(tmp_path / "first").items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name
    run.run()
    assert any(not torch.equal(t, weights(tmp_path / "first")[n]) for n, t in weights(tmp_path / "second").items())


def test_a_model_that_goes_on_ends_its_texts_as_they_ended(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "first")).run()
    path = tmp_path / "first" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token_id": None, "eos_token_id": 7}))
    run = prepare_pretraining(
        make_config(
            text,
            tmp_path / "second",
            model=GptModelConfig(model=tmp_path / "first"),
            vocabulary=CausalVocabularyConfig(),
        )
    )
    run.run()
    bounds, config = run.tokenizer.bounds, GPTForCausalLM.from_pretrained(tmp_path / "second").config
    assert (config.bos_token_id, config.end_tokens) == (bounds.bos, (7, bounds.eos))


def test_learns_the_text(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven.\n" * 300)
    config = make_config(
        text,
        tmp_path / "run",
        model=replace(SMALL, dropout=0.0),
        vocabulary=CausalVocabularyConfig(tokenizer_type="characters"),
        training={"max_steps": 120, "learning_rate": 1e-2, "save_steps": 500},
        batches=BatchConfig(tokens_per_batch=256),
    )
    found = prepare_pretraining(config).run().evaluation
    assert found["eval_bits_per_byte"] < 0.6


def test_the_recipe_is_gpts():
    training = GptTrainingConfig(output_dir="x", max_steps=10)
    assert (training.adam_beta1, training.adam_beta2, training.weight_decay) == (0.9, 0.95, 0.1)
    assert (training.max_grad_norm, training.scheduler) == (1.0, "cosine")
    assert GptTrainingConfig(output_dir="x", time_budget_minutes=1.0).scheduler == "time_budget"
    assert GptTrainingConfig(output_dir="x", max_steps=10, lr_scheduler_type="linear").scheduler == "linear"


def test_sizes_replace_the_presets(text: Path, tmp_path: Path):
    modern = replace(
        SMALL,
        position_embedding="rotary",
        norm="rms_norm",
        mlp="gated",
        hidden_act="silu",
        bias=False,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    run = prepare_pretraining(make_config(text, tmp_path / "run", model=modern))
    config = run.model.config
    assert (config.hidden_size, config.key_value_heads, config.bias, config.mlp) == (32, 1, False, "gated")
    assert config.max_position_embeddings == 64
    run.run()
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "run")).__name__ == "LlamaForCausalLM"


def test_encoded_shards_must_hold_the_text_as_it_is(text: Path, tmp_path: Path):
    config = make_config(text, tmp_path / "run")
    prepare_pretraining(config)
    shards = tmp_path / "run" / "data" / "train"
    corpus = replace(config.corpus, train_files=(shards,))
    again = prepare_pretraining(
        make_config(text, tmp_path / "again", corpus=corpus, vocabulary=CausalVocabularyConfig())
    )
    assert again.identity["corpus"] == prepare_pretraining(config).identity["corpus"]
    encode_files([text], Tokenizer.load(shards), tmp_path / "sentences", progress=False)
    corpus = replace(config.corpus, train_files=(tmp_path / "sentences",))
    with pytest.raises(ValueError, match=r"hold text in sentences.*expected text as it is.*--text-form exact"):
        prepare_pretraining(make_config(text, tmp_path / "other", corpus=corpus, vocabulary=CausalVocabularyConfig()))


def test_tokenizers_of_the_other_kind_are_refused(text: Path, tmp_path: Path, test_data: Path):
    tokenizers = test_data / "tokenizers"
    vocabulary = CausalVocabularyConfig(tokenizer=tokenizers / "bert-base-uncased")
    with pytest.raises(ValueError, match=r"has no bos token.*causal language models"):
        prepare_pretraining(make_config(text, tmp_path / "a", vocabulary=vocabulary))
    bert = bert_config(text, tmp_path / "b")
    with pytest.raises(ValueError, match=r"has no pad token.*masked language models"):
        prepare_pretraining(replace(bert, vocabulary=VocabularyConfig(tokenizer=tokenizers / "gpt2")))


def test_models_of_the_other_kind_are_refused(text: Path, tmp_path: Path):
    prepare_pretraining(bert_config(text, tmp_path / "bert", training={"max_steps": 1})).run()
    with pytest.raises(ValueError, match="'bert', expected one of gpt2"):
        prepare_pretraining(make_config(text, tmp_path / "a", model=GptModelConfig(model=tmp_path / "bert")))
    with pytest.raises(ValueError, match="'bert-tiny' is a BERT, and this needs a GPT"):
        prepare_pretraining(make_config(text, tmp_path / "b", model=GptModelConfig(preset="bert-tiny")))


def test_sequences_longer_than_the_model_are_refused(text: Path, tmp_path: Path):
    model = replace(SMALL, max_position_embeddings=16)
    with pytest.raises(ValueError, match="max_seq_length=32 is above the 16 positions"):
        prepare_pretraining(make_config(text, tmp_path / "run", model=model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size must be a multiple of num_attention_heads=4"),
        ({"hidden_act": "swish"}, "hidden_act must be one of gelu, .* got 'swish'"),
        ({"dropout": 1.5}, "embedding_dropout_prob must be at least 0 and below 1, got 1.5"),
        ({"preset": "gpt3"}, "there is no preset 'gpt3'"),
        (
            {"model": Path("x"), "hidden_size": 32},
            "model=x is a model, which stays as large and as it was made: leave out hidden_size",
        ),
        ({"model": Path("x"), "preset": "gpt2"}, "model=x is a model, .*: leave out preset$"),
        ({"model": Path("x"), "norm": "rms_norm", "dropout": 0.0}, "model=x is a model, .*: leave out norm"),
    ],
)
def test_wrong_sizes_are_told_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        GptModelConfig(**options)


def test_one_byte_more_than_nothing_can_be_learnt(tmp_path: Path):
    text = tmp_path / "a.txt"
    text.write_text("ab")
    vocabulary = CausalVocabularyConfig(tokenizer_type="bytes")
    run = prepare_pretraining(make_config(text, tmp_path / "run", vocabulary=vocabulary))
    assert [int(run.train_data.batch(0, 0).input_ids[i]) for i in (0, 1)] == [256, ord("a")]
    assert np.isfinite(run.run().evaluation["eval_bits_per_byte"])
    with pytest.raises(ValueError, match="takes the 256 bytes as tokens: leave out vocab_size"):
        CausalVocabularyConfig(tokenizer_type="bytes", vocab_size=99)
