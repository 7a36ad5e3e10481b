"""The verb `in-context`, as a person calls it."""

import json

import pytest

from fastssl.cli.main import main
from tests.tasks.test_in_context import directory, tiny_model, write_lines  # noqa: F401


@pytest.fixture
def arguments(directory, tmp_path) -> list[str]:  # noqa: F811
    rows = [{"text": f"{a}{b}", "label": "yes" if a == b else "no"} for a in "AB" for b in "ABCD"]
    task = write_lines(tmp_path / "same.jsonl", rows)
    return ["in-context", "--model", str(directory), "--task", str(task), "--output-dir", str(tmp_path / "out")]


def test_a_table_and_files(arguments, tmp_path, capsys):
    more = ["--shots", "0", "2", "--instruction", "The same letter twice?", "--num-threads", "1"]
    assert main([*arguments, *more]) == 0
    told = capsys.readouterr().out
    assert "  | The same letter twice?\n" in told and " =>\n" in told
    assert "most frequent answer 75.0%, chance 50.0%" in told
    assert "unchanged" in told and "same.jsonl" not in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "accuracy_by_shots.png",
        "in_context.csv",
        "in_context.json",
    }
    assert json.loads((tmp_path / "out" / "in_context.json").read_text())["models"][0]["is_unchanged"]


def test_several_models_and_demonstrations_of_their_own(arguments, tmp_path, capsys):
    tiny_model(tmp_path / "other", width=32)
    pool = write_lines(tmp_path / "pool.jsonl", [{"text": "CC", "label": "yes"}, {"text": "CD", "label": "no"}])
    arguments.insert(3, str(tmp_path / "other"))
    more = ["--demonstration-file", str(pool), "--shots", "2", "--scoring", "generation", "--num-seeds", "1"]
    assert main([*arguments, *more, "--shared-demonstrations", "--begin-with-bos", "True", "--dtype", "int8"]) == 0
    told = capsys.readouterr().out
    assert "  | C" in told and "by generation" in told and "accuracy_by_size.png" in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shots", "9"], "9 shots need as many examples to draw from, and there are 7"),
        (["--choices", "yes", "maybe"], "the answer 'no' is not among the choices"),
        (["--instruction", "x" * 100], "tokens without any example, and the model has 96"),
        (["--max-examples", "0"], "max_examples must be at least 1"),
        (["--shot", "1"], "did you mean --shots?"),
        (["--demonstration-file", "nowhere.tsv"], "nowhere.tsv is not a file"),
    ],
)
def test_mistakes_are_told(arguments, capsys, more, message):
    try:
        code = main(arguments + more)
    except SystemExit as end:
        code = end.code
    assert code in (1, 2) and message in capsys.readouterr().err
