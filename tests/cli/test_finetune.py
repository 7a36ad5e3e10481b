"""The verbs `finetune`, `evaluate` and `predict`, as a person calls them."""

import io
import json
import shlex
from pathlib import Path

import pytest

from fastssl.cli.main import main
from tests.tasks.test_embedding_training import write_pairs
from tests.tasks.test_finetuning import pretrained, write_examples  # noqa: F401

SIZES = ["--per-device-train-batch-size", "8", "--learning-rate", "3e-3", "--num-threads", "1"]


def standard_input(content: str | bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content if isinstance(content, bytes) else content.encode()))


@pytest.fixture(scope="module")
def run(pretrained, tmp_path_factory) -> Path:  # noqa: F811
    """A directory of a fine-tuned model, with its files beside it."""
    folder = tmp_path_factory.mktemp("finetune")
    train, dev = (str(write_examples(folder / f"{name}.tsv", seed=i)) for i, name in enumerate(("train", "dev")))
    files = ["--train-file", train, "--eval-file", dev, "--output-dir", str(folder / "run")]
    assert main(["finetune", "--task", "classification", "--model", str(pretrained), *files, *SIZES]) == 0
    return folder / "run"


def test_finetune_says_how_to_go_on_and_leaves_the_curves(pretrained, tmp_path, capsys):  # noqa: F811
    train = str(write_examples(tmp_path / "train.tsv", header="sentence1\tsentence2\tlabel"))
    arguments = ["--model", str(pretrained), "--train-file", train, "--max-steps", "2", *SIZES]
    assert main(["finetune", *arguments, "--output-dir", str(tmp_path / "my run")]) == 0
    told = capsys.readouterr()
    assert "a new head" in told.err and (tmp_path / "my run" / "curves.png").is_file()
    predict, evaluate = (shlex.split(line)[1:] for line in told.out.splitlines() if line.startswith("  fastssl "))
    assert predict[-1] == "and the second one" and main(predict) == 0
    assert [*evaluate[:3], evaluate[-1]] == ["evaluate", "--model", str(tmp_path / "my run"), "FILE"]


