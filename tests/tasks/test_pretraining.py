"""Pretraining as a whole: from text files to a model, resumed, extended, refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from fastssl import BertForMaskedLM, BertForPreTraining, Tokenizer
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.shard_format import ShardError
from fastssl.tasks.pretraining import prepare_pretraining
from fastssl.tasks.pretraining_config import (
    BatchConfig,
    CorpusConfig,
    ModelConfig,
    PretrainingConfig,
    VocabularyConfig,
)
from fastssl.training import RunDirectoryError, TrainingConfig
from fastssl.training.run_directory import claim_directory

WORDS = "the a cat dog bird tree house river sees finds likes under over near small large old new".split()


def write_text(path: Path, num_documents: int = 24, seed: int = 0) -> Path:
    """Write documents of five sentences of eight words."""
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(WORDS, 8)).capitalize() + "." for _ in range(5 * num_documents)]
    documents = [" ".join(sentences[5 * d : 5 * d + 5]) for d in range(num_documents)]
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt")


def make_config(text: Path, output_dir: Path, **changes) -> PretrainingConfig:
    training = {"max_steps": 4, "save_steps": 2, "logging_steps": 1} | changes.pop("training", {})
    config = PretrainingConfig(
        corpus=CorpusConfig(train_files=(text,), eval_fraction=0.2),
        vocabulary=VocabularyConfig(vocab_size=120),
        model=ModelConfig(preset="bert-tiny", max_position_embeddings=64),
        objective=ObjectiveConfig(max_seq_length=32),
        batches=BatchConfig(per_device_train_batch_size=4),
        training=TrainingConfig(output_dir=str(output_dir), **training),
    )
    return replace(config, **changes)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return BertForMaskedLM.from_pretrained(directory).state_dict()


def test_leaves_a_hugging_face_directory(text: Path, tmp_path: Path):
    config = make_config(text, tmp_path / "run", objective=ObjectiveConfig(sentence_objective="sop", max_seq_length=32))
    result = prepare_pretraining(config).run()
    assert (result.step, result.stopped_by) == (4, "max_steps")
    assert {"eval_masked_lm_accuracy", "eval_masked_lm_perplexity", "eval_sentence_accuracy"} <= set(result.evaluation)
    ours = BertForPreTraining.from_pretrained(tmp_path / "run").eval()
    theirs = AutoModelForPreTraining.from_pretrained(tmp_path / "run").eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "run")(["the cat [MASK]."], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).prediction_logits, rtol=1e-4, atol=1e-4)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


def test_resumed_run_ends_in_the_same_weights(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "whole")).run()
    prepare_pretraining(
        make_config(text, tmp_path / "parts", training={"max_steps": 2, "lr_scheduler_type": "constant"})
    ).run()
    longer = {"max_steps": 4, "lr_scheduler_type": "constant", "resume_from_checkpoint": "last"}
    prepare_pretraining(make_config(text, tmp_path / "parts", training=longer)).run()
    prepare_pretraining(make_config(text, tmp_path / "constant", training={"lr_scheduler_type": "constant"})).run()
    for name, tensor in weights(tmp_path / "constant").items():
        assert torch.equal(tensor, weights(tmp_path / "parts")[name]), name
    assert any(not torch.equal(t, weights(tmp_path / "whole")[n]) for n, t in weights(tmp_path / "constant").items())


def test_goes_on_from_a_published_model_with_new_words(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "first")).run()
    new_text = tmp_path / "new.txt"
    new_text.write_text("\n\n".join(["zebra quagga okapi " * 8 + "."] * 12), encoding="utf-8")
    config = make_config(
        new_text,
        tmp_path / "second",
        model=ModelConfig(model=tmp_path / "first", dropout=0.0),
        vocabulary=VocabularyConfig(new_tokens=8),
    )
    run = prepare_pretraining(config)
    first, extended = Tokenizer.load(tmp_path / "first"), run.tokenizer
    assert first.vocab_size < extended.vocab_size <= first.vocab_size + 8
    assert run.model.config.vocab_size == extended.vocab_size
    assert run.model.config.hidden_dropout_prob == 0.0
    assert extended.token_to_id("the") == first.token_to_id("the")
    run.run()
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "second").config.vocab_size == extended.vocab_size


def test_takes_encoded_shards_as_they_are(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "run"))
    shards = tmp_path / "run" / "data" / "train"
    config = make_config(
        text,
        tmp_path / "again",
        corpus=CorpusConfig(train_files=(shards,), eval_fraction=0.2),
        vocabulary=VocabularyConfig(),
    )
    run = prepare_pretraining(config)
    assert run.identity["corpus"] == prepare_pretraining(make_config(text, tmp_path / "run")).identity["corpus"]
    assert not (tmp_path / "again" / "data").exists()


def test_eval_files_are_measured_on(text: Path, tmp_path: Path):
    other = write_text(tmp_path / "other.txt", num_documents=6, seed=1)
    config = make_config(text, tmp_path / "run", corpus=CorpusConfig(train_files=(text,), eval_files=(other,)))
    run = prepare_pretraining(config)
    assert run.train_data.lengths.num_documents == 24
    assert run.eval_data.lengths.num_documents == 6


def test_one_document_is_not_measured_on_and_it_says_so(tmp_path: Path):
    text = write_text(tmp_path / "one.txt", num_documents=1)
    said = []
    assert prepare_pretraining(make_config(text, tmp_path / "run"), say=said.append).eval_data is None
    assert any("one document" in remark for remark in said)


def test_another_run_in_the_directory_is_refused(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "run")).run()
    with pytest.raises(RunDirectoryError, match="resume-from-checkpoint last"):
        prepare_pretraining(make_config(text, tmp_path / "run"))
    changed = make_config(text, tmp_path / "run", training={"learning_rate": 1e-4, "resume_from_checkpoint": "last"})
    with pytest.raises(RunDirectoryError, match="learning_rate"):
        prepare_pretraining(changed).run()


def test_a_refused_command_leaves_the_run_as_it_was(text: Path, tmp_path: Path):
    more = write_text(tmp_path / "more.txt", num_documents=3, seed=4)
    corpus = CorpusConfig(train_files=(text,), eval_fraction=0.2)
    prepare_pretraining(make_config(text, tmp_path / "run", corpus=corpus)).run()
    index = (tmp_path / "run" / "data" / "train" / "index.json").read_bytes()
    again = {"max_steps": 6, "resume_from_checkpoint": "last"}
    both = CorpusConfig(train_files=(text, more), eval_fraction=0.2)
    with pytest.raises(RunDirectoryError, match=r"holds the text of the run, from .*text.txt; got .*more.txt"):
        prepare_pretraining(make_config(text, tmp_path / "run", corpus=both, training=again))
    order = CorpusConfig(train_files=(more, text), eval_fraction=0.2)
    with pytest.raises(RunDirectoryError, match=r"holds the text of the run, from .*text.txt; got .*more.txt"):
        prepare_pretraining(make_config(text, tmp_path / "run", corpus=order, training=again))
    measured = CorpusConfig(train_files=(text,), eval_files=(more,))
    with pytest.raises(RunDirectoryError, match="holds the text of a run without eval_files"):
        prepare_pretraining(make_config(text, tmp_path / "run", corpus=measured, training=again))
    assert not (tmp_path / "run" / "data" / "eval").exists()
    content = text.read_text()
    text.write_text(content + "\nThe cat sees.\n")
    with pytest.raises(RunDirectoryError, match=r"text.txt was changed since: a run goes on with the text"):
        prepare_pretraining(make_config(text, tmp_path / "run", corpus=corpus, training=again))
    text.write_text(content)
    assert (tmp_path / "run" / "data" / "train" / "index.json").read_bytes() == index
    assert prepare_pretraining(make_config(text, tmp_path / "run", corpus=corpus, training=again)).run().step == 6


def test_nothing_is_written_beside_a_run_that_is_under_way(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "run"))
    tokenizer = (tmp_path / "run" / "data" / "train" / "tokenizer.json").read_bytes()
    lock = claim_directory(tmp_path / "run", print)
    try:
        with pytest.raises(RunDirectoryError, match="another process is training in it"):
            prepare_pretraining(make_config(text, tmp_path / "run", vocabulary=VocabularyConfig(vocab_size=60)))
    finally:
        lock.release()
    assert (tmp_path / "run" / "data" / "train" / "tokenizer.json").read_bytes() == tokenizer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": VocabularyConfig(vocab_size=90)}, "data.vocabulary.vocab_size is 120 there and 90 here"),
        (
            {"vocabulary": VocabularyConfig(vocab_size=120, cased=True)},
            "data.vocabulary.cased is False there and True here",
        ),
    ],
)
def test_another_vocabulary_is_another_run(text: Path, tmp_path: Path, changes: dict, message: str):
    prepare_pretraining(make_config(text, tmp_path / "run")).run()
    again = {"max_steps": 6, "resume_from_checkpoint": "last"}
    with pytest.raises(RunDirectoryError, match=message):
        prepare_pretraining(make_config(text, tmp_path / "run", training=again, **changes)).run()


def test_other_text_to_measure_on_is_another_run(text: Path, tmp_path: Path):
    other = write_text(tmp_path / "other.txt", num_documents=6, seed=1)
    corpus = CorpusConfig(train_files=(text,), eval_files=(other,))
    prepare_pretraining(make_config(text, tmp_path / "run", corpus=corpus)).run()
    write_text(other, num_documents=6, seed=2)
    again = {"max_steps": 6, "resume_from_checkpoint": "last"}
    with pytest.raises(RunDirectoryError, match=r"other.txt was changed since"):
        prepare_pretraining(make_config(text, tmp_path / "run", corpus=corpus, training=again)).run()


def test_other_text_to_measure_on_is_another_run_in_another_directory_too(text: Path, tmp_path: Path):
    other = write_text(tmp_path / "other.txt", num_documents=6, seed=1)
    corpus = CorpusConfig(train_files=(text,), eval_files=(other,))
    prepare_pretraining(make_config(text, tmp_path / "run", corpus=corpus)).run()
    write_text(other, num_documents=6, seed=2)
    again = {"max_steps": 6, "resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-4")}
    with pytest.raises(RunDirectoryError, match=r"data.eval_corpus is '\w+' there and '\w+' here"):
        prepare_pretraining(make_config(text, tmp_path / "again", corpus=corpus, training=again)).run()


def test_a_run_that_told_less_of_itself_may_go_on(text: Path, tmp_path: Path):
    """As those of earlier versions, which had no word for some settings."""
    prepare_pretraining(make_config(text, tmp_path / "run")).run()
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    for name in ("vocabulary", "eval_corpus"):
        del content["identity"]["data"][name]
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    again = {"max_steps": 6, "resume_from_checkpoint": "last"}
    assert prepare_pretraining(make_config(text, tmp_path / "run", training=again)).run().step == 6


@pytest.mark.parametrize(("num_documents", "held_out"), [(3, None), (4, 2), (24, 2)])
def test_next_sentence_prediction_is_measured_on_two_documents_at_least(tmp_path: Path, num_documents, held_out):
    text = write_text(tmp_path / "text.txt", num_documents=num_documents)
    objective, said = ObjectiveConfig(sentence_objective="nsp", max_seq_length=32), []
    corpus = CorpusConfig(train_files=(text,), eval_fraction=0.02)
    run = prepare_pretraining(make_config(text, tmp_path / "run", corpus=corpus, objective=objective), say=said.append)
    if held_out is None:
        assert run.eval_data is None and any("the corpus is 3 documents: nothing is held out" in one for one in said)
    else:
        assert run.eval_data.lengths.num_documents == held_out
        assert run.train_data.lengths.num_documents == num_documents - held_out


def test_evaluations_at_the_end_of_each_epoch(text: Path, tmp_path: Path):
    training = {"max_steps": None, "num_train_epochs": 2, "eval_strategy": "epoch"}
    prepare_pretraining(make_config(text, tmp_path / "run", training=training)).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "eval_loss" in row]) == 2


def test_a_metric_that_is_not_measured_is_told_before_training(text: Path, tmp_path: Path):
    run = prepare_pretraining(make_config(text, tmp_path / "run", training={"metric_for_best_model": "accuracy"}))
    with pytest.raises(
        ValueError, match="'accuracy' is not measured here; expected one of loss, masked_lm_loss, masked"
    ):
        run.run()
    known = make_config(text, tmp_path / "other", training={"metric_for_best_model": "masked_lm_accuracy"})
    assert prepare_pretraining(known).run().best_checkpoint is not None


def test_what_the_tokenizer_does_not_know_is_told(text: Path, tmp_path: Path):
    said, chinese = [], "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
    text.write_text(f"{chinese}\n\n{chinese}\n")
    prepare_pretraining(make_config(text, tmp_path / "run"), say=said.append)
    assert any("% of the tokens are [UNK]" in remark for remark in said)


def test_a_gpu_that_is_not_there_is_told_before_anything_is_written(text: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda:1', but PyTorch .* finds no CUDA GPU here"):
        prepare_pretraining(make_config(text, tmp_path / "run", training={"device": "cuda:1"}))
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_files_and_batches_is_told_before_anything_is_written(text: Path, tmp_path: Path):
    missing = tmp_path / "missing.txt"
    for corpus in (CorpusConfig(train_files=(text, missing)), CorpusConfig(train_files=(text,), eval_files=(missing,))):
        with pytest.raises(FileNotFoundError, match=r"missing.txt"):
            prepare_pretraining(make_config(text, tmp_path / "run", corpus=corpus))
    with pytest.raises(ValueError, match="tokens_per_batch must hold the longest sequence, max_seq_length=32, got 31"):
        prepare_pretraining(make_config(text, tmp_path / "run", batches=BatchConfig(tokens_per_batch=31)))
    with pytest.raises(ValueError, match="per_device_train_batch_size must be at least 1, got 0"):
        BatchConfig(per_device_train_batch_size=0)
    with pytest.raises(ValueError, match="did you mean 'bert-tiny'"):
        ModelConfig(preset="bert-tinny")
    with pytest.raises(ValueError, match="initializer_range"):
        ModelConfig(initializer_range=-1.0)
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_output_directory(text: Path):
    with pytest.raises(RunDirectoryError, match="is a file"):
        prepare_pretraining(make_config(text, text))


def test_a_run_that_never_saved_may_be_replaced(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "run"))
    run = prepare_pretraining(make_config(text, tmp_path / "run", vocabulary=VocabularyConfig(vocab_size=90)))
    assert run.tokenizer.vocab_size <= 90


def test_altered_shards_stop_the_run(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "run"))
    shards = tmp_path / "run" / "data" / "train"
    part = next(shards.glob("part-*.tokens"))
    content = bytearray(part.read_bytes())
    content[200] ^= 1
    part.write_bytes(content)
    with pytest.raises(ShardError, match=part.name):
        prepare_pretraining(
            make_config(text, tmp_path / "b", corpus=CorpusConfig(train_files=(shards,)), vocabulary=VocabularyConfig())
        )


def test_sequences_longer_than_the_model_reads_are_refused(text: Path, tmp_path: Path):
    config = make_config(text, tmp_path / "run", objective=ObjectiveConfig(max_seq_length=128))
    said = []
    with pytest.raises(ValueError, match="max_seq_length=128 is above the 64 positions"):
        prepare_pretraining(config, say=said.append)
    assert not said and not (tmp_path / "run").exists()  # told before a tokenizer is trained


def test_a_tokenizer_larger_than_the_model_is_refused(text: Path, tmp_path: Path):
    small = Tokenizer.train_wordpiece([text.read_text()], vocab_size=80)
    large = Tokenizer.train_wordpiece([text.read_text(), "zebra zebra okapi okapi"], vocab_size=200)
    small.save(tmp_path / "small")
    large.save(tmp_path / "large")
    config = make_config(text, tmp_path / "a", vocabulary=VocabularyConfig(tokenizer=tmp_path / "small"))
    prepare_pretraining(config).run()
    mismatched = make_config(
        text,
        tmp_path / "b",
        model=ModelConfig(model=tmp_path / "a"),
        vocabulary=VocabularyConfig(tokenizer=tmp_path / "large"),
    )
    with pytest.raises(ValueError, match="vocab_size="):
        prepare_pretraining(mismatched)


@pytest.mark.parametrize(
    ("group", "arguments", "message"),
    [
        (CorpusConfig, {"train_files": ()}, "train_files is empty"),
        (CorpusConfig, {"train_files": (Path("a"),), "eval_fraction": 1.0}, "eval_fraction"),
        (BatchConfig, {"per_device_train_batch_size": 2, "tokens_per_batch": 64}, "one of them"),
    ],
)
def test_config_errors_name_the_field(group, arguments, message):
    with pytest.raises(ValueError, match=message):
        group(**arguments)


def test_new_tokens_need_a_model(text: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="give its directory as model"):
        make_config(text, tmp_path, vocabulary=VocabularyConfig(new_tokens=5))


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({"preset": "bert-base"}, "preset"),
        ({"norm_position": "post", "initializer_range": 0.1}, "norm_position, initializer_range"),
        ({"max_position_embeddings": 64, "dropout": 0.0}, "max_position_embeddings"),
    ],
)
def test_what_a_model_that_exists_has_is_not_asked_for(options, unused):
    with pytest.raises(
        ValueError, match=f"model=x is a model, which stays as large and as it was made: leave out {unused}$"
    ):
        ModelConfig(model=Path("x"), **options)


def test_what_a_tokenizer_that_exists_has_is_not_asked_for(text: Path, tmp_path: Path):
    prepare_pretraining(make_config(text, tmp_path / "first"))
    directory = tmp_path / "first" / "data" / "train"
    vocabulary = VocabularyConfig(tokenizer=directory, vocab_size=120, cased=True)
    with pytest.raises(ValueError, match=f"{directory} has a tokenizer, which stays: leave out vocab_size, cased"):
        prepare_pretraining(make_config(text, tmp_path / "second", vocabulary=vocabulary))
