"""GLUE: every official layout, the official figures, what is missing, damaged, finished or stopped."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from sklearn import metrics

from fastssl import Classifier
from fastssl.tasks.classification.classifier import Prediction
from fastssl.tasks.finetuning_config import StartConfig, TuningConfig
from fastssl.tasks.glue import benchmark as glue
from fastssl.tasks.glue.benchmark import (
    GlueConfig,
    GlueReport,
    GlueResult,
    GlueTrainingConfig,
    official_figures,
    run_glue,
    submission,
)
from fastssl.tasks.glue.files import find_tasks, read_examples, read_test
from fastssl.tasks.glue.tasks import GLUE_TASKS, task_named
from fastssl.tasks.labels import LabelSet
from fastssl.training import RunDirectoryError, trainer
from fastssl.training.checkpoint import list_checkpoints
from tests.tasks.glue_folder import write_task
from tests.tasks.test_finetuning import metrics_only, pretrained  # noqa: F401
from tests.training.stand_in import metrics_only_sinks

NAMES = [task.name for task in GLUE_TASKS]


def silent(_: str) -> None:
    pass


def make_config(folder: Path, model: Path, output_dir: Path, **changes) -> GlueConfig:
    training = {"num_train_epochs": 2, "learning_rate": 3e-3, "num_threads": 1} | changes.pop("training", {})
    return GlueConfig(
        folder=folder,
        start=StartConfig(model=str(model), dropout=0.0, **changes.pop("start", {})),
        tuning=TuningConfig(per_device_train_batch_size=8),
        training=GlueTrainingConfig(output_dir=str(output_dir), **training),
        **{"max_seq_length": 32} | changes,
    )


def test_people_score_as_on_the_leaderboard():
    results = tuple(GlueResult(task=task, figures=task.bert_base, num_train=1) for task in GLUE_TASKS)
    report = GlueReport(results=results, missing={})
    assert round(report.human_average, 1) in (87.0, 87.1)
    assert report.average == pytest.approx((56.53 + 92.32 + 86.46 + 88.56 + 89.1 + 84.005 + 90.66 + 65.7 + 56.34) / 9)
    for task in GLUE_TASKS:
        assert len(task.measured) == len(task.human) == len(task.bert_base) == len(task.figure_names)


@pytest.mark.parametrize("name", NAMES)
def test_every_layout(tmp_path, name):
    task = task_named(name)
    folder = write_task(tmp_path, name, tests=True)
    said = []
    for split, count in [("train", 64), *((split, 24) for split in task.splits)]:
        found = read_examples(folder, task, split, said.append)
        assert len(found) == len(found.labels) == count and not said
        assert len(found.texts) == len(task.texts)
        assert all(3 <= len(text.split()) <= 4 for texts in found.texts for text in texts)
        assert set(found.labels) == set(task.labels) if task.labels else {"1.000", "4.000"} <= set(found.labels)
        written = found.write(tmp_path / "out" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        assert written[0].split("\t") == (["sentence"] if len(task.texts) == 1 else ["sentence1", "sentence2"]) + [
            "label"
        ]
        assert len(written) == count + 1
    for split, _ in task.tests:
        assert len(read_test(folder / f"{split}.tsv", task)) == 24


def test_quotation_marks_are_characters(tmp_path):
    folder = write_task(tmp_path, "SST-2")
    (folder / "dev.tsv").write_text('sentence\tlabel\n"a good\t1\nit \'s "bad"" \t0\n', encoding="utf-8")
    assert read_examples(folder, task_named("sst2"), "dev", silent).texts == (['"a good', 'it \'s "bad"" '],)


def test_damaged_lines_are_left_out_counted_and_told(tmp_path):
    folder, said = write_task(tmp_path, "QQP"), []
    path = folder / "train.tsv"
    path.write_text(path.read_text() + "99\t1\t2\tcut in\nthe middle\tb\t0\n98\t1\t2\ta\tb\t\n", encoding="utf-8")
    assert len(read_examples(folder, task_named("QQP"), "train", said.append)) == 64
    assert len(said) == 1 and said[0].startswith(
        f"left out 3 damaged lines of {path}, the first being {path}, line 66:"
    )
    path.write_text(path.read_text() + "99\t1\t2\tcut in\n" * 9, encoding="utf-8")
    with pytest.raises(ValueError, match=r"12 damaged lines beside 64 good ones.*is it the official file of QQP\?"):
        read_examples(folder, task_named("QQP"), "train", said.append)
    path.write_text("id\tquestion1\tis_duplicate\n1\ta\t1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no column question2; it has id, question1, is_duplicate"):
        read_examples(folder, task_named("QQP"), "train", said.append)


def test_which_tasks_are_there(tmp_path):
    for task, name in (("SST-2", "sst2"), ("RTE", "rte"), ("STS-B", "STSB"), ("MNLI", None), ("MRPC", None)):
        write_task(tmp_path, task, name=name)
    (tmp_path / "MRPC" / "dev.tsv").unlink()
    (tmp_path / "MNLI" / "dev_mismatched.tsv").unlink()
    (tmp_path / "corpus").mkdir()
    found, missing = find_tasks(tmp_path)
    assert {name: path.name for name, path in found.items()} == {"SST-2": "sst2", "STS-B": "STSB", "RTE": "rte"}
    assert missing == {
        **dict.fromkeys(("CoLA", "QQP", "QNLI", "WNLI"), "no folder"),
        "MRPC": f"no dev.tsv in {tmp_path / 'MRPC'}",
        "MNLI": f"no dev_mismatched.tsv in {tmp_path / 'MNLI'}",
    }
    write_task(tmp_path, "RTE", name="RTE_")
    with pytest.raises(ValueError, match=r"has 2 folders for RTE: RTE_, rte"):
        find_tasks(tmp_path)


def test_real_files_are_read(test_data):
    found, _ = find_tasks(test_data)
    assert {"SST-2", "RTE"} <= set(found)
    assert len(read_examples(found["RTE"], task_named("rte"), "dev", silent)) == 277
    assert len(read_examples(found["SST-2"], task_named("sst2"), "dev", silent)) == 872


@pytest.mark.parametrize("name", NAMES)
def test_official_figures_of_known_predictions(tmp_path, name):
    """Against scikit-learn and scipy, called here on the labels of the files and on numbers of our own."""
    task = task_named(name)
    folder = write_task(tmp_path, name)
    held_out = {s: read_examples(folder, task, s, silent).write(tmp_path / f"{s}.tsv") for s in task.splits}
    labels = LabelSet(names=task.labels or ("LABEL_0",), problem_type=task.problem_type)
    logits = {
        str(path): torch.randn(24, len(labels.names), generator=torch.manual_seed(i))
        for i, path in enumerate(held_out.values())
    }
    current = []

    def evaluate(examples):
        current[:] = [logits[str(examples.table.path)]]
        return Classifier.evaluate(SimpleNamespace(label_set=labels, logits=lambda *_: current[0]), examples)

    figures = official_figures(task, SimpleNamespace(evaluate=evaluate), held_out)
    expected = []
    for split, figure in task.measured:
        rows = [line.split("\t") for line in held_out[split].read_text().splitlines()[1:]]
        numbers = logits[str(held_out[split])]
        if figure in ("pearson", "spearman"):
            by = stats.pearsonr if figure == "pearson" else stats.spearmanr
            expected.append(by(numbers[:, 0].tolist(), [float(row[-1]) for row in rows]).statistic)
        else:
            gold, predicted = [row[-1] for row in rows], [labels.names[i] for i in numbers.argmax(-1)]
            by = {
                "accuracy": metrics.accuracy_score,
                "matthews": metrics.matthews_corrcoef,
                "f1": lambda a, b: metrics.f1_score(a, b, pos_label="1"),
            }[figure]
            expected.append(by(gold, predicted))
    assert figures == pytest.approx([100 * value for value in expected], abs=1e-3)


def test_all_nine_run_and_are_reported(pretrained, tmp_path):  # noqa: F811
    for name in NAMES:
        write_task(tmp_path / "glue", name, train=24, tests=name in ("MNLI", "STS-B", "RTE"))
    config = make_config(tmp_path / "glue", pretrained, tmp_path / "out", training={"max_steps": 2})
    report = run_glue(config, say=silent)
    assert [result.task.name for result in report.results] == NAMES and not report.missing
    found = json.loads((tmp_path / "out" / "glue.json").read_text())
    assert found["average"] == pytest.approx(sum(task["score"] for task in found["tasks"].values()) / 9)
    mnli = found["tasks"]["MNLI"]
    assert mnli["score"] == pytest.approx(sum(mnli["figures"].values()) / 2)
    assert set(mnli["figures"]) == {"accuracy, matched", "accuracy, mismatched"}
    rows = list(csv.DictReader((tmp_path / "out" / "glue.csv").open()))
    assert len(rows) == 9 + 4 + 1 and rows[-1]["task"] == "average"
    assert (tmp_path / "out" / "glue.png").stat().st_size > 10_000
    submitted = {path.name: path.read_text().splitlines() for path in (tmp_path / "out" / "submission").iterdir()}
    assert set(submitted) == {"MNLI-m.tsv", "MNLI-mm.tsv", "STS-B.tsv", "RTE.tsv"}
    assert all(lines[0] == "index\tprediction" and len(lines) == 25 for lines in submitted.values())
    assert re.fullmatch(r"23\t(not_)?entailment", submitted["RTE.tsv"][24])
    assert re.fullmatch(r"0\t\d\.\d{3}", submitted["STS-B.tsv"][1])
    assert not [path for name in NAMES for path in list_checkpoints(tmp_path / "out" / task_named(name).key)]
    assert Classifier.load(tmp_path / "out" / "mnli").label_set.names == ("contradiction", "entailment", "neutral")


def test_it_learns_and_a_finished_task_is_not_run_again(pretrained, tmp_path, monkeypatch):  # noqa: F811
    for name in ("SST-2", "RTE"):
        write_task(tmp_path / "glue", name, train=400)
    config = make_config(tmp_path / "glue", pretrained, tmp_path / "out", tasks=("sst2",), max_train_examples=300)
    first = run_glue(config, say=silent)
    assert first.results[0].score > 90 and first.results[0].num_train == 300
    assert first.missing["RTE"] == "not asked for" and first.missing["CoLA"] == "no folder"
    monkeypatch.setattr(glue, "prepare_finetuning", lambda *_, **__: pytest.fail("it is finished"))
    said = []
    assert run_glue(config, say=said.append).results == first.results
    assert said == [f"[SST-2] finished before: {first.results[0].score:.1f} (--overwrite runs it again)"]
    other = replace(config, max_train_examples=200)
    with pytest.raises(RunDirectoryError, match=r"max_train_examples is 300 there and 200 here.*--overwrite"):
        run_glue(other, say=silent)
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "default_sinks", metrics_only_sinks)
    assert run_glue(replace(other, overwrite=True), say=silent).results[0].num_train == 200


def test_a_finished_task_is_of_the_settings_that_chose_its_weights(pretrained, tmp_path):  # noqa: F811
    write_task(tmp_path / "glue", "MRPC")
    training = {"max_steps": 2}
    config = make_config(tmp_path / "glue", pretrained, tmp_path / "out", training=training)
    first = run_glue(config, say=silent)

    def again(**changes):
        return run_glue(replace(config, training=replace(config.training, **changes)), say=silent)

    for changes, message in (
        ({"metric_for_best_model": "loss"}, "metric_for_best_model is 'f1' there and 'loss' here"),
        ({"greater_is_better": False}, "greater_is_better is True there and False here"),
        ({"early_stopping_patience": 1}, "early_stopping_patience is None there and 1 here"),
        ({"eval_steps": 1}, "eval_steps is None there and 1 here"),
    ):
        with pytest.raises(RunDirectoryError, match=message):
            again(**changes)
    assert again(metric_for_best_model="f1", greater_is_better=True, eval_strategy="epoch").results == first.results
    noted = tmp_path / "out" / "mrpc" / "glue_result.json"
    content = json.loads(noted.read_text())
    del content["settings"]["eval_steps"]
    noted.write_text(json.dumps(content))
    assert run_glue(config, say=silent).results == first.results


def test_a_length_of_zero_is_refused_and_not_taken_for_none(pretrained, tmp_path):  # noqa: F811
    write_task(tmp_path / "glue", "RTE")
    with pytest.raises(ValueError, match="max_seq_length must be between 4 and"):
        run_glue(make_config(tmp_path / "glue", pretrained, tmp_path / "out", max_seq_length=0), say=silent)


def test_a_stopped_task_goes_on(pretrained, tmp_path, monkeypatch):  # noqa: F811
    write_task(tmp_path / "glue", "RTE")
    config = make_config(tmp_path / "glue", pretrained, tmp_path / "out", training={"max_steps": 6, "save_steps": 3})
    monkeypatch.setattr(glue, "official_figures", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_glue(config, say=silent)
    monkeypatch.undo()
    resumed = []
    make_loop = trainer.Trainer._make_loop

    def noted(self, stack, checkpoint):
        resumed.append(checkpoint.name)
        return make_loop(self, stack, checkpoint)

    monkeypatch.setattr(trainer.Trainer, "_make_loop", noted)
    assert len(run_glue(config, say=silent).results) == 1 and resumed == ["checkpoint-6"]


def test_a_signal_ends_it_without_a_report(pretrained, tmp_path, monkeypatch):  # noqa: F811
    for name in ("RTE", "WNLI"):
        write_task(tmp_path / "glue", name)
    stopped = SimpleNamespace(run=lambda: SimpleNamespace(exit_code=130))
    monkeypatch.setattr(glue, "prepare_finetuning", lambda *_, **__: stopped)
    report = run_glue(make_config(tmp_path / "glue", pretrained, tmp_path / "out"), say=silent)
    assert report.exit_code == 130 and not report.results and not (tmp_path / "out" / "glue.json").exists()


def test_damage_of_any_task_is_told_before_the_first_is_trained(tmp_path, monkeypatch):
    write_task(tmp_path / "glue", "RTE")
    test = write_task(tmp_path / "glue", "WNLI", tests=True) / "test.tsv"
    test.write_text(test.read_text() + "24\tcut in\n", encoding="utf-8")
    monkeypatch.setattr(glue, "prepare_finetuning", lambda *_, **__: pytest.fail("too early"))
    with pytest.raises(ValueError, match=r"WNLI/test.tsv, line 26: 2 fields"):
        run_glue(make_config(tmp_path / "glue", tmp_path, tmp_path / "out"), say=silent)


def test_texts_are_cut_at_128_or_where_a_model_ends(pretrained, tmp_path, monkeypatch):  # noqa: F811
    write_task(tmp_path / "glue", "RTE")
    asked = []

    def prepare(finetuning, **_):
        asked.append(finetuning.examples.max_seq_length)
        return SimpleNamespace(run=lambda: SimpleNamespace(exit_code=130))

    monkeypatch.setattr(glue, "prepare_finetuning", prepare)
    for model, wanted in ((pretrained, None), ("bert-tiny", None), (pretrained, 16)):
        run_glue(make_config(tmp_path / "glue", model, tmp_path / "out", max_seq_length=wanted), say=silent)
    assert asked == [40, 128, 16]


def test_answers_in_the_format_of_the_leaderboard():
    def answer(label):
        return Prediction(text="", pair=None, label=label, probabilities=None)

    assert submission([answer("0"), answer("1")]) == "index\tprediction\n0\t0\n1\t1\n"
    assert submission([answer(5.2), answer(-0.1)]) == "index\tprediction\n0\t5.000\n1\t0.000\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("sst3",)}, "GLUE has no task 'sst3'; expected some of CoLA, SST-2"),
        ({"tasks": ("rte", "mrpc")}, r"lacks what was asked for: MRPC \(no folder\)"),
        ({"max_train_examples": 1}, "max_train_examples must be at least 3, got 1"),
        ({"start": {"problem_type": "regression"}}, "problem_type is set by the tasks"),
        ({"training": {"resume_from_checkpoint": None}}, "give --overwrite"),
        ({"training": {"save_strategy": "no"}}, "would lose the best weights"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, changes, message):
    write_task(tmp_path / "glue", "RTE")
    with pytest.raises(ValueError, match=message):
        run_glue(make_config(tmp_path / "glue", tmp_path, tmp_path / "out", **changes), say=silent)


def test_a_folder_without_tasks(tmp_path):
    with pytest.raises(ValueError, match="holds no task of GLUE; expected folders such as CoLA"):
        run_glue(make_config(tmp_path, tmp_path, tmp_path / "out"), say=silent)
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        run_glue(make_config(tmp_path / "nowhere", tmp_path, tmp_path / "out"), say=silent)
