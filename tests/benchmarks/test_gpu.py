"""`python -m benchmarks.gpu`, rehearsed on the CPU: every section, what a bad contender costs, what is kept."""

import json
import re
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.comparison import LIMIT, OURS, Row
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import device_tests, kernel_times, layer_norm, tile_search, training_step, trial
from benchmarks.gpu.backends import preferring
from benchmarks.gpu.clock import HostClock, rotating
from benchmarks.gpu.device_tests import run_sanitized
from benchmarks.gpu.problem import Run, measure
from benchmarks.gpu.section import REHEARSAL_EFFORT, run_section
from benchmarks.gpu.state import SectionState
from benchmarks.gpu.within import run_within
from benchmarks.timing import Launch
from fastssl.ops.attention.cases import AttentionCase
from fastssl.ops.layer_norm import api, stock
from fastssl.ops.tile_search import using
from fastssl.training import graphs
from tests.training.test_graphs import Repeated


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


def test_a_section_whose_time_is_up_says_what_it_lacks_and_blames_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def process(name: str, folder: Path, seconds: float, rehearse: bool) -> str:
        unreached = ["a slow case", "a case behind it"]
        SectionState(name=name, running=("a slow case", "own triton"), unreached=unreached).save(folder)
        return command.TIME_UP

    monkeypatch.setattr(command, "_process", process)
    assert command.main(["--rehearse", "--output-dir", str(tmp_path), "--only", "attention"]) == 1
    state = SectionState.load(tmp_path, "attention")
    assert state.failures == {"a slow case": command.TIME_UP} and state.unreached == ["a case behind it"]
    assert not state.excluded and state.running is None
    summary = (tmp_path / "summary.md").read_text()
    assert "a slow case: no result: its time was up" in summary
    assert "not reached in the time given: a case behind it" in summary


def test_who_is_tried_last_is_not_blamed_for_what_happens_while_all_are_timed(run: Run):
    noted = []
    run.note = lambda case, contender: noted.append((case, contender))
    measure("layer_norm", "a case", next(iter(layer_norm.cases(run).values()))(), run)
    assert ("a case", "own triton") in noted and noted[-1] == ("a case", "")


def test_what_a_command_started_ends_with_it(tmp_path: Path):
    """Also what a process that is killed has started, which would keep a GPU's memory."""
    pid = tmp_path / "pid"
    start = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', '{SLEEP}'])"
    code = f"{start}; open({str(pid)!r}, 'w').write(str(p.pid)); {SLEEP}"
    assert run_within([sys.executable, "-c", code], 5.0) is None
    deadline = time.monotonic() + 10.0
    while _runs(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(pid.read_text()))
    assert run_within([sys.executable, "-c", "raise SystemExit(3)"], 60.0) == 3


SLEEP = "import time; time.sleep(100)"


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_tests_that_are_cut_short_leave_the_results_of_those_that_ended(tmp_path: Path, monkeypatch):
    file = tmp_path / "test_slow.py"
    file.write_text(f"def test_quick(): pass\ndef test_wrong(): assert False\ndef test_slow(): {SLEEP}\n")
    monkeypatch.setattr(device_tests, "REHEARSED", (str(file), "-p", "no:xdist"))
    for seconds in (12, 60):  # a busy machine needs longer to begin
        facts = device_tests.run_tests(tmp_path, float(seconds), rehearse=True)
        assert facts["cut short"] == f"after {seconds} s"
        if "failed" in facts:
            break
    (failed,) = facts["failed"]
    assert (facts["tests"], facts["failures"]) == (2, 1) and failed.endswith("test_slow::test_wrong")
    assert "test_quick PASSED" in (tmp_path / "tests.log").read_text()


def test_files_with_tests_of_a_gpu_are_found():
    files = device_tests.files_of_gpu_tests()
    assert {"tests/ops/test_attention_cuda.py", "tests/training/test_graphs.py"} <= set(files)
    assert len(files) < 30 and "tests/ops/test_attention.py" not in files


def test_a_trial_is_made_once_for_all_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(trial.VERDICT, "it hangs")
    trial.why_not.cache_clear()
    assert trial.why_not("hopper") == "it hangs"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert trial.left_out("hopper") == "own hopper left out: it hangs"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert trial.left_out("hopper") == ""
    trial.why_not.cache_clear()


class Frozen(Repeated):
    """A graph that does the first thing for ever: what a mistake in what it reads would come to."""

    def replay(self):
        if self._results is None:
            super().replay()
        return self._results


def test_graphs_are_held_to_the_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task = training_step.masked_lm(training_step.TINY, (24, 9), 2)
    task.model(task.config).save_pretrained(tmp_path)
    torch.save(task.batches(), tmp_path / training_step.BATCHES_FILE)

    def build(capture) -> Launch:
        return training_step.step_of_graphs(task.model, capture, tmp_path, "cpu", 3)

    assert build(Repeated)() > 0
    with pytest.raises(AssertionError, match="differs by"):
        build(Frozen)
    monkeypatch.setattr(graphs, "resolve_seed", lambda seed: torch.tensor(7))
    with pytest.raises(AssertionError, match="the gradient of step 0 differs by"):
        build(Repeated)


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


def test_kernel_times_tell_device_and_host_apart(monkeypatch):
    calls = kernel_times.calls(torch.device("cpu"), 2, 16, {101: 12})
    assert {"BERT's training step", "GPT-2's training step"} < calls.keys()
    line = kernel_times.report("BERT", calls["BERT's training step"], torch.device("cpu"))
    assert re.match(r"BERT: [\d.]+ us, host [\d.]+ us: \S+ [\d.]+; ", line), line
    now, taken = [0.0], iter((5e-3, 1e-3, 2e-3))
    monkeypatch.setattr(kernel_times, "CALLS", 3)
    monkeypatch.setattr(kernel_times.time, "perf_counter", lambda: now[0])
    call = lambda: now.__setitem__(0, now[0] + next(taken))  # noqa: E731
    assert kernel_times.host_us(call, torch.device("cpu")) == pytest.approx(2e3)
