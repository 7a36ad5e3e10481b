"""`fastssl search`: tables and JSON, lines embedded now or before, and what it says of wrong input."""

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastssl import SentenceEmbedder, SentenceSearch
from fastssl.cli.main import main
from fastssl.tasks.embedding import nearest
from tests.cli.test_embed import directory  # noqa: F401

LINES = ["台灣大學", "我愛台灣", "", "台灣", "台灣大學"]


@pytest.fixture
def files(directory: str, tmp_path: Path, capsys) -> tuple[str, str]:  # noqa: F811
    """A file of lines and their embeddings."""
    lines, rows = tmp_path / "lines.txt", tmp_path / "lines.npy"
    lines.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    assert main(["embed", "--model", directory, str(lines), "--output", str(rows)]) == 0
    capsys.readouterr()
    return str(lines), str(rows)


def test_lines_embedded_now_and_before_are_found_alike(directory: str, files, capsys):  # noqa: F811
    lines, rows = files
    call = ["search", "--model", directory, "--file", lines, "台灣", "我愛", "--top-k", "3", "--json"]
    found = []
    for more in ([], ["--embeddings", rows]):
        assert main([*call, *more]) == 0
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    expected = SentenceSearch.over(directory, LINES)(["台灣", "我愛"], top_k=3)
    for results in found:
        assert [one["query"] for one in results] == ["台灣", "我愛"]
        for one, matches in zip(results, expected, strict=True):
            assert [match["line"] for match in one["matches"]] == [match.row + 1 for match in matches]
            assert [match["text"] for match in one["matches"]] == [match.text for match in matches]
            scores = [match["score"] for match in one["matches"]]
            assert scores == pytest.approx([match.score for match in matches], abs=1e-6)
    assert found[0][0]["matches"][0] == {"line": 4, "score": pytest.approx(1.0), "text": "台灣"}


def test_a_table_and_queries_from_standard_input(directory: str, files, capsys, monkeypatch):  # noqa: F811
    call = ["search", "--model", directory, "--file", files[0], "--top-k", "2"]
    assert main([*call, "台灣"]) == 0
    table = capsys.readouterr().out
    assert "1.0000     4  台灣" in table and "\n台灣\n" not in table
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("台灣\n我愛台灣\n".encode())))
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("台灣") and "1.0000     2  我愛台灣" in printed


def test_embeddings_of_something_else_are_told(directory: str, files, capsys):  # noqa: F811
    lines, rows = files
    call = ["search", "--model", directory, "--file", lines, "--embeddings", rows, "台灣"]
    assert main(call) == 0
    assert not capsys.readouterr().err
    np.save(rows, np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32))
    assert main(call) == 0
    assert "is not what this model makes of line" in capsys.readouterr().err
    assert main([*call, "--pooling", "cls", "max"]) == 1
    assert "lines.npy has 8 columns, but this model's embeddings have 16" in capsys.readouterr().err
    Path(lines).write_text("台灣\n")
    assert main(call) == 1
    assert "lines.npy has 5 rows, but" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_file(directory: str, tmp_path: Path, monkeypatch, capsys):  # noqa: F811
    """The lines are taken a window at a time, and their embeddings forgotten."""
    seen = []
    blocks = nearest.row_blocks
    monkeypatch.setattr(nearest, "row_blocks", lambda array: seen.append(len(array)) or blocks(array))
    lines = tmp_path / "lines.txt"
    lines.write_text("台灣\n" * 2100, encoding="utf-8")
    assert main(["search", "--model", directory, "--file", str(lines), "台灣大學", "--top-k", "2", "--json"]) == 0
    one, other = json.loads(capsys.readouterr().out)["matches"]
    assert one["score"] == pytest.approx(other["score"], abs=1e-6) and one["text"] == "台灣"
    assert seen == [1024, 1024, 52]
    embedder = SentenceEmbedder.load(directory)
    assert SentenceSearch(embedder, np.zeros((0, embedder.width), dtype=np.float32))(["a"]) == [[]]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["台灣", "--top-k", "0"], b"", "top_k must be at least 1, got 0"),
        (["台灣", "--file", "nowhere.txt"], b"", "nowhere.txt"),
        (["台灣", "--file", "-"], b"", "--file - is not possible"),
        (["台灣", "--embeddings", "nowhere.npy"], b"", "make it with `fastssl embed"),
        (["台灣", "--model", "nowhere"], b"", "nowhere is not a directory"),
        ([], b"", "there is no query"),
        ([], b"\xff\n", "standard input is not UTF-8 in line 1"),
    ],
)
def test_mistakes_are_told_in_one_line(directory: str, files, capsys, monkeypatch, arguments, stdin, message):  # noqa: F811
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
    assert main(["search", "--model", directory, "--file", files[0], *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_empty_file_is_told(directory: str, tmp_path: Path, capsys):  # noqa: F811
    lines = tmp_path / "lines.txt.gz"
    lines.write_bytes(gzip.compress(b""))
    assert main(["search", "--model", directory, "--file", str(lines), "台灣"]) == 1
    assert "has no lines to search" in capsys.readouterr().err
