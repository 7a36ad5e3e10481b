"""Fine-tuning as a whole: from labelled files to a model, resumed, frozen, refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fastssl import BertConfig, BertForMaskedLM, BertForSequenceClassification, Classifier, Tokenizer
from fastssl.tasks.finetuning import layerwise_lr_scales, prepare_finetuning
from fastssl.tasks.finetuning_config import (
    ExamplesConfig,
    FinetuningConfig,
    FinetuningTrainingConfig,
    StartConfig,
    TuningConfig,
)
from fastssl.tasks.labelled_texts import ColumnConfig, read_labelled_texts
from fastssl.training import RunDirectoryError, trainer
from fastssl.training.log import read_metrics
from tests.training.stand_in import metrics_only_sinks

GOOD, BAD = "good fine lovely great warm".split(), "bad awful dull poor cold".split()
NEUTRAL = "the film a story and with music this is very".split()


@pytest.fixture(autouse=True)
def metrics_only(monkeypatch):
    monkeypatch.setattr(trainer, "default_sinks", metrics_only_sinks)


def write_examples(path: Path, count: int = 400, *, seed: int = 0, header: str = "sentence\tlabel") -> Path:
    """Write sentences whose one telling word says the label; with two text columns, that of the second."""
    rng = np.random.default_rng(seed)

    def sentence(good: bool) -> str:
        words = [*rng.choice(NEUTRAL, rng.integers(2, 7)), rng.choice(GOOD if good else BAD)]
        return " ".join(rng.permutation(words))

    lines = [header]
    for _ in range(count):
        first, second = rng.integers(0, 2, 2)
        if header.count("\t") == 2:
            lines.append(f"{sentence(first)}\t{sentence(second)}\t{'yes' if second else 'no'}")
        else:
            lines.append(f"{sentence(first)}\t{'positive' if first else 'negative'}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A small body with a masked-LM head, as pretraining leaves it."""
    directory = tmp_path_factory.mktemp("pretrained")
    tokenizer = Tokenizer.train_wordpiece([" ".join(GOOD + BAD + NEUTRAL)] * 3, vocab_size=120)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.1,
    )
    BertForMaskedLM(config).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


@pytest.fixture
def files(tmp_path: Path) -> ExamplesConfig:
    train, held_out = (write_examples(tmp_path / f"{name}.tsv", seed=i) for i, name in enumerate(("train", "dev")))
    return ExamplesConfig(train_file=train, eval_file=held_out)


def make_config(pretrained: Path | str, files: ExamplesConfig, output_dir: Path, **changes) -> FinetuningConfig:
    training = {"num_train_epochs": 2, "learning_rate": 3e-3, "num_threads": 1} | changes.pop("training", {})
    start = {"model": str(pretrained), "dropout": 0.0} | changes.pop("start", {})
    tuning = {"per_device_train_batch_size": 8} | changes.pop("tuning", {})
    return FinetuningConfig(
        examples=replace(files, **changes),
        start=StartConfig(**start),
        tuning=TuningConfig(**tuning),
        training=FinetuningTrainingConfig(output_dir=str(output_dir), **training),
    )


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_learns_and_leaves_a_hugging_face_directory(pretrained, files, tmp_path):
    said = []
    run = prepare_finetuning(make_config(pretrained, files, tmp_path / "run", max_seq_length=16), say=said.append)
    result = run.run()
    assert said[0] == "one of 2 classes (negative, positive), a new head"
    assert result.stopped_by == "max_steps" and result.step == 100
    modes = {path.stat().st_mode for path in (tmp_path / "run").glob("*.*") if path.is_file()}
    assert len(modes) == 1
    assert result.evaluation["eval_accuracy"] > 0.9
    evaluated = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in row]
    assert evaluated == [50, 100]
    assert same(weights(tmp_path / "run"), weights(result.best_checkpoint))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    assert theirs.config.id2label == {0: "negative", 1: "positive"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.model_max_length == 16
    classifier = Classifier.load(tmp_path / "run")
    assert classifier.max_seq_length == 16
    with pytest.warns(UserWarning, match="fine-tuned on single texts and is given pairs of texts"):
        classifier(["this is"], ["very good"])
    for text in ("this is very good", "a dull story"):
        logits = theirs(**tokenizer(text, return_tensors="pt")).logits
        torch.testing.assert_close(classifier.logits([text]), logits.detach(), rtol=1e-4, atol=1e-5)
    assert [p.label for p in classifier(["this is very good", "a dull story"])] == ["positive", "negative"]


def test_resumed_it_ends_in_the_same_weights(pretrained, files, tmp_path):
    training = {"save_steps": 20, "save_total_limit": None}
    whole = prepare_finetuning(make_config(pretrained, files, tmp_path / "whole", training=training)).run()
    parts = make_config(pretrained, files, tmp_path / "parts", training=training)
    prepare_finetuning(parts).run()
    for step in (50, 60, 80, 100):
        (tmp_path / "parts" / f"checkpoint-{step}").rename(tmp_path / f"aside-{step}")
    with pytest.raises(RunDirectoryError, match="--resume-from-checkpoint last"):
        prepare_finetuning(parts)
    again = replace(parts, training=replace(parts.training, resume_from_checkpoint="last"))
    resumed = prepare_finetuning(again).run()
    assert resumed.step == whole.step and resumed.evaluation == whole.evaluation
    assert same(weights(resumed.checkpoint), weights(whole.checkpoint))
    assert resumed.best_checkpoint.name == whole.best_checkpoint.name


def test_without_checkpoints_the_last_weights_are_left(pretrained, files, tmp_path):
    config = make_config(pretrained, files, tmp_path / "run", training={"save_strategy": "no", "num_train_epochs": 1})
    run = prepare_finetuning(config)
    result = run.run()
    assert result.checkpoint is result.best_checkpoint is None and "eval_accuracy" in result.evaluation
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in run.parts.model.state_dict().items())


