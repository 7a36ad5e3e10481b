"""`python -m benchmarks.gpu`, rehearsed on the CPU: every section, what a bad contender costs, what is kept."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.comparison import LIMIT, OURS, Row
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import layer_norm, tile_search
from benchmarks.gpu.backends import preferring
from benchmarks.gpu.clock import HostClock, rotating
from benchmarks.gpu.device_tests import run_sanitized
from benchmarks.gpu.problem import Run, measure
from benchmarks.gpu.section import REHEARSAL_EFFORT, run_section
from benchmarks.gpu.state import SectionState
from fastssl.ops.attention.cases import AttentionCase
from fastssl.ops.layer_norm import api, stock
from fastssl.ops.tile_search import using


@pytest.fixture
def run() -> Run:
    return Run(device=torch.device("cpu"), effort=REHEARSAL_EFFORT, rehearse=True)


@pytest.mark.parametrize("name", ["attention", "layer_norm", "bias_gelu", "linear_cross_entropy", "training_step"])
def test_a_section_measures_every_case(name: str, run: Run, tmp_path: Path):
    state = run_section(name, tmp_path, 60.0, run)
    assert state.rows and not state.failures and not state.unreached
    for row in state.rows:
        assert {OURS, LIMIT} <= set(row.seconds) and row.rate(OURS) > 0 and row.share(OURS) > 0
        assert row.remark.startswith("fastssl is ")
    read = SectionState.load(tmp_path, name)
    assert [row.case for row in read.rows] == [row.case for row in state.rows]


def test_ceilings_hold_copies_products_and_launches(run: Run, tmp_path: Path):
    facts = run_section("ceilings", tmp_path, 60.0, run).facts
    assert {"copy", "product bfloat16 64", "product float16 64", "launch from Python"} < set(facts)
    assert all(entry["value"] > 0 for entry in facts.values())


def test_a_section_goes_on_where_it_stopped(run: Run, tmp_path: Path):
    assert len(run_section("layer_norm", tmp_path, 0.0, run).unreached) == len(layer_norm.cases(run))
    *done, left = layer_norm.cases(run)
    kept = [Row(suite="layer_norm", case=name, seconds={OURS: [1.0]}) for name in done]
    excluded = [(left, f"own {backend}", "ended its process") for backend in ("native", "triton")]
    SectionState(name="layer_norm", rows=kept, excluded=excluded).save(tmp_path)
    state = run_section("layer_norm", tmp_path, 60.0, run)
    assert state.rows[:-1] == kept and state.rows[-1].case == left and not state.unreached
    assert "own native left out: ended its process" in state.rows[-1].remark
    assert "fastssl is auto" in state.rows[-1].remark


def test_a_contender_that_is_wrong_or_raises_is_named_and_not_timed(run: Run):
    def broken(**_):
        raise RuntimeError("no such kernel")

    problem = next(iter(layer_norm.cases(run).values()))()
    right = partial(problem.ours, backend="reference")
    peers = {"wrong": lambda **x: right(**x) * 1.5, "broken": broken, "right": right}
    problem, small = replace(problem, peers=peers), replace(problem.checked, peers=peers)
    alone = replace(run, excluded={("a case", "own triton"): "it would be a peer of our other backend"})
    row = measure("layer_norm", "a case", replace(problem, checked=small), alone)
    assert row.peers == ["right"], row.remark
    assert "wrong left out: AssertionError: wrong: output: error" in row.remark
    assert "broken left out: RuntimeError: no such kernel" in row.remark


def test_ours_being_wrong_is_a_failure(run: Run):
    problem = next(iter(layer_norm.cases(run).values()))()
    right = problem.ours

    def wrong(*, backend: str, **inputs):
        return right(**inputs, backend=backend) * (1.0 if backend == "reference" else 1.5)

    checked = replace(problem.checked, ours=wrong)
    with pytest.raises(RuntimeError, match="own native: AssertionError"):
        measure("layer_norm", "a case", replace(problem, ours=wrong, checked=checked), run)


def test_inputs_rotate_and_preparation_is_not_measured():
    log: list[str] = []

    def prepared(name: str):
        def prepare():
            time.sleep(0.01)
            return lambda: log.append(name)

        return prepare

    launch = rotating([prepared("a"), prepared("b")], HostClock())
    assert max(launch() for _ in range(4)) < 0.01
    assert "".join(log) == "abab"


def test_a_preferred_backend_is_tried_first_verified_or_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stock, "SUPPORTS", replace(stock.SUPPORTS, unverified_on=("cpu",), unverified={"all": all}))
    before = list(api.BACKENDS)
    with preferring("stock"):
        assert next(iter(api.BACKENDS)) == "stock"
        assert not stock.SUPPORTS.unverified_on and not stock.SUPPORTS.unverified
    assert list(api.BACKENDS) == before
    assert stock.SUPPORTS.unverified_on == ("cpu",)


def test_the_command_writes_a_report_and_reruns_one_section(tmp_path: Path):
    arguments = ["--rehearse", "--output-dir", str(tmp_path), "--only"]
    assert command.main([*arguments, "bias_gelu"]) == 0
    assert command.main([*arguments, "ceilings"]) == 0
    summary = (tmp_path / "summary.md").read_text()
    assert "# Rehearsal on a CPU" in summary and "## bias_gelu" in summary and "launch from Python" in summary
    assert "bias_gelu" in (tmp_path / "results.csv").read_text()
    assert (tmp_path / "speedups.png").exists()
    assert json.loads((tmp_path / "environment.json").read_text())["measured"]["copy"]["unit"] == "B/s"


def test_a_contender_that_ends_the_process_is_left_out_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    endings = iter(["exit status -11", ""])

    def process(name: str, folder: Path, seconds: float, rehearse: bool) -> str:
        ended = next(endings)
        if ended:
            SectionState(name=name, running=("a case", "own triton")).save(folder)
        return ended

    monkeypatch.setattr(command, "_process", process)
    command._run("attention", tmp_path, 60.0, True)
    state = SectionState.load(tmp_path, "attention")
    assert state.excluded == [("a case", "own triton", "ended its process: exit status -11")]
    assert state.running is None and not state.failures


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_a_line(capsys: pytest.CaptureFixture):
    assert command.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks.gpu: error: no CUDA GPU") and error.count("\n") == 1


def test_a_misspelt_section(capsys: pytest.CaptureFixture):
    assert command.main(["--rehearse", "--only", "atention"]) == 2
    assert "did you mean 'attention'" in capsys.readouterr().err


def test_the_sanitizer_is_left_out_aloud(tmp_path: Path):
    assert "skipped" in run_sanitized(tmp_path, 1.0, rehearse=True)


@pytest.mark.triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's share")
def test_the_tiles_that_are_compiled_before_are_those_of_the_search():
    case = AttentionCase(lengths_q=(130, 9, 3), heads=1, key_heads=1, width=16)
    tiles = tile_search.tiles_of(case, "cpu")
    assert tiles.keys() == tile_search.FLOPS_PER_SCORE.keys() and min(map(len, tiles.values())) > 3
    with using(tile_search.OneTile("attention_forward", tiles["attention_forward"][-1])):
        tile_search.run(tile_search.shortened(case), "cpu")
