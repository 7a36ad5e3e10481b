import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.comparison import OURS
from benchmarks.quality import __main__ as command
from benchmarks.quality.hugging_face_side import OrderOfFastssl
from benchmarks.quality.problems import Problem, drcd_files, problems, sst2_files, xquad_files
from benchmarks.quality.question_windows import best_answers, question_windows, read_questions
from benchmarks.quality.rows import PEER, Row, markdown, read_rows, verdict, write_rows
from benchmarks.quality.runs import run_apart, run_here
from fastssl import BertConfig, BertForMaskedLM, Tokenizer
from fastssl.tasks.example_batches import ExampleBatches
from tests.tasks.question_files import WORDS, write_questions

ROW = Row(
    problem="ud",
    side=OURS,
    seed=0,
    metric="accuracy",
    score=0.95,
    exact_match=None,
    steps=10,
    seconds=10.0,
    cpu_seconds=8.0,
    threads=1,
    load=0.5,
    commit="abc",
    date="today",
    settings=problems()["ud"].settings,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny body with the tokenizer of the words that the files are made of."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train_wordpiece([" ".join([*WORDS, *"good bad film NOUN VERB".split()])] * 3, vocab_size=200)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    BertForMaskedLM(config).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Small files in the places of the real ones."""
    folder = tmp_path / "data"
    for name in ("sst2", "ud_en_ewt", "xquad", "drcd"):
        (folder / name).mkdir(parents=True)
    for name, count in (("train", 40), ("dev", 10)):
        lines = [f'a "{word} film\t{number % 2}' for number, word in enumerate(["bad", "good"] * (count // 2))]
        (folder / "sst2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
        words = ["1-2\tgoodfilm\t_\t_", "1\tgood\t_\tADJ", "2\tfilm\t_\tNOUN", "2.1\tbad\t_\tADJ"]
        sentence = "\n".join(["# text = x", *(word + "\t_" * 6 for word in words)]) + "\n\n"
        (folder / "ud_en_ewt" / f"en_ewt-ud-{name}.conllu").write_text(sentence * count)
    for name in ("xquad/xquad.en.json", "drcd/DRCD_dev.json"):
        path = write_questions(folder / name, 30)
        paragraphs = json.loads(path.read_text())["data"][0]["paragraphs"]
        # Two questions a paragraph, three paragraphs an article.
        paragraphs = [one | {"qas": one["qas"] * 2} for one in paragraphs]
        articles = [{"paragraphs": paragraphs[first : first + 3]} for first in range(0, 30, 3)]
        path.write_text(json.dumps({"data": articles}))
    return folder


def contexts(path: Path) -> list[str]:
    return [question.document for question in read_questions(path)]


def test_the_parts_of_the_files(data: Path, tmp_path: Path):
    train, dev = sst2_files(8, data, tmp_path)
    lines = train.read_text().splitlines()
    assert len(lines) == 9 and lines[0] == "sentence\tlabel"
    assert set(lines) <= set((data / "sst2/train.tsv").read_text().splitlines())
    assert dev == data / "sst2/dev.tsv" and sst2_files(None, data, tmp_path)[0] == data / "sst2/train.tsv"
    train, rest = xquad_files(7, data, tmp_path)
    assert (len(contexts(train)), len(contexts(rest))) == (7, 53)
    assert contexts(train)[-1] == contexts(rest)[0]
    train, rest = drcd_files(8, 6, data, tmp_path)
    assert (len(contexts(train)), len(contexts(rest))) == (12, 6) and not set(contexts(train)) & set(contexts(rest))


def test_both_sides_take_the_examples_in_one_order():
    ours, order = ExampleBatches(range(20), torch.zeros(20), seed=3, batch_size=8), OrderOfFastssl(20, 3)
    for epoch in range(2):
        assert list(order) == ours.order(epoch).tolist()
    assert len(order) == 20


def test_questions_of_long_documents_come_back_as_they_were(model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("benchmarks.quality.question_windows._STRIDE", 6)
    questions = read_questions(write_questions(tmp_path / "a.json", 20, length=30))
    windows = question_windows(AutoTokenizer.from_pretrained(model), questions, 24)
    assert len(windows) > len(questions)
    with_answer = [window for window in windows if window.span["start_positions"]]
    assert {window.question for window in with_answer} == set(range(20))
    # A model that is sure of the labels, and else of nothing, gives back the answers.
    starts, ends = np.zeros((2, len(windows), 30))
    for number, window in enumerate(windows):
        if window.span["start_positions"]:
            starts[number, window.span["start_positions"]] = ends[number, window.span["end_positions"]] = 5
    assert best_answers(questions, windows, starts, ends) == [question.answers[0] for question in questions]


def test_a_run_has_a_process_of_its_own(model: Path, data: Path):
    problem = replace(problems()["sst2"], make_files=partial(sst2_files, 8), max_seq_length=40)
    assert run_apart(problem, OURS, 0, data=data, model=model).steps == 1


@pytest.mark.parametrize("name", ["sst2", "ud", "xquad"])
def test_a_run_of_each_side(name: str, model: Path, data: Path, monkeypatch):
    monkeypatch.setattr("benchmarks.quality.question_windows._STRIDE", 10)
    small = {"sst2": partial(sst2_files, 20), "ud": problems()["ud"].make_files, "xquad": partial(xquad_files, 20)}
    problem = replace(problems()[name], make_files=small[name], max_seq_length=40, batch_size=8, learning_rate=1e-2)
    rows = [run_here(problem, side, 1, data=data, model=model) for side in (OURS, PEER)]
    assert rows[0].steps == rows[1].steps > 0
    assert all(0 <= row.score <= 1 and row.seconds > 0 and row.cpu_seconds > 0 for row in rows)
    assert [row.exact_match is None for row in rows] == [name != "xquad"] * 2
    if name == "ud":
        assert [row.score for row in rows] == [1, 1]  # two words, each with its tag


def test_rows_are_kept(tmp_path: Path):
    rows = [ROW, replace(ROW, side=PEER, exact_match=0.5, score=1 / 3)]
    write_rows(tmp_path / "x" / "quality.csv", rows)
    found = read_rows(tmp_path / "x" / "quality.csv")
    assert found == [ROW, replace(rows[1], score=0.333333)] and read_rows(tmp_path / "none.csv") == []


def test_what_is_done_is_not_run_again(model: Path, data: Path, tmp_path: Path, monkeypatch, capsys):
    done = []

    def run(problem: Problem, side: str, seed: int, **_: object) -> Row:
        done.append((problem.name, side, seed))
        return replace(ROW, problem=problem.name, side=side, seed=seed, settings=problem.settings)

    monkeypatch.setattr(command, "run_apart", run)
    arguments = ["--data", str(data), "--output-dir", str(tmp_path), "--model", str(model)]
    assert command.main([*arguments, "--only", "ud", "sst2-all", "--seeds", "0"]) == 0
    assert done == [("ud", OURS, 0), ("ud", PEER, 0), ("sst2-all", OURS, 0)]
    assert command.main([*arguments, "--only", "ud", "sst2-all", "--seeds", "0", "1"]) == 0
    assert done[3:] == [("ud", OURS, 1), ("ud", PEER, 1)]
    report = (tmp_path / "quality.md").read_text()
    assert f"| ud | {OURS} | 0 1 | 0.9500 0.9500 | accuracy 0.9500 ± 0.0000 |  | 10 | 8 |" in report
    capsys.readouterr()
    write_rows(tmp_path / "quality.csv", [replace(ROW, settings="more epochs")])
    assert command.main([*arguments, "--only", "ud"]) == 1
    assert "has runs of ud with other settings" in capsys.readouterr().err
    assert command.main([*arguments, "--only", "uda"]) == 2
    assert "expected some of ud, xquad" in capsys.readouterr().err


def test_what_follows_from_the_rows():
    ud, xquad = problems()["ud"], problems()["xquad"]
    ours = [replace(ROW, seed=seed, score=score) for seed, score in enumerate((0.93, 0.95))]
    peers = [replace(row, side=PEER, score=row.score + 0.01, seconds=40.0, cpu_seconds=16.0) for row in ours]
    assert verdict(ud, ours, peers) == (
        "accuracy 0.9400, at least 0.94; accuracy -0.0100 against HF Trainer (standard deviation 0.0141), in 25% of "
        "its time by the clock and 50% of its processor time"
    )
    assert verdict(ud, ours[:1], []) == "accuracy 0.9300, below 0.94"
    assert "(one seed)" in verdict(xquad, ours[:1], peers)
    assert markdown([], problems(), command.describe(), "beside other work").count("beside other work") == 1