def test_pairs(pretrained, tmp_path):
    header = "premise\thypothesis\tlabel"
    train, held_out = (write_examples(tmp_path / f"{i}.tsv", count=400, seed=i, header=header) for i in range(2))
    config = make_config(
        pretrained,
        ExamplesConfig(train_file=train, eval_file=held_out),
        tmp_path / "run",
        training={"num_train_epochs": 4},
    )
    run = prepare_finetuning(config)
    batch = run.parts.train_data.batch(0, 0)
    assert run.parts.model.config.trained_on_pairs and run.parts.has_pairs and batch.token_type_ids.max() == 1
    assert run.run().evaluation["eval_accuracy"] > 0.8


def test_regression_and_several_labels(pretrained, tmp_path):
    train = tmp_path / "train.tsv"
    lines = [f"{word} {other}\t{value:.1f}" for word, value in (("good", 4.0), ("bad", 1.0)) for other in NEUTRAL]
    train.write_text("\n".join(["text\tscore", *lines]) + "\n", encoding="utf-8")
    files = ExamplesConfig(train_file=train, eval_file=train)
    result = prepare_finetuning(
        make_config(pretrained, files, tmp_path / "run", training={"num_train_epochs": 8})
    ).run()
    assert result.evaluation["eval_pearson"] > 0.9 and "eval_accuracy" not in result.evaluation
    assert Classifier.load(tmp_path / "run")(["good"])[0].probabilities is None

    several = tmp_path / "several.jsonl"
    rows = [f'{{"text": "{a} {b}", "labels": ["{a}", "{b}"]}}' for a in GOOD for b in BAD]
    several.write_text("\n".join(rows) + '\n{"text": "the film", "labels": []}\n', encoding="utf-8")
    files = ExamplesConfig(train_file=several, eval_file=several)
    result = prepare_finetuning(
        make_config(
            pretrained,
            files,
            tmp_path / "two",
            training={"num_train_epochs": 40, "learning_rate": 5e-3, "eval_steps": 1000},
        )
    ).run()
    assert result.evaluation["eval_micro_f1"] > 0.9
    assert set(Classifier.load(tmp_path / "two")(["great dull"])[0].label) == {"great", "dull"}


def test_frozen_layers_stay(pretrained, files, tmp_path):
    config = make_config(pretrained, files, tmp_path / "run", tuning={"frozen_layers": 1})
    prepare_finetuning(config).run()
    before, after = weights(pretrained), weights(tmp_path / "run")
    moved = {name for name in after if name in before and not torch.equal(before[name], after[name])}
    assert moved and all(".layer.1." in name or "pooler" in name for name in moved)


def test_layerwise_rates(pretrained):
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=2))
    scales = layerwise_lr_scales(model, 0.5)
    assert scales["bert.embeddings.word.weight"] == 0.125
    assert scales["bert.encoder.blocks.0.mlp.up.weight"] == 0.25
    assert scales["bert.encoder.blocks.1.mlp.up.bias"] == 0.5
    assert scales["bert.pooler.dense.weight"] == scales["classifier.weight"] == 1.0
    assert layerwise_lr_scales(model, 1.0) == {}


