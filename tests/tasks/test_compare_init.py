"""Two starts compared: the same batches, the files, resuming, thresholds, what is refused."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastssl import Classifier
from fastssl.tasks.comparison import compare_init as module
from fastssl.tasks.comparison.compare_init import compare_init, with_lines_enough
from fastssl.tasks.comparison.config import CompareInitConfig, ThresholdConfig
from fastssl.tasks.finetuning import prepare_finetuning
from fastssl.tasks.finetuning_config import (
    ExamplesConfig,
    FinetuningConfig,
    FinetuningTrainingConfig,
    StartConfig,
    TuningConfig,
)
from fastssl.training import RunDirectoryError, trainer
from fastssl.training.log import read_metrics
from tests.tasks.test_finetuning import files, metrics_only, pretrained  # noqa: F401
from tests.tasks.test_tagging import write_grammar


def silent(_: str) -> None:
    pass


def make_config(pretrained: Path, files: ExamplesConfig, output_dir: Path, **changes) -> CompareInitConfig:  # noqa: F811
    training = {"num_train_epochs": 2, "learning_rate": 3e-3, "num_threads": 1} | changes.pop("training", {})
    start = {"model": str(pretrained), "dropout": 0.0} | changes.pop("start", {})
    return CompareInitConfig(
        examples=files,
        start=StartConfig(**start),
        tuning=TuningConfig(per_device_train_batch_size=8),
        training=FinetuningTrainingConfig(output_dir=str(output_dir), **training),
        **changes,
    )


def test_both_see_the_same_batches_from_other_weights(pretrained, files, tmp_path):  # noqa: F811
    config = make_config(pretrained, files, tmp_path)
    one, other = (prepare_finetuning(config.finetuning(s, tmp_path / s)) for s in ("pretrained", "from-scratch"))
    assert type(one.config) is FinetuningConfig and one.config.training.seed == other.config.training.seed
    for epoch in (0, 1):
        for index in range(one.parts.train_data.num_batches(epoch)):
            ours, theirs = (run.parts.train_data.batch(epoch, index) for run in (one, other))
            assert torch.equal(ours.input_ids, theirs.input_ids)
            assert torch.equal(ours.sequence_labels, theirs.sequence_labels)
    assert not torch.equal(*(run.parts.model.bert.embeddings.word.weight for run in (one, other)))
    assert one.parts.model.config == other.parts.model.config


def test_runs_files_and_summary(pretrained, files, tmp_path):  # noqa: F811
    said = []
    found = compare_init(make_config(pretrained, files, tmp_path / "out"), say=said.append)
    assert [line for line in said if line.startswith("[")] == [
        f"[{start}] in {tmp_path / 'out' / start}" for start in ("pretrained", "from-scratch")
    ]
    summary = json.loads((tmp_path / "out" / "compare_init.json").read_text())
    assert [row["epoch"] for row in summary["epochs"]] == [1, 2]
    for start in ("pretrained", "from-scratch"):
        rows = read_metrics(tmp_path / "out" / start / "metrics.jsonl")
        trained = [row for row in rows if "loss" in row]
        # 50 steps an epoch, at least twenty lines each.
        assert len(trained) == 50
        whole = sum(row["loss"] for row in trained[:25]) / 25
        assert summary["epochs"][0]["training_loss"][start] == pytest.approx(whole)
        scores = [row["eval_accuracy"] for row in rows if "eval_accuracy" in row]
        assert [row["score"][start] for row in summary["epochs"]] == scores
        assert summary["best_score"][start] == max(scores)
        assert Classifier.load(tmp_path / "out" / start).label_set.names == ("negative", "positive")
    table = list(csv.DictReader((tmp_path / "out" / "compare_init.csv").open()))
    assert len(table) == 2 * (50 + 2) and {row["start"] for row in table} == {"pretrained", "from-scratch"}
    assert sum(bool(row["held_out_accuracy"]) for row in table) == 4
    assert (tmp_path / "out" / "compare_init.png").stat().st_size > 10_000
    # By default the threshold is where the run from scratch ends.
    scratch = found.curves["from-scratch"]
    assert summary["threshold"] == pytest.approx(float(scratch.smoothed[-1]))
    assert summary["epochs_to_threshold"]["from-scratch"] is not None
    by_score = replace(found, config=replace(found.config, arrival=ThresholdConfig(threshold_of="score")))
    assert by_score.threshold == scratch.best_score()
    arrived = replace(found, config=replace(found.config, arrival=ThresholdConfig(threshold=-1.0)))
    assert arrived.epochs_to_threshold == {"pretrained": None, "from-scratch": None}


def test_other_tasks(pretrained, tmp_path):  # noqa: F811
    held_out = ExamplesConfig(
        train_file=write_grammar(tmp_path / "train.conllu", 48), eval_file=write_grammar(tmp_path / "dev.conllu", 16)
    )
    config = make_config(pretrained, held_out, tmp_path / "out", task="tagging", training={"max_steps": 12})
    found = compare_init(config, say=silent)
    assert found.metric == "accuracy" and list(found.curves["pretrained"].epoch_losses) == [1.0, 2.0]
    assert set(found.curves["from-scratch"].epoch_scores) == {1.0, 2.0}


def test_what_is_complete_is_not_trained_again_and_what_is_not_goes_on(pretrained, files, tmp_path, monkeypatch):  # noqa: F811
    constant = make_config(pretrained, files, tmp_path / "out", training={"lr_scheduler_type": "constant"})

    def stopped_in_the_second(run):
        run, training = with_lines_enough(run), run.config.training
        if not training.output_dir.endswith("from-scratch"):
            return run
        half = replace(run.config.training, num_train_epochs=1)
        replace(run, config=replace(run.config, training=half)).run()
        return SimpleNamespace(parts=run.parts, run=lambda: SimpleNamespace(exit_code=130))

    monkeypatch.setattr(module, "with_lines_enough", stopped_in_the_second)
    assert compare_init(constant, say=silent) == 130
    assert not (tmp_path / "out" / "compare_init.json").exists()
    monkeypatch.setattr(module, "with_lines_enough", with_lines_enough)
    with pytest.raises(RunDirectoryError, match="--resume-from-checkpoint last"):
        compare_init(constant, say=silent)
    begun = []
    make_loop = trainer.Trainer._make_loop
    monkeypatch.setattr(
        trainer.Trainer,
        "_make_loop",
        lambda self, stack, checkpoint: (
            begun.append(checkpoint and checkpoint.name) or make_loop(self, stack, checkpoint)
        ),
    )
    again = replace(constant, training=replace(constant.training, resume_from_checkpoint="last"))
    resumed = compare_init(again, say=silent)
    assert begun == ["checkpoint-100", "checkpoint-50"]
    whole = compare_init(replace(again, training=replace(again.training, output_dir=str(tmp_path / "b"))), say=silent)
    assert begun[2:] == [None, None] and resumed.summary() == whole.summary()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": {"from_scratch": True}}, "from_scratch is one of the two starts"),
        ({"start": {"model": "bert-tiny"}}, "model='bert-tiny' is not a directory; .*a preset has no weights"),
        ({"training": {"resume_from_checkpoint": "elsewhere"}}, "here it can only be 'last'"),
    ],
)
def test_what_cannot_be_compared_is_refused(pretrained, files, tmp_path, changes, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        make_config(pretrained, files, tmp_path / "out", **changes)


def test_held_out_examples_are_needed(pretrained, files, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="needs held-out examples to measure on; give an eval_file"):
        make_config(pretrained, replace(files, eval_file=None), tmp_path / "out")


def test_a_directory_that_holds_either_run_is_refused_before_anything_is_trained(pretrained, files, tmp_path):  # noqa: F811
    config = make_config(pretrained, files, tmp_path / "out")
    (tmp_path / "out" / "from-scratch" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match=r"from-scratch already holds a run"):
        compare_init(config, say=silent)
    assert not (tmp_path / "out" / "pretrained").exists()
