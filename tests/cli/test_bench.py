import csv
import json

import pytest

from fastssl.cli.main import main

STEP = ["bench", "step", "bert-tiny", "--per-device-train-batch-size", "2", "--max-seq-length", "8", "--steps", "1"]


def test_the_speed_of_a_step(capsys):
    assert main([*STEP, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens_per_second"] == pytest.approx(16 / found["seconds"])
    assert found["parts"] == []


def test_a_profile_is_printed_and_written(capsys, tmp_path):
    assert main([*STEP, "--profile", "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "bert-tiny, 2 x 8 tokens" in printed
    assert "products: feed-forward" in printed
    with (tmp_path / "out" / "step_profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=0.01)
    assert (tmp_path / "out" / "step_profile.png").exists()


def test_what_makes_no_sense_is_told(capsys, tmp_path):
    assert main([*STEP, "--output-dir", str(tmp_path)]) == 1
    assert "add --profile" in capsys.readouterr().err
    assert main(["bench", "step", "bert-tinny"]) == 1
    assert "bert-tiny" in capsys.readouterr().err
    assert main(["bench", "stepp"]) == 2
    assert "did you mean `fastssl bench step`" in capsys.readouterr().err


def test_the_machine(capsys):
    assert main(["bench", "machine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fp32_matmul_flops_per_second"] > 0
    assert found["copy_bytes_per_second"] > 0
    assert found["read_bytes_per_second"] > 0
    assert main(["bench", "machine"]) == 0
    assert "GFLOP/s in fp32" in capsys.readouterr().out
