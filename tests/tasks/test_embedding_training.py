"""Training sentence embeddings: from pairs and from sentences to a directory that serves, resumed and refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from fastssl import SentenceEmbedder
from fastssl.tasks.embedding.contrastive_config import ContrastiveConfig
from fastssl.tasks.embedding.scores import pair_scores, similarities
from fastssl.tasks.finetuning import prepare_finetuning
from fastssl.tasks.finetuning_config import ExamplesConfig, FinetuningConfig
from fastssl.tasks.labelled_texts import ColumnConfig, read_labelled_texts
from fastssl.training import RunDirectoryError
from tests.tasks.test_finetuning import BAD, GOOD, NEUTRAL, make_config, metrics_only, pretrained  # noqa: F401

KINDS = (GOOD, BAD)


def write_pairs(path: Path, count: int, seed: int, *, scored: bool) -> Path:
    """Write pairs of sentences that share the kind of their telling word; scored, half of them do not."""
    random = np.random.default_rng(seed)

    def sentence(kind: int) -> str:
        return " ".join(random.permutation([*random.choice(NEUTRAL, 3), random.choice(KINDS[kind])]))

    lines = ["sentence1\tsentence2" + "\tscore" * scored]
    for _ in range(count):
        kind, other = random.integers(0, 2, 2)
        if scored:
            lines.append(f"{sentence(kind)}\t{sentence(other)}\t{5.0 if kind == other else 1.0}")
        else:
            lines.append(f"{sentence(kind)}\t{sentence(kind)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> ExamplesConfig:
    train = write_pairs(tmp_path / "train.tsv", 400, 0, scored=False)
    return ExamplesConfig(train_file=train, eval_file=write_pairs(tmp_path / "dev.tsv", 200, 1, scored=True))


def embedding_config(model: Path, files: ExamplesConfig, output_dir: Path, **changes) -> FinetuningConfig:
    contrastive = ContrastiveConfig(**changes.pop("contrastive", {}))
    config = make_config(model, files, output_dir, **changes)
    return replace(config, task="embedding", contrastive=contrastive)


def test_pairs_teach_what_belongs_together(pretrained, files, tmp_path):  # noqa: F811
    said = []
    config = embedding_config(pretrained, files, tmp_path / "run", max_seq_length=16)
    run = prepare_finetuning(config, say=said.append)
    assert said[0] == "400 pairs of texts; one vector of 32 numbers by mean pooling"
    held_out = read_labelled_texts(files.eval_file, ColumnConfig())
    before = SentenceEmbedder.load(pretrained).evaluate(held_out)
    result = run.run()
    assert result.best_checkpoint is not None and result.evaluation["eval_spearman"] > before["spearman"] + 0.3
    embedder = SentenceEmbedder.load(tmp_path / "run")
    assert embedder.config.max_length == 16 and embedder.tokenizer.fingerprint == run.parts.tokenizer.fingerprint
    best = load_file(result.best_checkpoint / "model.safetensors")
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert all((best[name] == kept[name]).all() for name in best)
    after = embedder.evaluate(held_out)
    assert after == pytest.approx(SentenceEmbedder.load(result.best_checkpoint).evaluate(held_out))
    assert after["spearman"] > 0.8


def test_the_result_is_sentence_transformers(pretrained, files, tmp_path):  # noqa: F811
    from sentence_transformers import SentenceTransformer

    options = {"pooling": ("mean", "cls"), "normalize_embeddings": True}
    config = embedding_config(
        pretrained, files, tmp_path / "run", contrastive=options, training={"max_steps": 5}, max_seq_length=12
    )
    prepare_finetuning(config).run()
    texts = [" ".join(NEUTRAL), "good", ""]
    theirs = SentenceTransformer(str(tmp_path / "run"), device="cpu")
    assert theirs.max_seq_length == 12
    ours = SentenceEmbedder.load(tmp_path / "run")(texts)
    assert ours.shape == (3, 64)
    np.testing.assert_allclose(ours, theirs.encode(texts, show_progress_bar=False), atol=1e-5)


def test_texts_that_spell_special_tokens_are_read_as_they_are_in_use(pretrained, files, tmp_path):  # noqa: F811
    random = np.random.default_rng(0)
    for file in (files.train_file, files.eval_file):
        header, *lines = file.read_text(encoding="utf-8").splitlines()
        lines = [f"{random.choice(['[MASK]', '[SEP] the', 'film'])} {line}" for line in lines]
        file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    config = embedding_config(pretrained, files, tmp_path / "run", training={"max_steps": 2}, max_seq_length=12)
    run = prepare_finetuning(config)
    measured, embedder = run.run().evaluation, SentenceEmbedder.load(tmp_path / "run")
    found = embedder.evaluate(read_labelled_texts(files.eval_file, ColumnConfig()))
    assert {f"eval_{name}": value for name, value in found.items()} == pytest.approx(measured, abs=1e-5)
    assert (run.parts.train_data.examples.tokens == embedder.tokenizer.special.mask).any()


def test_a_truncated_vector_is_what_is_trained_measured_and_saved(pretrained, files, tmp_path):  # noqa: F811
    options = {"training": {"max_steps": 2}, "max_seq_length": 12}
    prepare_finetuning(embedding_config(pretrained, files, tmp_path / "one", **options)).run()
    path = tmp_path / "one" / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncate_dim": 6}))
    said = []
    run = prepare_finetuning(embedding_config(tmp_path / "one", files, tmp_path / "two", **options), say=said.append)
    assert said[0].endswith("one vector of 6 numbers by mean pooling")
    measured, embedder = run.run().evaluation, SentenceEmbedder.load(tmp_path / "two")
    assert embedder.width == 6
    found = embedder.evaluate(read_labelled_texts(files.eval_file, ColumnConfig()))
    assert {f"eval_{name}": value for name, value in found.items()} == pytest.approx(measured, abs=1e-5)


def test_training_goes_on_from_such_a_directory_with_its_pooling(pretrained, files, tmp_path):  # noqa: F811
    options = {"training": {"max_steps": 2}, "max_seq_length": 12}
    first = embedding_config(pretrained, files, tmp_path / "one", contrastive={"pooling": ("cls",)}, **options)
    prepare_finetuning(first).run()
    parts = prepare_finetuning(embedding_config(tmp_path / "one", files, tmp_path / "two")).parts
    assert parts.model.embedding.pooling == ("cls",) and parts.max_seq_length == 12
    scratch = embedding_config(tmp_path / "one", files, tmp_path / "three", start={"from_scratch": True})
    assert prepare_finetuning(scratch).parts.model.embedding.pooling == ("cls",)


def test_labels_of_pairs_are_not_read_and_that_is_said(pretrained, files, tmp_path):  # noqa: F811
    said = []
    config = embedding_config(pretrained, files, tmp_path / "run", train_file=files.eval_file)
    prepare_finetuning(config, say=said.append)
    assert said[1].endswith(
        "dev.tsv has labels, which are not read: each of its pairs counts as one that belongs together"
    )


def test_one_pair_is_told_apart_from_nothing(pretrained, files, tmp_path):  # noqa: F811
    one = write_pairs(tmp_path / "one.tsv", 1, 0, scored=False)
    with pytest.raises(ValueError, match=r"one.tsv has one example, which nothing tells apart"):
        prepare_finetuning(embedding_config(pretrained, files, tmp_path / "run", train_file=one))


def test_sentences_alone_are_learnt_from_by_dropout(pretrained, files, tmp_path):  # noqa: F811
    sentences = tmp_path / "lines.txt"
    pairs = read_labelled_texts(files.train_file, ColumnConfig(), needs_labels=False)
    sentences.write_text("\n".join(pairs.texts) + "\n", encoding="utf-8")
    said = []
    config = embedding_config(
        pretrained, files, tmp_path / "run", train_file=sentences, start={"dropout": 0.1}, training={"max_steps": 20}
    )
    run = prepare_finetuning(config, say=said.append)
    assert said[0].startswith("400 sentences, each its own partner under another dropout (SimCSE)")
    batch = run.parts.train_data.batch(0, 0)
    first, second = batch.input_ids.split([batch.num_tokens // 2] * 2)
    assert batch.num_pairs == 8 and (first == second).all()
    assert run.run().step == 20
    dry = embedding_config(pretrained, files, tmp_path / "dry", train_file=sentences)
    with pytest.raises(ValueError, match=r"differ by dropout alone, and the model has none; give --dropout 0.1"):
        prepare_finetuning(dry)


def test_pairs_without_scores_are_measured_by_what_is_nearest(pretrained, tmp_path):  # noqa: F811
    train = write_pairs(tmp_path / "train.tsv", 40, 0, scored=False)
    files = ExamplesConfig(train_file=train, eval_file=train)
    run = prepare_finetuning(embedding_config(pretrained, files, tmp_path / "run", training={"max_steps": 5}))
    assert run.parts.main_metric == "recall_at_1"
    found = run.run().evaluation
    held_out = read_labelled_texts(train, ColumnConfig(), needs_labels=False)
    again = SentenceEmbedder.load(tmp_path / "run").evaluate(held_out)
    assert found == pytest.approx({f"eval_{name}": value for name, value in again.items()})


def test_resumed_it_ends_in_the_same_weights(pretrained, files, tmp_path):  # noqa: F811
    training = {"max_steps": 12, "save_steps": 6, "save_total_limit": None, "eval_steps": 6}
    options = {"start": {"dropout": 0.1}, "training": training}
    prepare_finetuning(embedding_config(pretrained, files, tmp_path / "whole", **options)).run()
    parts = embedding_config(pretrained, files, tmp_path / "parts", **options)
    prepare_finetuning(parts).run()
    (tmp_path / "parts" / "checkpoint-12").rename(tmp_path / "aside")
    again = replace(parts, training=replace(parts.training, resume_from_checkpoint="last"))
    warmer = replace(again, contrastive=ContrastiveConfig(temperature=0.2))
    with pytest.raises(RunDirectoryError, match="temperature"):
        prepare_finetuning(warmer).run()
    prepare_finetuning(again).run()
    one, other = (load_file(tmp_path / name / "checkpoint-12" / "model.safetensors") for name in ("whole", "parts"))
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": {"per_device_train_batch_size": 1}}, "at least 2 for the task 'embedding'"),
        ({"tuning": {"class_weights": "balanced"}}, "class_weights='balanced' is for classification"),
        ({"start": {"problem_type": "regression"}}, "problem_type='regression' is for classification"),
        (
            {"training": {"metric_for_best_model": "accuracy"}},
            "'accuracy' is not measured here; expected one of spea",
        ),
        ({"max_seq_length": 400}, "between 4 and the model's 40 positions, got 400"),
        ({"max_seq_length": 0}, "between 4 and the model's 40 positions, got 0"),
        ({"contrastive": {"negative_column": "wrong"}}, "no column 'wrong'"),
        ({"columns": ColumnConfig(label_column="score")}, None),
        ({"columns": ColumnConfig(label_column="rating")}, r"dev.tsv has no column 'rating' \(label_column\)"),
    ],
)
def test_settings_that_do_not_fit_are_told(pretrained, files, tmp_path, changes, message):  # noqa: F811
    config = embedding_config(pretrained, files, tmp_path / "run", **changes)
    if message is None:
        assert prepare_finetuning(config).parts.main_metric == "spearman"
        return
    with pytest.raises(ValueError, match=message):
        prepare_finetuning(config)


def test_scores_of_pairs():
    first = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=np.float32)
    second = np.array([[3.0, 0.1], [1.0, 0.0], [-1.0, 1.0]], dtype=np.float32)
    # Cosines: almost 1, 0, 0.
    found = pair_scores(first, second, np.array([4.0, 1.0, 1.0]))
    assert found["spearman"] == pytest.approx(1.0) and found["pearson"] > 0.99
    assert pair_scores(first, second, np.ones(3)) == {"spearman": 0.0, "pearson": 0.0}
    # The first's partner is second to (1, 0); that of (0, 2) is the second best; that of (1, 1) the worst.
    assert pair_scores(first, second, None) == {"recall_at_1": 0.0, "recall_at_10": 1.0}
    assert pair_scores(first, first, None)["recall_at_1"] == 1.0


def test_scores_must_be_numbers_of_pairs(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("sentence1\tsentence2\tlabel\na\tb\t0.5\nc\td\tentailment\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 3: expected a number that says how alike .*, got 'entailment'"):
        similarities(read_labelled_texts(path, ColumnConfig()))
    path.write_text("sentence\tlabel\na\t1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has single texts; expected pairs"):
        similarities(read_labelled_texts(path, ColumnConfig()))
