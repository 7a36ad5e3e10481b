import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.comparison import LIMIT, OURS, Row
from benchmarks.environment import Environment
from benchmarks.recording import write_results
from benchmarks.table import CSV_FIELDS, csv_text, format_seconds, markdown, summary_line, table_cells

ENVIRONMENT = Environment(
    processor="Some CPU (R) v2",
    num_threads=2,
    memory_gib=16.0,
    system="Linux",
    versions={"torch": "2.13"},
    commit="abc123",
    date="2026-01-02",
    load=0.1,
    sgemm_gflops=250.0,
    copy_gbytes=20.0,
)


@pytest.fixture
def rows() -> list[Row]:
    return [
        Row(
            suite="attention",
            case="8x128",
            seconds={OURS: [1e-3, 2e-3, 1e-3], "SDPA": [3e-3, 6e-3, 3e-3], LIMIT: [5e-4, 1e-3, 5e-4]},
            work=2e8,
            unit="FLOP",
            limit_work=2e8,
        ),
        Row(suite="attention", case="plain", seconds={OURS: [1.0], "other": [0.5]}, memory_bytes={OURS: 3_000_000}),
        Row(suite="imports", case="all", seconds={OURS: [0.1]}),
    ]


def test_ratios_rates_and_shares(rows: list[Row]):
    row = rows[0]
    assert row.peers == ["SDPA"]
    assert row.speedup("SDPA").median == pytest.approx(3.0)
    assert row.rate(OURS) == pytest.approx(2e11)
    assert row.share(OURS) == pytest.approx(0.5)
    assert rows[1].rate(OURS) is None and rows[1].share(OURS) is None


def test_a_table_has_a_column_for_every_peer_of_the_suite(rows: list[Row]):
    header, lines = table_cells(rows[:2])
    assert header == ["case", OURS, "useful work", "share of machine", "x SDPA", "x other", "peak memory, MB"]
    assert lines[0][:5] == ["8x128", "1 ms", "200 GFLOP/s", "50% of sgemm", "3.00 [3.00-3.00]"]
    assert lines[1][4:] == ["", "0.50 [0.50-0.50]", "fastssl 3"]
    assert all(len(line) == len(header) for line in lines)


def test_csv_has_a_line_for_every_contender(rows: list[Row]):
    read = list(csv.DictReader(csv_text(rows, ENVIRONMENT).splitlines()))
    assert tuple(read[0]) == CSV_FIELDS
    assert [line["contender"] for line in read] == [OURS, "SDPA", LIMIT, OURS, "other", OURS]
    assert float(read[1]["speedup"]) == 3.0
    assert float(read[2]["rate_per_second"]) == 4e11
    assert {line["machine"] for line in read} == {"some-cpu-r-v2-2-threads"}


def test_markdown_names_origin_and_every_case(rows: list[Row]):
    text = markdown(rows, ENVIRONMENT)
    for expected in ("abc123", "2026-01-02", "torch 2.13", "## attention", "| 8x128 |", "## imports", "250 GFLOP/s"):
        assert expected in text


def test_a_busy_machine_is_said_aloud(rows: list[Row]):
    assert "the machine was quiet" in markdown(rows, ENVIRONMENT)
    assert "times are of no use" in markdown(rows, replace(ENVIRONMENT, load=5.2))


def test_summary_line(rows: list[Row]):
    assert summary_line(rows[0]) == "attention 8x128: 1 ms; 200 GFLOP/s; 50% of sgemm; 3.00 [3.00-3.00] SDPA"


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (1.5e-6, "1.5 us"), (2e-8, "0.02 us"), (1234.0, "1234 s")]
)
def test_times_are_readable(seconds: float, text: str):
    assert format_seconds(seconds) == text


def test_results_folder(rows: list[Row], tmp_path: Path):
    folder = tmp_path / "deep" / "results"
    write_results(rows, ENVIRONMENT, folder)
    assert json.loads((folder / "environment.json").read_text())["commit"] == "abc123"
    assert (folder / "speedups.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {
        "environment.json",
        "results.csv",
        "speedups.png",
        "summary.md",
    }
