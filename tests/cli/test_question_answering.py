"""Question answering by `finetune`, `evaluate`, `predict` and `info`, as a person calls them."""

import io
import json
import shutil
from pathlib import Path

import pytest

from fastssl.cli.main import main
from tests.tasks.question_files import change, write_questions
from tests.tasks.test_question_answering import body  # noqa: F401

DOCUMENT = "the old house red n1 n2 and\nby river .\n"


@pytest.fixture(scope="module")
def run(body, tmp_path_factory) -> Path:  # noqa: F811
    """A directory of a model that answers, with its files beside it."""
    folder = tmp_path_factory.mktemp("answers")
    files = [str(write_questions(folder / f"{name}.json", 300, seed=i)) for i, name in enumerate(("train", "dev"))]
    (folder / "document.txt").write_text(DOCUMENT, encoding="utf-8")
    arguments = ["--task", "question_answering", "--model", str(body), "--output-dir", str(folder / "run")]
    arguments += ["--train-file", files[0], "--eval-file", files[1], "--dropout", "0", "--num-train-epochs", "3"]
    arguments += ["--per-device-train-batch-size", "8", "--learning-rate", "3e-3", "--num-threads", "1"]
    assert main(["finetune", *arguments]) == 0
    return folder / "run"


def asked(run: Path, *questions: str) -> list[str]:
    given = [part for question in questions for part in ("--question", question)]
    return ["predict", "--model", str(run), "--document", str(run.parent / "document.txt"), *given]