def test_from_scratch_a_preset_and_balanced_classes(pretrained, files, tmp_path):
    scratch = prepare_finetuning(make_config(pretrained, files, tmp_path / "a", start={"from_scratch": True})).parts
    assert not torch.equal(
        scratch.model.bert.embeddings.word.weight, weights(pretrained)["bert.embeddings.word_embeddings.weight"]
    )
    assert scratch.model.config.hidden_size == 32
    preset = prepare_finetuning(make_config("bert-tiny", files, tmp_path / "b")).parts
    assert preset.model.config.hidden_size == 128 and preset.model.config.vocab_size == preset.tokenizer.vocab_size
    run = prepare_finetuning(
        make_config(
            pretrained,
            files,
            tmp_path / "c",
            tuning={"class_weights": "balanced", "layerwise_lr_decay": 0.9},
            training={"max_steps": 2},
        )
    )
    assert run.parts.model.class_weights.shape == (2,) and run.run().step == 2


def test_a_head_goes_on_with_its_labels_and_others_need_a_word(pretrained, files, tmp_path):
    first = make_config(pretrained, files, tmp_path / "one", training={"max_steps": 3})
    prepare_finetuning(first).run()
    on = prepare_finetuning(make_config(tmp_path / "one", files, tmp_path / "two")).parts
    assert torch.equal(on.model.classifier.weight, weights(tmp_path / "one")["classifier.weight"])
    other = write_examples(tmp_path / "other.tsv")
    other.write_text(other.read_text().replace("positive", "yes"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tells negative, positive apart, but .* has the labels negative, yes"):
        prepare_finetuning(make_config(tmp_path / "one", files, tmp_path / "three", train_file=other, eval_file=None))
    fresh = make_config(
        tmp_path / "one", files, tmp_path / "three", train_file=other, eval_file=None, start={"fresh_head": True}
    )
    assert prepare_finetuning(fresh).parts.model.config.labels == ("negative", "yes")


def test_a_head_for_values_names_how_whole_numbers_are_read_as_such(pretrained, tmp_path):
    train = tmp_path / "train.tsv"
    train.write_text("text\tlabel\n" + "".join(f"the {GOOD[i]}\t{i % 3}\n" for i in range(3)), encoding="utf-8")
    regression = {"training": {"max_steps": 1}, "start": {"problem_type": "regression"}}
    files = ExamplesConfig(train_file=train)
    prepare_finetuning(make_config(pretrained, files, tmp_path / "one", **regression)).run()
    with pytest.raises(ValueError, match=r"gives one value, .* as classes: 0, 1, 2; give --problem-type regression if"):
        prepare_finetuning(make_config(tmp_path / "one", files, tmp_path / "two"))
    on = prepare_finetuning(make_config(tmp_path / "one", files, tmp_path / "two", **regression)).parts
    assert torch.equal(on.model.classifier.weight, weights(tmp_path / "one")["classifier.weight"])


def test_vectors_of_zeros_and_ones_train_and_measure_classes_by_position(pretrained, tmp_path):
    def write(name: str, labels: list) -> Path:
        lines = [json.dumps({"text": f"the {word}", "labels": one}) for word, one in zip(GOOD, labels, strict=False)]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    vectors = write("vectors.jsonl", [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    named = write("named.jsonl", [["a", "b"], ["b"], ["c"]])
    steps = {"training": {"max_steps": 1}}
    for train, names in ((vectors, ("LABEL_0", "LABEL_1", "LABEL_2")), (named, ("a", "b", "c"))):
        files = ExamplesConfig(train_file=train, eval_file=vectors)
        run = prepare_finetuning(make_config(pretrained, files, tmp_path / names[0], **steps))
        assert run.parts.model.config.label_names == names and run.run().step == 1
        assert run.parts.evaluation.labels.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    on = prepare_finetuning(make_config(tmp_path / "a", ExamplesConfig(train_file=vectors), tmp_path / "on")).parts
    assert on.model.config.label_names == ("a", "b", "c")
    assert torch.equal(on.model.classifier.weight, weights(tmp_path / "a")["classifier.weight"])


def test_empty_texts_are_left_out_and_counted(pretrained, files, tmp_path):
    files.train_file.write_text(files.train_file.read_text() + "   \tpositive\n\tnegative\n", encoding="utf-8")
    said = []
    run = prepare_finetuning(make_config(pretrained, files, tmp_path / "run"), say=said.append)
    assert said[0] == f"{files.train_file}: 2 of 402 examples have no text: left out"
    assert len(run.parts.train_data.examples) == 400


def test_what_is_never_measured_cannot_choose_the_best(pretrained, files, tmp_path):
    config = make_config(pretrained, files, tmp_path / "run", training={"metric_for_best_model": "macro_f1"})
    with pytest.raises(
        ValueError, match="'macro_f1' is not measured here; expected one of loss, accuracy, matthews, f1"
    ):
        prepare_finetuning(config)
    assert not list(tmp_path.glob("run/checkpoint-*"))


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_classes_that_a_spreadsheet_made_decimal(pretrained, tmp_path, ending):
    def write(name: str, labels: list[str]) -> Path:
        path, words = tmp_path / f"{name}.{ending}", (GOOD + BAD)[: len(labels)]
        line = "{}\t{}" if ending == "tsv" else '{{"text": "{}", "label": {}}}'
        rows = [line.format(*row) for row in zip(words, labels, strict=True)]
        path.write_text("\n".join((["text\tlabel"] if ending == "tsv" else []) + rows) + "\n", encoding="utf-8")
        return path

    train, held_out = write("train", ["0.0", "1.0", "0.0"]), write("dev", ["1", "0.0"])
    files = ExamplesConfig(train_file=train, eval_file=held_out)
    run = prepare_finetuning(make_config(pretrained, files, tmp_path / "run", training={"max_steps": 1}))
    assert run.parts.model.config.labels == ("0", "1") and run.run().step == 1
    figures = Classifier.load(tmp_path / "run").evaluate(read_labelled_texts(held_out, ColumnConfig()))
    assert "accuracy" in figures


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 400}, "between 4 and the model's 40 positions, got 400"),
        ({"tuning": {"frozen_layers": 3}}, "frozen_layers=3, but the model has 2 layers"),
        ({"eval_file": None, "training": {"metric_for_best_model": "f1"}}, "give an eval_file"),
        ({"start": {"model": "bert-tinny"}}, "did you mean 'bert-tiny'"),
        ({"start": {"model": "nosuch"}}, "there is no directory 'nosuch', and there is no preset"),
        ({"start": {"model": "bert-base-uncased"}}, "no directory .* but random weights; .* or give --from-scratch"),
        ({"start": {"tokenizer": Path("x")}}, "--tokenizer is for presets, but .* is a directory"),
        ({"start": {"problem_type": "regression"}}, "line 2: regression needs a number as label"),
        ({"training": {"metric_for_best_model": "acc"}}, "'acc' is not measured here; expected one of loss, accuracy"),
    ],
)
def test_settings_that_do_not_fit_are_told(pretrained, files, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare_finetuning(make_config(pretrained, files, tmp_path / "run", **changes)).run()


def test_held_out_examples_must_fit(pretrained, files, tmp_path):
    files.eval_file.write_text("sentence\tlabel\nthe film\tpositive\nthe story\tmixed\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev.tsv, line 3: the label 'mixed' is not one that the model knows"):
        prepare_finetuning(make_config(pretrained, files, tmp_path / "run"))
    files.eval_file.write_text("premise\thypothesis\tlabel\na\tb\tpositive\n", encoding="utf-8")
    with pytest.raises(ValueError, match="one has pairs of texts and one has not"):
        prepare_finetuning(make_config(pretrained, files, tmp_path / "run"))


@pytest.mark.slow
def test_this_is_good_is_positive(minilm_directory, test_data, tmp_path):
    """The lecture's first case, on the real weights and a thousand film reviews."""
    lines = (test_data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[:1001]
    named = [lines[0], *(line[:-1] + ("negative", "positive")[int(line[-1])] for line in lines[1:])]
    train = tmp_path / "train.tsv"
    train.write_text("\n".join(named) + "\n", encoding="utf-8")
    config = make_config(
        minilm_directory,
        ExamplesConfig(train_file=train),
        tmp_path / "run",
        tuning={"per_device_train_batch_size": 32},
        training={"num_train_epochs": 1, "learning_rate": 2e-4, "warmup_ratio": 0.1, "num_threads": None},
    )
    assert prepare_finetuning(config).run().step == 32
    good, bad = Classifier.load(tmp_path / "run")(["this is good", "this is bad"])
    assert good.label == "positive" and good.probabilities["positive"] > 0.8
    assert bad.label == "negative"
