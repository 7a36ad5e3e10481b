import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.comparison import OURS
from benchmarks.environment import ROOT
from benchmarks.ops.agreement import assert_agreement, forward_backward
from benchmarks.revisions import Worker
from benchmarks.suites import SUITES, Run, select


@pytest.mark.parametrize("quick", [False, True])
def test_every_suite_has_cases_of_its_own_names(quick: bool):
    cases = select([], Run(quick=quick))
    assert {case.suite for case in cases} == set(SUITES)
    assert len({str(case) for case in cases}) == len(cases)


def test_quick_is_less():
    assert len(select([], Run(quick=True))) < len(select([], Run(quick=False)))


def test_an_unknown_suite_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"'atention'.*did you mean 'attention'"):
        select(["atention"], Run())


def test_contenders_that_disagree_are_not_timed():
    inputs = {"x": torch.tensor([1.0, 2.0])}
    cotangent = torch.ones(2)
    double, wrong = (forward_backward(f, inputs, cotangent) for f in (lambda x: 2 * x, lambda x: 2.01 * x))
    exact = {name: value.double() for name, value in double().items()}
    assert_agreement({OURS: double}, double(), exact)
    with pytest.raises(AssertionError, match="peer: output"):
        assert_agreement({OURS: double, "peer": wrong}, double(), exact)
    inexact = forward_backward(lambda x: (2 + 1e-5) * x, inputs, cotangent)
    assert_agreement({"peer": inexact}, double(), exact)
    with pytest.raises(AssertionError, match="fastssl: output"):
        assert_agreement({OURS: inexact}, double(), exact)


def test_a_worker_launches_a_case_of_a_source_tree():
    case = select(["layer_norm"], Run(quick=True))[0]
    with Worker(ROOT, quick=True) as worker:
        worker.build(case)
        assert worker.launch() > 0


def test_a_worker_refuses_another_source_tree(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"expected fastssl of {tmp_path}" in done.stderr


def test_one_suite_from_the_command_line(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "import_time", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after import torch" in done.stdout
    assert "import_time" in (tmp_path / "results.csv").read_text()


def test_an_unknown_revision_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--base", "no-such-revision"])
    assert main() == 2
    assert "no revision 'no-such-revision'" in capsys.readouterr().err


def test_a_worker_skips_what_its_data_does_not_allow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FASTSSL_TEST_DATA", str(tmp_path))
    case = next(case for case in select(["pretraining_step"], Run(quick=True)) if "kjv" in case.name)
    with Worker(ROOT, quick=True) as worker, pytest.raises(pytest.skip.Exception, match=r"corpus/kjv\.txt"):
        worker.build(case)


def test_a_misspelt_suite_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "layernorm"])
    assert main() == 2
    assert "did you mean 'layer_norm'" in capsys.readouterr().err