def test_finetune_says_how_to_go_on(body, tmp_path, capsys):  # noqa: F811
    train = str(write_questions(tmp_path / "train.json", 10))
    arguments = ["--task", "question_answering", "--model", str(body), "--train-file", train, "--num-threads", "1"]
    assert main(["finetune", *arguments, "--max-steps", "1", "--output-dir", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert '--document FILE --question "a question"' in told.out and "10 windows to train on" in told.err


def test_evaluate(run, capsys):
    dev = str(run.parent / "dev.json")
    assert main(["evaluate", "--model", str(run), "--eval-file", dev, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["examples"] == 300 and figures["f1"] >= figures["exact_match"] > 0.8
    assert main(["evaluate", "--model", str(run), "--eval-file", dev, "--max-answer-length", "1"]) == 0
    assert "exact match  0.0000" in capsys.readouterr().out


def test_evaluate_counts_what_was_measured_and_tells_of_the_rest(run, tmp_path, capsys):
    dev = write_questions(tmp_path / "dev.json", 5)
    dev.write_text(dev.read_text().replace('"answers": [{', '"answers": [], "x": [{', 1), encoding="utf-8")
    assert main(["evaluate", "--model", str(run), "--eval-file", str(dev), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["examples"] == 4 and "left out 1 of 5 questions: no answer is given" in told.err


def test_evaluate_keeps_the_best_threshold(run, tmp_path, capsys):
    model = shutil.copytree(run, tmp_path / "model")
    dev = str(write_questions(tmp_path / "dev.json", 60, seed=1, unanswerable=0.5))
    arguments = ["evaluate", "--model", str(model), "--eval-file", dev, "--json"]
    assert main([*arguments, "--keep-threshold"]) == 1  # it was trained on questions that all have an answer
    assert "--no-answer-threshold 0" in capsys.readouterr().err
    assert main([*arguments, "--no-answer-threshold", "0", "--keep-threshold"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["f1"] == pytest.approx(best["best_f1"]) and found["no_answer_accuracy"] > 0
    config = json.loads((model / "config.json").read_text())
    assert config["fastssl"]["no_answer_threshold"] == best["best_f1_threshold"] and "vocab_size" in config
    answered = str(write_questions(tmp_path / "answered.json", 5))
    assert main(["evaluate", "--model", str(model), "--eval-file", answered, "--keep-threshold"]) == 1
    assert "needs questions with and without an answer" in capsys.readouterr().err


def test_predict_several_questions(run, capsys):
    questions = ("where is red ?", "where red ?")
    assert main([*asked(run, *questions), "--json", "--n-best", "2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["question"] for one in found] == list(questions)
    assert [one["text"] for one in found] == ["n1 n2", "n1 n2"]
    assert all(DOCUMENT[one["start"] : one["end"]] == one["text"] and len(one["candidates"]) == 2 for one in found)
    assert main(asked(run, *questions)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["answer", "probability", "question"] and lines[1].startswith("n1 n2")


def test_predict_may_be_told_that_there_may_be_no_answer(run, capsys):
    assert main([*asked(run, "where is red ?"), "--no-answer-threshold", "-1000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == "" and found["start"] is None and found["no_answer_difference"] > -1000
    assert main([*asked(run, "where is red ?"), "--no-answer-threshold", "-1000"]) == 0
    assert "(no answer)" in capsys.readouterr().out


def test_the_two_rows_as_text_as_json_and_as_a_figure(run, tmp_path, capsys):
    figure = tmp_path / "rows.png"
    assert main([*asked(run, "where is red ?"), "--show-probabilities", "--figure", str(figure)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["token", "P(start)", "P(end)"] in shown and figure.read_bytes().startswith(b"\x89PNG")
    row = next(line for line in shown if line[:2] == ["5", "n1"])
    assert float(row[2]) > 0.5
    assert main([*asked(run, "where is red ?"), "--show-probabilities", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["probabilities"]
    assert rows["tokens"] == DOCUMENT.split() and sum(rows["start"]) == pytest.approx(1.0, abs=1e-4)
    assert len(rows["end"]) == len(rows["tokens"])


def test_predict_a_file_and_the_questions_of_standard_input(run, capsys, monkeypatch):
    assert main(["predict", "--model", str(run), "--file", str(run.parent / "dev.json"), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"] for one in found] == [f"q{number}" for number in range(300)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"where is red ?\n\nwhere red ?\n")))
    assert main([*asked(run), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["question"], one["text"]) for one in found] == [("where is red ?", "n1 n2"), ("where red ?", "n1 n2")]


@pytest.mark.parametrize(("part", "name"), [("question", "question"), ("context", "document")])
def test_an_empty_text_is_named_before_the_first_answer_of_a_file(run, tmp_path, capsys, part, name):
    file = change(write_questions(tmp_path / "some.json", 3), {}, {}, {part: " "})
    assert main(["predict", "--model", str(run), "--file", str(file), "--json"]) == 1
    told = capsys.readouterr()
    place = f"{file}: data[0].paragraphs[2].qas[0]"
    assert told.out == "" and f"{place}: the {name} is empty; take the question out of the file" in told.err


@pytest.mark.parametrize("threshold", [(), ("--no-answer-threshold", "0")])
def test_a_document_without_any_token_has_no_answer_in_valid_json(run, tmp_path, capsys, threshold):
    (tmp_path / "a.txt").write_text("\x01\x02 \u200b\n", encoding="utf-8")
    arguments = ["predict", "--model", str(run), "--document", str(tmp_path / "a.txt"), "--question", "where ?"]
    assert main([*arguments, *threshold, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["text"] == "" and found["candidates"] == [] and found["no_answer_difference"] is None
    assert main([*arguments, *threshold, "--show-probabilities"]) == 0
    assert "(no answer)" in capsys.readouterr().out


def test_info_counts_the_two_vectors(run, capsys):
    assert main(["info", str(run), "--max-seq-length", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["qa", "outputs", "96"] in [line.split()[:3] for line in lines]  # twice the width, and no bias


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "where?"], "answers questions from a document; give them as --document FILE --question TEXT"),
        (["predict", "--question", "where?"], "or --file FILE in SQuAD's format; got neither"),
        (["predict", "--document", "a.txt", "--file", "b.json"], "got both"),
        (["predict", "--file", "b.json", "--question", "a"], "--question goes with --document"),
        (["predict", "--document", "nowhere.txt", "--question", "a"], "nowhere.txt"),
        (["predict", "--document", "{empty}", "--question", "a"], "is empty; a document has text"),
        (["predict", "--document", "{document}"], "there is no question; give one with --question"),
        (["predict", "--document", "{document}", "--question", " "], "questions must not be empty, but number 0 is"),
        (
            ["predict", "--document", "{document}", "--question", "a", "--doc-stride", "50"],
            "doc_stride=50 must be below",
        ),
        (
            ["predict", "--document", "{document}", "--question", "a", "--question", "b", "--figure", "x.png"],
            "--figure draws one question, got 2",
        ),
        (["evaluate", "--eval-file", "{document}"], "not JSON"),
        (["evaluate", "--eval-file", "nowhere.json"], "nowhere.json is not a file"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    places = {"{document}": str(run.parent / "document.txt"), "{empty}": str(tmp_path / "empty.txt")}
    verb, *rest = (places.get(argument, argument) for argument in arguments)
    assert main([verb, "--model", str(run), *rest]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastssl: error:")]
    assert len(error) == 1 and message in error[0]


def test_a_classifier_is_asked_nothing(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    arguments = ["predict", "--model", str(tmp_path), "--document", "a.txt", "--question", "where?"]
    assert main(arguments) == 1
    assert "does not answer questions from a document: it was fine-tuned for classification" in capsys.readouterr().err
