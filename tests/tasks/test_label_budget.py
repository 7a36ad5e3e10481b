"""Label budgets: fair nested samples, first weights, lengths, files, going on, what is refused."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastssl.tasks.comparison.config import LabelBudgetConfig
from fastssl.tasks.comparison.label_budget import LabelBudgetExperiment
from fastssl.tasks.finetuning import prepare_finetuning
from fastssl.tasks.finetuning_config import ExamplesConfig
from fastssl.tasks.labelled_subsets import nested_order
from fastssl.training import RunDirectoryError
from fastssl.training.checkpoint import list_checkpoints
from tests.tasks.test_compare_init import make_config, silent
from tests.tasks.test_finetuning import files, metrics_only, pretrained  # noqa: F401
from tests.tasks.test_tagging import write_grammar


@pytest.mark.parametrize("seed", range(5))
def test_every_beginning_is_a_fair_sample(seed):
    labels = np.repeat([0, 1, 2, 7], [500, 300, 199, 1])
    order = nested_order(np.random.default_rng(seed).permutation(labels), 1000, seed)
    labels = np.random.default_rng(seed).permutation(labels)
    assert sorted(order) == list(range(1000))
    assert set(labels[order[:4]]) == {0, 1, 2, 7}
    for size in (10, 100, 500, 1000):
        for label, share in ((0, 0.5), (1, 0.3), (2, 0.199)):
            assert abs((labels[order[:size]] == label).sum() - share * size) <= 2


def test_seeds_choose_other_examples_and_one_seed_the_same():
    labels = np.arange(1000) % 2
    one, again, other = (set(nested_order(labels, 1000, seed)[:100]) for seed in (1, 1, 2))
    assert one == again and len(one & other) < 30
    assert len(set(nested_order(None, 1000, 1)[:100])) == 100


def test_budgets_as_they_are_written():
    assert LabelBudgetConfig(label_budget=("10", "all", "100", "10")).sizes(500) == (10, 100, 500)
    assert LabelBudgetConfig(label_budget=("10,100,all",)).sizes(100) == (10, 100)
    for wrong in ("ten", "0", "-5", "1.5"):
        with pytest.raises(ValueError, match=f"numbers above zero and 'all', .* got '{wrong}'"):
            LabelBudgetConfig(label_budget=("10", wrong))
    with pytest.raises(ValueError, match="got none"):
        LabelBudgetConfig(label_budget=(",",))
    with pytest.raises(ValueError, match="num_seeds must be at least 1, got 0"):
        LabelBudgetConfig(num_seeds=0)


def experiment(pretrained, files, output_dir: Path, *budgets: str, said=None, **changes):  # noqa: F811
    budget = {"num_seeds": 2, "min_steps": 3} | changes.pop("budget", {})
    config = make_config(
        pretrained, files, output_dir, budget=LabelBudgetConfig(label_budget=budgets, **budget), **changes
    )
    return LabelBudgetExperiment(config, say=silent if said is None else said.append)


def test_both_starts_train_on_the_same_nested_examples(pretrained, files, tmp_path):  # noqa: F811
    runs = experiment(pretrained, files, tmp_path, "10", "all")
    assert runs.budgets == (10, 400)
    small, whole = runs.data(10, 42), runs.data(100, 42)
    assert set(small.order(0)) < set(whole.order(0)) and set(small.order(0)) == set(small.order(1))
    assert set(small.labels[small.order(0)].tolist()) == {0, 1}
    batch = small.batch(0, 1)
    assert small.num_batches(0) == 2 and batch.num_sequences == 2
    assert set(small.order(0)) != set(runs.data(10, 43).order(0))


def test_first_weights_are_those_of_the_run_that_finetune_would_start(pretrained, files, tmp_path):  # noqa: F811
    runs = experiment(pretrained, files, tmp_path, "10", start={"dropout": 0.25})
    own = prepare_finetuning(runs.config.finetuning("pretrained", tmp_path / "x")).parts.model
    drawn = set(own.load_report.fresh)
    assert {"classifier.weight", "classifier.bias"} <= drawn
    one, other = runs.model("pretrained", 1), runs.model("pretrained", 2)
    for name, value in own.state_dict().items():
        same = torch.equal(one.state_dict()[name], other.state_dict()[name])
        if name in drawn:
            assert not same or name.endswith("bias")
        else:
            assert same and torch.equal(value, one.state_dict()[name])
    assert one.config == own.config and one.config.hidden_dropout_prob == 0.25 and one.bert.embeddings.word.sparse
    scratch = runs.model("from-scratch", 1)
    assert not torch.equal(scratch.bert.embeddings.word.weight, one.bert.embeddings.word.weight)
    assert torch.equal(scratch.classifier.weight, one.classifier.weight)


def test_lengths(pretrained, files, tmp_path):  # noqa: F811
    runs = experiment(pretrained, files, tmp_path, "10", "all", budget={"min_steps": 20})
    assert [runs.num_steps(runs.data(size, 1)) for size in (10, 400)] == [20, 100]
    fixed = experiment(pretrained, files, tmp_path, "10", "all", training={"max_steps": 7})
    assert [fixed.num_steps(fixed.data(size, 1)) for size in (10, 400)] == [7, 7]


def test_runs_files_and_going_on(pretrained, files, tmp_path):  # noqa: F811
    said = []
    found = experiment(pretrained, files, tmp_path / "out", "4", "all", said=said).run()
    keys = [(run.num_labels, run.seed, run.start) for run in found.runs]
    assert keys == [(n, s, start) for n in (4, 400) for s in (42, 43) for start in ("pretrained", "from-scratch")]
    assert {run.num_labels: run.steps for run in found.runs} == {4: 3, 400: 100}
    assert sum(" labels, seed " in line for line in said) == 8
    assert sum("examples of" in line for line in said) == 2
    rows = list(csv.DictReader((tmp_path / "out" / "label_budget.csv").open()))
    assert [float(row["score"]) for row in rows] == [run.score for run in found.runs]
    content = json.loads((tmp_path / "out" / "label_budget.json").read_text())
    point = next(p for p in content["points"] if (p["start"], p["num_labels"]) == ("pretrained", 400))
    scores = [run.score for run in found.runs if (run.start, run.num_labels) == ("pretrained", 400)]
    assert point["mean"] == np.mean(scores) and point["deviation"] == pytest.approx(np.std(scores, ddof=1))
    assert (tmp_path / "out" / "label_budget.png").stat().st_size > 10_000
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert not [path for run in (tmp_path / "out" / "runs").iterdir() for path in list_checkpoints(run)]

    with pytest.raises(
        RunDirectoryError, match=r"already holds runs over label budgets; .*--resume-from-checkpoint last"
    ):
        experiment(pretrained, files, tmp_path / "out", "4", "all")
    last = {"resume_from_checkpoint": "last"}
    with pytest.raises(
        RunDirectoryError, match=r"holds other runs: training.learning_rate is 0.003 there and 0.1 here"
    ):
        experiment(pretrained, files, tmp_path / "out", "4", training=last | {"learning_rate": 0.1})
    said.clear()
    more = experiment(
        pretrained, files, tmp_path / "out", "4", "all", "8", budget={"num_seeds": 1}, training=last, said=said
    ).run()
    assert [line.split(":")[0] for line in said if " labels, seed " in line] == [
        "8 labels, seed 42, pretrained",
        "8 labels, seed 42, from scratch",
    ]
    assert more.runs[:8] == found.runs and len(more.runs) == 10


def test_runs_measured_by_different_figures_are_not_mixed(pretrained, files, tmp_path):  # noqa: F811
    budget, last = {"num_seeds": 1}, {"resume_from_checkpoint": "last"}
    found = experiment(pretrained, files, tmp_path, "4", budget=budget).run()
    assert found.metric == "accuracy"
    with pytest.raises(RunDirectoryError, match=r"measured by accuracy, and here it is loss; give --metric-for-best-m"):
        experiment(pretrained, files, tmp_path, "4", training=last | {"metric_for_best_model": "loss"}, budget=budget)
    named = last | {"metric_for_best_model": "eval_accuracy"}
    assert experiment(pretrained, files, tmp_path, "4", training=named, budget=budget).run().runs == found.runs


def test_a_signal_leaves_what_was_finished(pretrained, files, tmp_path, monkeypatch):  # noqa: F811
    runs = experiment(pretrained, files, tmp_path / "out", "4", "8")
    train = runs._train
    monkeypatch.setattr(runs, "_train", lambda start, n, seed: 130 if n == 8 else train(start, n, seed))
    found = runs.run()
    assert found.exit_code == 130 and len(found.runs) == 4
    assert len(json.loads((tmp_path / "out" / "label_budget.json").read_text())["runs"]) == 4


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (("1", "10"), "label_budget=1 is below the number of classes, 2, .* give at least 2"),
        (("10", "500"), "label_budget=500 is above the number of training examples, 400; give 'all'"),
    ],
)
def test_budgets_that_do_not_fit_the_file(pretrained, files, tmp_path, budgets, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        experiment(pretrained, files, tmp_path, *budgets)


def test_regression_has_no_classes_to_keep(pretrained, tmp_path, files):  # noqa: F811
    rows = [f"good\t{i / 7:.3f}" for i in range(20)]
    files.train_file.write_text("\n".join(["text\tscore", *rows]) + "\n", encoding="utf-8")
    same = replace(files, eval_file=files.train_file)
    found = experiment(pretrained, same, tmp_path / "out", "1", "20", budget={"num_seeds": 1}).run()
    assert found.metric == "spearman" and len(found.runs) == 4


def test_sentences_for_tagging_are_chosen_at_random(pretrained, tmp_path):  # noqa: F811
    files = ExamplesConfig(  # noqa: F811
        train_file=write_grammar(tmp_path / "train.conllu", 48), eval_file=write_grammar(tmp_path / "dev.conllu", 16)
    )
    runs = experiment(pretrained, files, tmp_path / "out", "5", "all", task="tagging", budget={"num_seeds": 1})
    assert runs.budgets == (5, 48) and set(runs.data(5, 42).order(0)) < set(runs.data(20, 42).order(0))
    found = runs.run()
    assert [(run.num_labels, run.steps) for run in found.runs] == [(5, 3), (5, 3), (48, 12), (48, 12)]
