"""`fastssl embed`: a row for every line, from files and pipes, and what it says of wrong input."""

import gzip
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastssl
from fastssl.cli.main import main
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertModel
from fastssl.models.bert_config import BertConfig

LINES = ["台灣大學", "", "我愛台灣", "台灣"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train_wordpiece([line for line in LINES if line] * 2, vocab_size=40)
    BertModel(BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=8, num_attention_heads=2)).save_pretrained(path)
    tokenizer.save(path)
    return str(path)


def test_a_file(directory: str, tmp_path: Path, capsys):
    text, out = tmp_path / "lines.txt.gz", tmp_path / "new" / "out.npy"
    text.write_bytes(gzip.compress("\r\n".join(LINES).encode()))
    assert main(["embed", "--model", directory, str(text), "--output", str(out)]) == 0
    assert "4 x 8 float32" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(out), fastssl.embed(LINES, model=directory), atol=1e-6)


def test_standard_input_and_options(directory: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("\n".join([*LINES, ""]).encode("utf-8-sig"))))
    out = tmp_path / "out.npy"
    options = ["--pooling", "cls", "max", "--normalize", "--max-length", "4", "--output", str(out)]
    assert main(["embed", "--model", directory, *options]) == 0
    expected = fastssl.embed(LINES, model=directory, pooling=["cls", "max"], normalize=True, max_length=4)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)


def test_wrong_input_is_explained(directory: str, tmp_path: Path, capsys):
    text, out = tmp_path / "lines.txt", tmp_path / "out.npy"
    call = ["embed", "--model", directory, str(text), "--output", str(out)]
    assert main(call) == 1
    assert "lines.txt" in capsys.readouterr().err
    text.write_bytes("gut\nschön\n".encode("latin-1"))
    assert main(call) == 1
    assert "not UTF-8 in line 2, byte 4" in capsys.readouterr().err
    assert not out.exists()
    text.write_text("good\n")
    assert main([*call[:-1], str(tmp_path)]) == 1
    assert "is a directory; name a file in it" in capsys.readouterr().err
    assert main(["embed", "--model", str(tmp_path), str(text), "--output", str(out)]) == 1
    assert "config.json is missing" in capsys.readouterr().err
    out.write_text("kept")
    for options, message in (
        (["--output", "/dev/null"], "/dev/null is not a regular file"),
        (["--output", "-"], "name a .npy file"),
        (["--output", str(out / "a.npy")], f"{out} is a file; name another directory"),
        (["--output", str(out), "--num-threads", "0"], "num_threads must be at least 1, got 0"),
        (["--output", str(out), "--num-threads", "-1"], "num_threads must be at least 1, got -1"),
    ):
        assert main([*call[:-2], *options]) == 1
        assert message in capsys.readouterr().err
    assert out.read_text() == "kept"
