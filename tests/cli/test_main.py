"""The command line as a whole: verbs, suggestions, errors in one line, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

import fastssl
from fastssl.cli import main as main_module
from fastssl.cli.main import VERBS, main

GIVEN = ["--model", "a", "--train-file", "b", "--output-dir", "c"]
_ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fastssl", *arguments], cwd=_ROOT, capture_output=True, text=True)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"{name} " in shown
        assert verb.help in shown


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]):
    for name in VERBS:
        try:
            code = main([name, "--help"])
        except SystemExit as end:
            code = end.code
        assert code == 0
        assert f"fastssl {name}" in capsys.readouterr().out


def test_help_imports_neither_torch_nor_numpy():
    program = (
        "import sys; from fastssl.cli.main import main; main(['--help']); print({'torch', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("set()\n")


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastssl {fastssl.__version__}\n"


def test_no_verb(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "usage: fastssl VERB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dta"], "fastssl has no verb 'dta'; did you mean `fastssl data`?"),
        (["xyzzy"], f"fastssl has no verb 'xyzzy'; expected one of {', '.join(VERBS)}"),
        (["data", "encod"], "fastssl data has no verb 'encod'; did you mean `fastssl data encode`?"),
    ],
)
def test_unknown_verb(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_unknown_flag_suggests_the_nearest(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["data", "show", "somewhere", "--mask-rat", "0.3"])
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert "--mask-rat" in shown
    assert "did you mean" in shown
    assert "--mask-rate" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train-file", "a", "--output-dir", "b"], "missing: --model;"),
        (["--model", "a", "--output-dir", "b"], "missing: --train-file;"),
        ([*GIVEN, "--max-steps", "many"], "--max-steps takes INT, got 'many';"),
        ([*GIVEN, "--learning-rate", "high"], "--learning-rate takes FLOAT, got 'high';"),
        ([*GIVEN, "--class-weights", "heavy"], "'heavy'"),
        ([*GIVEN, "--seed"], "--seed"),
        ([*GIVEN, "surplus"], "surplus"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(capsys, arguments: list[str], message: str):
    with pytest.raises(SystemExit) as end:
        main(["finetune", *arguments])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastssl: error: ") and message in line and "│" not in line
    assert line.endswith("`fastssl finetune --help` explains the flags")


def test_a_list_in_parts_is_refused(capsys):
    """Of which the last part alone would count, and the others be lost without a word."""
    with pytest.raises(SystemExit) as end:
        main(["generate", "--model", "a", "--prompt", "b", "--max-new-tokens", "3", "--prompt=c"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "fastssl: error: --prompt is given 2 times; put all of its values behind one --prompt\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-steps", "0"], "max_steps=0; expected a number above zero"),
        (["--layerwise-lr-decay", "2"], "layerwise_lr_decay must be above 0 and at most 1, got 2.0"),
        (["--metric-for-best-model", "loss"], "need held-out examples; give an eval_file"),
        (["--doc-stride", "-1"], "doc_stride must be at least 0, got -1"),
    ],
)
def test_a_wrong_value_is_told_as_any_other_mistake(capsys, arguments: list[str], message: str):
    assert main(["finetune", *GIVEN, *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastssl: error: ") and line.endswith(message)


def test_user_error_is_one_line_without_traceback(tmp_path: Path):
    result = run("data", "encode", str(tmp_path / "absent.txt"), "--output-dir", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == f"fastssl: error: there is no file {tmp_path / 'absent.txt'}; check its name\n"
    assert result.stdout == ""


def test_traceback_on_request(tmp_path: Path):
    result = run("--traceback", "data", "encode", str(tmp_path / "absent.txt"), "--output-dir", str(tmp_path))
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("a is 1; expected 2"), 1, "fastssl: error: a is 1; expected 2\n"),
        (OSError(28, "No space left on device", "x"), 1, "fastssl: error: [Errno 28] No space left on device: 'x'\n"),
        (KeyboardInterrupt(), 130, "fastssl: interrupted\n"),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
):
    def failing(*_: object) -> int:
        raise error

    monkeypatch.setattr(main_module, "dispatch", failing)
    assert main(["data"]) == code
    assert capsys.readouterr().err == line


def test_warnings_of_the_package_are_one_line():
    program = (
        "import warnings; from fastssl.cli import main; main.main(['--version']); "
        "warnings.warn_explicit('so it is', UserWarning, main.__file__, 1); "
        "warnings.warn_explicit('a part is missing', RuntimeWarning, main.__file__, 1); "
        "warnings.warn_explicit('and so', UserWarning, 'elsewhere.py', 7)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True, check=True)
    assert result.stderr == (
        "fastssl: warning: so it is\nfastssl: warning: a part is missing\nelsewhere.py:7: UserWarning: and so\n"
    )


def test_programming_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object) -> int:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(main_module, "dispatch", failing)
    with pytest.raises(TypeError, match="a mistake of ours"):
        main(["data"])
