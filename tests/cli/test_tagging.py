"""The verbs `finetune`, `evaluate` and `predict` with a tagger, as a person calls them."""

import json
from pathlib import Path

import pytest

from fastssl.cli.main import main
from tests.cli.test_finetune import SIZES, standard_input
from tests.tasks.test_tagging import pretrained, write_grammar, write_names  # noqa: F401


@pytest.fixture(scope="module")
def run(pretrained, tmp_path_factory) -> Path:  # noqa: F811
    """A directory of a model that tags parts of speech, with its files beside it."""
    folder = tmp_path_factory.mktemp("tagging")
    train, dev = (str(write_grammar(folder / f"{name}.conllu", seed=i)) for i, name in enumerate(("train", "dev")))
    files = ["--train-file", train, "--eval-file", dev, "--output-dir", str(folder / "run")]
    assert main(["finetune", "--task", "tagging", "--model", str(pretrained), *files, *SIZES]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def names_run(pretrained, tmp_path_factory) -> Path:  # noqa: F811
    """A directory of a model that finds names, little trained."""
    folder = tmp_path_factory.mktemp("names")
    files = ["--train-file", str(write_names(folder / "train.conll")), "--output-dir", str(folder / "run")]
    assert main(["finetune", "--task", "tagging", "--model", str(pretrained), *files, *SIZES]) == 0
    return folder / "run"


def predicted(capsys, *arguments: str) -> list[dict]:
    assert main(["predict", "--json", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def tags(sentence: dict) -> list[str]:
    return [word["tag"] for word in sentence["words"]]


def test_predict_the_two_saws(run, capsys):
    assert main(["predict", "--model", str(run), "I saw a saw"]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:5]]
    assert rows == [["I", "N"], ["saw", "V"], ["a", "DET"], ["saw", "N"]]
    first, second = predicted(capsys, "--model", str(run), "I saw a saw", "the dog sees")
    assert tags(first) == ["N", "V", "DET", "N"] and second["text"] == "the dog sees" and first["spans"] is None
    assert sum(first["words"][1]["probabilities"].values()) == pytest.approx(1)
    assert (first["words"][1]["start"], first["words"][1]["end"]) == (2, 5)


def test_predict_files_and_standard_input_in_order(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastssl.cli.predict_tags._AT_ONCE", 7)
    dev = run.parent / "dev.conllu"
    of_words = predicted(capsys, "--model", str(run), "--file", str(dev))
    assert len(of_words) == 300 and of_words[0]["text"] is None
    lines = [" ".join(word["word"] for word in one["words"]) for one in of_words]
    lines.insert(1, "")
    monkeypatch.setattr("sys.stdin", standard_input("\n".join(lines) + "\n"))
    of_lines = predicted(capsys, "--model", str(run))
    assert of_lines.pop(1)["words"] == []
    assert list(map(tags, of_lines)) == list(map(tags, of_words))
    monkeypatch.setattr("sys.stdin", standard_input("\n".join(lines[2:]) + "\n"))
    assert predicted(capsys, "--model", str(run), "-") == of_lines[1:]
    (tmp_path / "a.jsonl").write_text('{"tokens": ["I", "saw", "a", "saw"]}\n', encoding="utf-8")
    (found,) = predicted(capsys, "--model", str(run), "--file", str(tmp_path / "a.jsonl"))
    assert tags(found) == ["N", "V", "DET", "N"]


def test_a_file_is_read_as_finetune_reads_it(run, tmp_path, capsys):
    words, sentences = tmp_path / "words.txt", tmp_path / "sentences.txt"
    words.write_text("I N\nsaw V\na DET\nsaw N\n\nwe N\n", encoding="utf-8")
    first, second = predicted(capsys, "--model", str(run), "--file", str(words))
    assert tags(first) == ["N", "V", "DET", "N"] and [word["word"] for word in second["words"]] == ["we"]
    assert main(["evaluate", "--model", str(run), "--eval-file", str(words), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 2
    sentences.write_text("I saw a saw\nwe saw\n", encoding="utf-8")
    assert main(["predict", "--model", str(run), "--file", str(sentences)]) == 1
    assert f"sentences, one a line, are read from standard input: < {sentences}" in capsys.readouterr().err


def test_evaluate(run, capsys):
    arguments = ["evaluate", "--model", str(run), "--eval-file", str(run.parent / "dev.conllu")]
    assert main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["examples"] == 300 and figures["accuracy"] > 0.98 and "f1_of" not in figures
    assert main(arguments) == 0
    assert f"{figures['macro_f1']:.4f}" in capsys.readouterr().out


def test_names_are_shown_below_the_words(names_run, capsys):
    assert main(["predict", "--model", str(names_run), "Ann Lee saw Rome"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "PER: Ann Lee" in out and "LOC: Rome" in out
    (found,) = predicted(capsys, "--model", str(names_run), "Ann Lee saw Rome")
    assert found["spans"][0] == {"label": "PER", "text": "Ann Lee", "first": 0, "last": 1}
    dev = write_names(names_run.parent / "dev.conll", seed=1)
    assert main(["evaluate", "--model", str(names_run), "--eval-file", str(dev)]) == 0
    out = capsys.readouterr().out
    assert "span f1" in out and "span precision" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "there is no text"),
        (["predict", "--file", "nowhere.conllu"], "nowhere.conllu is not a file"),
        (["predict", "a", "--max-seq-length", "3"], "between 4 and the model's 40 positions, got 3"),
        (["evaluate", "--eval-file", "{names}"], "the tag 'B-PER' in column '2' is not one that the model knows"),
        (
            ["evaluate", "--eval-file", "{dev}", "--label-column", "NER"],
            "no column 'NER' (label_column); it has ID, FORM",
        ),
        (["evaluate", "--eval-file", "{dev}", "--text-pair-column", "x"], "tagging has words (text_column) and tags"),
    ],
)
def test_mistakes_are_told_in_one_line(run, capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr("sys.stdin", standard_input(""))
    places = {"{dev}": str(run.parent / "dev.conllu"), "{names}": str(write_names(tmp_path / "names.conll"))}
    verb, *rest = (places.get(argument, argument) for argument in arguments)
    assert main([verb, "--model", str(run), *rest]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastssl: error:")]
    assert len(error) == 1 and message in error[0]