def test_evaluate(run, capsys):
    dev = str(run.parent / "dev.tsv")
    assert main(["evaluate", "--model", str(run), "--eval-file", dev, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["examples"] == 400 and figures["accuracy"] > 0.9
    assert main(["evaluate", "--model", str(run), "--eval-file", dev]) == 0
    table = capsys.readouterr().out
    assert f"{figures['accuracy']:.4f}" in table
    assert figures["f1_of"] == "positive" and "f1 (of positive)" in table


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_evaluate_and_predict_in_fewer_bits(run, capsys, dtype):
    dev, figures = str(run.parent / "dev.tsv"), []
    for wanted in ("fp32", dtype):
        assert main(["evaluate", "--model", str(run), "--eval-file", dev, "--json", "--dtype", wanted]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[1]["accuracy"] == pytest.approx(figures[0]["accuracy"], abs=0.02)
    assert figures[1]["loss"] != figures[0]["loss"]
    assert main(["predict", "--model", str(run), "this is very good", "--dtype", dtype]) == 0
    assert "positive" in capsys.readouterr().out.splitlines()[1].split()[0]


def test_predict_a_text_and_a_pair(run, capsys):
    assert main(["predict", "--model", str(run), "this is very good"]) == 0
    assert "positive" in capsys.readouterr().out.splitlines()[1].split()[0]
    assert main(["predict", "--model", str(run), "this is very", "good", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pair"] == "good" and sum(found["probabilities"].values()) == pytest.approx(1)


def test_predict_a_file_and_standard_input_in_order(run, capsys, monkeypatch):
    dev = run.parent / "dev.tsv"
    assert main(["predict", "--model", str(run), "--file", str(dev), "--json"]) == 0
    of_file = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    texts = [line.split("\t")[0] for line in dev.read_text().splitlines()[1:]]
    assert [one["text"] for one in of_file] == texts
    monkeypatch.setattr("sys.stdin", standard_input("\n".join(texts) + "\n"))
    monkeypatch.setattr("fastssl.cli.predict_classes._AT_ONCE", 7)
    assert main(["predict", "--model", str(run), "--json"]) == 0
    of_input = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["label"] for one in of_input] == [one["label"] for one in of_file]
    monkeypatch.setattr("sys.stdin", standard_input("a film\tgood\n\tbad\n"))
    assert main(["predict", "--model", str(run), "--json"]) == 0
    assert [json.loads(line)["pair"] for line in capsys.readouterr().out.splitlines()] == ["good", "bad"]


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.tsv", "text\ngood\n\nbad\n", ["good", "", "bad"]),
        ("a.csv", "text\ngood\n\nbad\n", ["good", "", "bad"]),
        ("a.tsv", "text1\ttext2\ngood\tbad\n\t\nbad\tgood\n", ["good", "", "bad"]),
    ],
)
@pytest.mark.filterwarnings("ignore:the model was fine-tuned on single texts")
def test_every_line_of_a_file_has_its_prediction(run, tmp_path, capsys, name, content, texts):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.warns(UserWarning, match=f"{name}: 1 of 3 examples have no text"):
        assert main(["predict", "--model", str(run), "--file", str(tmp_path / name), "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == texts


def test_predict_reads_standard_input_for_a_dash_and_drops_a_byte_order_mark(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", standard_input("very good\r\n".encode("utf-8-sig")))
    assert main(["predict", "--model", str(run), "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "very good"


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["predict", "a", "--model", "{pretrained}"], "", "holds a BertForMaskedLM, which was not fine-tuned"),
        (["evaluate", "--eval-file", "{dev}", "--model", "{pretrained}"], "", "was not fine-tuned for a task"),
        (["predict", "a", "--max-seq-length", "0"], "", "between 4 and the model's 40 positions, got 0"),
        (["evaluate", "--eval-file", "{dev}", "--max-seq-length", "99999"], "", "model's 40 positions, got 99999"),
        (["predict", "a", "--model", "nosuch"], "", "nosuch is not a directory"),
        (["predict"], "gut\nschön\n".encode("latin-1"), "standard input is not UTF-8 in line 2, byte 4"),
        (["predict", "a", "b", "c"], "", "expected one text or a pair, got 3"),
        (["predict", "a", "--file", "x.tsv"], "", "both given"),
        (["predict"], "", "there is no text"),
        (["predict"], "a\tb\nc\n", "line 2: expected a pair"),
        (["predict", "--file", "nowhere.tsv"], "", "nowhere.tsv is not a file"),
        (["evaluate", "--eval-file", "{dev}", "--label-column", "stars"], "", "no column 'stars'"),
    ],
)
def test_mistakes_are_told_in_one_line(run, pretrained, capsys, monkeypatch, arguments, stdin, message):  # noqa: F811
    monkeypatch.setattr("sys.stdin", standard_input(stdin))
    places = {"{dev}": str(run.parent / "dev.tsv"), "{pretrained}": str(pretrained)}
    verb, *rest = (places.get(argument, argument) for argument in arguments)
    assert main([verb, "--model", str(run), *rest]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastssl: error:")]
    assert len(error) == 1 and message in error[0]


def test_empty_texts_are_told(run, tmp_path, capsys):
    file = tmp_path / "some.tsv"
    file.write_text("text\tlabel\n\tpositive\nthis is good\tpositive\n  \tnegative\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="some.tsv: 2 of 3 examples have no text; what the model makes of them"):
        assert main(["predict", "--model", str(run), "--file", str(file), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    with pytest.warns(UserWarning, match="some.tsv: 2 of 3 examples have no text; they count all the same"):
        assert main(["evaluate", "--model", str(run), "--eval-file", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 3


@pytest.fixture(scope="module")
def embedder(pretrained, tmp_path_factory) -> Path:  # noqa: F811
    """A directory of trained sentence embeddings, with its held-out pairs beside it."""
    folder = tmp_path_factory.mktemp("embedder")
    train, dev = (write_pairs(folder / f"{name}.tsv", 60, seed=i, scored=i) for i, name in enumerate(("train", "dev")))
    files = ["--train-file", str(train), "--eval-file", str(dev), "--output-dir", str(folder / "run")]
    options = ["--pooling", "cls", "--temperature", "0.1", "--num-train-epochs", "1"]
    assert main(["finetune", "--task", "embedding", "--model", str(pretrained), *files, *options, *SIZES]) == 0
    return folder / "run"


def test_an_embedder_is_evaluated_and_not_asked_for_predictions(pretrained, embedder, capsys):  # noqa: F811
    dev = embedder.parent / "dev.tsv"
    assert main(["evaluate", "--model", str(embedder), "--eval-file", str(dev), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["examples"] == 60 and -1 <= figures["spearman"] <= 1 and "pearson" in figures
    pairs = str(embedder.parent / "train.tsv")
    assert main(["evaluate", "--model", str(embedder), "--eval-file", pairs]) == 0
    assert "recall at 10" in capsys.readouterr().out
    assert main(["evaluate", "--model", str(embedder), "--eval-file", str(dev), "--label-column", "stars"]) == 1
    assert "no column 'stars'" in capsys.readouterr().err
    untrained = ["evaluate", "--model", str(pretrained), "--eval-file", str(dev), "--json"]
    assert main(untrained) == 1
    assert "was not fine-tuned for a task" in capsys.readouterr().err
    assert main([*untrained, "--task", "embedding"]) == 0
    assert json.loads(capsys.readouterr().out)["spearman"] != figures["spearman"]
    assert main(["predict", "--model", str(embedder), "a text"]) == 1
    assert f"fastssl search --model {embedder}" in capsys.readouterr().err


def test_finetuning_an_embedder_tells_of_search(pretrained, tmp_path, capsys):  # noqa: F811
    sentences = tmp_path / "lines.txt"
    sentences.write_text("a warm story\na dull film\nthis is good\n")
    arguments = ["--model", str(pretrained), "--train-file", str(sentences), "--max-steps", "1", *SIZES]
    assert main(["finetune", "--task", "embedding", *arguments, "--output-dir", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert "fastssl search --model" in told.out and "SimCSE" in told.err
