"""The verb `glue`, as a person calls it."""

import pytest

from fastssl.cli.main import main
from tests.tasks.glue_folder import write_task
from tests.tasks.test_finetuning import metrics_only, pretrained  # noqa: F401


@pytest.fixture
def arguments(pretrained, tmp_path) -> list[str]:  # noqa: F811
    for name in ("SST-2", "RTE"):
        write_task(tmp_path / "glue", name)
    sizes = ["--max-steps", "2", "--max-seq-length", "32", "--num-threads", "1"]
    return ["glue", str(tmp_path / "glue"), "--model", str(pretrained), "--output-dir", str(tmp_path / "out"), *sizes]


def test_table_and_what_is_missing(arguments, capsys):
    assert main(arguments) == 0
    told = capsys.readouterr()
    for row, people in (("SST-2", "97.8"), ("RTE", "93.6"), ("average", "95.7")):
        line = next(line for line in told.out.splitlines() if line.startswith(row))
        assert people in line
    assert "not run, and in neither average: CoLA (no folder)" in told.out and "glue.png" in told.out
    assert main([*arguments, "--tasks", "rte"]) == 0
    told = capsys.readouterr()
    assert "[RTE] finished before" in told.err and "SST-2 (not asked for)" in told.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "rte", "cola"], "lacks what was asked for: CoLA (no folder)"),
        (["--tasks", "squad"], "GLUE has no task 'squad'"),
        (["--max-seq-length", "900"], "between 4 and the model's 40 positions"),
        (["--overwrit"], "did you mean --overwrite?"),
    ],
)
def test_mistakes_are_told(arguments, capsys, more, message):
    try:
        code = main(arguments + more)
    except SystemExit as end:
        code = end.code
    assert code in (1, 2) and message in capsys.readouterr().err
