"""A second process walks over the same checks from the other end: what one has compiled, the other finds."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FROM_THE_END = "FASTSSL_CUDA_CHECK_FROM_THE_END"
_second = pytest.StashKey[subprocess.Popen]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(FROM_THE_END):
        items.reverse()


def pytest_collection_finish(session: pytest.Session) -> None:
    here = Path(__file__).resolve().parent
    checks = [item for item in session.items if here in item.path.parents]
    if len(checks) < 2 or session.config.option.collectonly or os.environ.get(FROM_THE_END):
        return
    session.config.stash[_second] = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *session.config.invocation_params.args],
        cwd=session.config.invocation_params.dir,
        env=os.environ | {FROM_THE_END: "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    second = session.config.stash.get(_second, None)
    if second is not None and second.poll() is None:  # it has nothing to add; its compilers end with it
        os.killpg(second.pid, signal.SIGTERM)
        second.wait()
