"""The verbs `pretrain` and `demo`, as a person calls them."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastssl.cli.main import main
from tests.tasks.test_pretraining import write_text

SIZES = ["--preset", "bert-tiny", "--vocab-size", "120", "--max-seq-length", "32", "--per-device-train-batch-size", "4"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt")


def test_pretrain_then_fill_mask(text: Path, tmp_path: Path, capsys):
    run = str(tmp_path / "my run")
    flags = ["--mask-strategy", "word", "--sentence-objective", "sop", "--max-steps", "3", "--output-dir", run]
    assert main(["pretrain", "--train-files", str(text), *SIZES, *flags]) == 0
    proposed = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  fastssl ")]
    assert [command[1] for command in proposed] == ["fill-mask", "info", "pretrain"]
    for command in proposed[:2]:
        assert main(command[1:]) == 0
    capsys.readouterr()
    assert main(["fill-mask", "--model", run, "The [MASK] sees a bird.", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["masks"][0]) == 5


def test_dry_run_prints_the_cost_and_trains_nothing(text: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    arguments = ["pretrain", "--train-files", str(text), *SIZES, "--max-steps", "3", "--output-dir", str(run)]
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().err
    for word in ("embeddings", "parameters", "steps", "tokens", "FLOPs", "memory", "time"):
        assert word in printed
    assert not (run / "metrics.jsonl").exists()
    assert not list(run.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (b"", [], "is empty"),
        (b"\x00\x01\x02\xff" * 400, [], "text"),
        ("caf\u00e9 is late. ".encode() * 5 + b"\xff\xfe end", [], "byte"),
        (b"\n \n\n", [], "document"),
        (b"One document. It has two sentences.", ["--sentence-objective", "nsp"], "2 documents"),
        (b"Some text.\n\nMore text.", ["--max-seq-length", "1024"], "positions"),
        (b"Some text.\n\nMore text.", ["--preset", "bert-tinny"], "bert-tiny"),
        (b"Some text.\n\nMore text.", ["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path: Path, capsys, content: bytes, flags: list[str], message: str):
    text = tmp_path / "bad.txt"
    text.write_bytes(content)
    run = ["--vocab-size", "60", "--max-steps", "1", "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", "--train-files", str(text), *run, *flags]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastssl: error:")]
    assert len(error) == 1
    assert message in error[0]


def test_encoding_errors_can_be_replaced(tmp_path: Path):
    text = tmp_path / "latin.txt"
    text.write_bytes(b"\n\n".join([b"the caf\xe9 is near the river. it is old."] * 8))
    run = ["--max-steps", "1", "--output-dir", str(tmp_path / "run"), "--encoding-errors", "replace"]
    assert main(["pretrain", "--train-files", str(text), *SIZES, *run]) == 0


def test_unknown_flag_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--train-files", "a.txt", "--output-dir", "x", "--lerning-rate", "1"])
    assert stopped.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


def test_misspelt_flag_is_told_before_the_missing_one(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fill-mask", "--mdl", "x", "a [MASK]"])
    assert stopped.value.code == 2
    assert "did you mean --model?" in capsys.readouterr().err


def test_two_processes_prepare_once_and_train_together(text: Path, tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = ["--max-steps", "2", "--num-threads", "1", "--output-dir", "run"]
    command = [*torchrun, "-m", "fastssl", "pretrain", "--train-files", str(text), *SIZES, *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is a Hugging Face directory") == 1
    assert done.stderr.count("to train on") == 1
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_demo_needs_nothing(tmp_path: Path):
    command = [sys.executable, "-m", "fastssl", "demo", "--max-steps", "3", "--output-dir", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for expected in ("before", "after", "filled correctly", "curves.png", "fastssl fill-mask --model demo"):
        assert expected in done.stdout
    assert (tmp_path / "demo" / "model.safetensors").exists()


GPT_SIZES = ["--hidden-size", "32", "--num-hidden-layers", "2", "--num-attention-heads", "2", "--max-seq-length", "32"]


def test_pretrain_gpt(text: Path, tmp_path: Path, capsys):
    run = str(tmp_path / "run")
    flags = ["--tokenizer-type", "characters", "--max-steps", "2", "--eval-fraction", "0.1", "--output-dir", run]
    assert main(["pretrain", "--arch", "gpt", "--train-files", str(text), *GPT_SIZES, *flags]) == 0
    printed = capsys.readouterr()
    assert "fastssl generate --model" in printed.out
    assert "bits per byte" in printed.err
    more = ["--model", run, "--max-seq-length", "32", "--max-steps", "1", "--output-dir", str(tmp_path / "more")]
    assert main(["pretrain", "--train-files", str(text), *more]) == 0
    assert "perplexity" in capsys.readouterr().err


def test_dry_run_of_gpt_prints_the_cost(text: Path, tmp_path: Path, capsys):
    run = ["--vocab-size", "300", "--max-steps", "3", "--output-dir", str(tmp_path / "run"), "--dry-run"]
    assert main(["pretrain", "--preset", "gpt2-nano", "--train-files", str(text), *GPT_SIZES, *run]) == 0
    printed = capsys.readouterr().err
    for word in ("embeddings: position", "block: attention", "parameters", "FLOPs", "memory", "time"):
        assert word in printed


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (b"", [], "is empty"),
        (b" \n\n", [], "document"),
        (b"some text", ["--vocab-size", "100"], "at least 257"),
        (b"some text", ["--max-position-embeddings", "8"], "positions"),
        (b"some text", ["--num-attention-heads", "3"], "a multiple of num_attention_heads=3"),
        (b"some text", ["--preset", "gpt2-nona"], "gpt2-nano"),
        (b"some text", ["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_to_gpt_is_told_in_one_line(tmp_path: Path, capsys, content: bytes, flags: list[str], message: str):
    text = tmp_path / "bad.txt"
    text.write_bytes(content)
    run = ["--arch", "gpt", "--max-steps", "1", "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", "--train-files", str(text), *run, *flags]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastssl: error:")]
    assert len(error) == 1
    assert message in error[0]


def test_each_architecture_has_its_own_flags(capsys):
    for arch, flag in (("gpt", "--mask-rate"), ("bert", "--document-separator")):
        with pytest.raises(SystemExit) as stopped:
            main(["pretrain", f"--arch={arch}", "--train-files", "a.txt", "--output-dir", "x", flag, "1"])
        assert stopped.value.code == 2
        assert f"has no flag {flag}" in capsys.readouterr().err
    assert main(["pretrain", "--arch", "gtp", "--train-files", "a.txt", "--output-dir", "x"]) == 1
    assert "--arch must be bert or gpt, got 'gtp'" in capsys.readouterr().err


@pytest.mark.parametrize("demonstration", [[], ["gpt"]])
def test_a_demonstration_is_not_run_over_another(tmp_path: Path, capsys, demonstration):
    (tmp_path / "runs" / "checkpoint-2").mkdir(parents=True)
    assert main(["demo", *demonstration, "--output-dir", str(tmp_path / "runs")]) == 1
    assert "holds a demonstration already; delete it, or name another --output-dir" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["demo", *demonstration, "--output-dir", str(tmp_path / "file")]) == 1
    assert "must be a directory" in capsys.readouterr().err


def test_demo_of_gpt_writes(tmp_path: Path):
    command = [sys.executable, "-m", "fastssl", "demo", "gpt", "--max-steps", "2", "--output-dir", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for expected in ("before training", "after training", "bits that held-out text costs", "generate --model demo"):
        assert expected in done.stdout
    assert (tmp_path / "demo" / "model.safetensors").exists()
