"""The README is executed: every code block, in order, in one folder. Only `make demo` is left out, for its minutes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks() -> list[tuple[str, str]]:
    found = BLOCK.findall(README.read_text(encoding="utf-8"))
    return [(language, code) for language, code in found if code.strip() != "make demo"]


def test_is_short_and_speaks_two_languages():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200
    assert {language for language, _ in blocks()} == {"bash", "python"}


def test_only_the_demo_is_left_out():
    assert len(BLOCK.findall(README.read_text(encoding="utf-8"))) == len(blocks()) + 1


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, code in blocks():
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{code}\n--- printed\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
