"""Lets plain `pytest benchmarks` run, with any of pytest's own selections; its results count as those of a part."""

from collections.abc import Iterator

import pytest

from benchmarks.session import PARTIAL_RESULTS, BenchmarkSession, Options


def pytest_configure(config: pytest.Config) -> None:
    """Register a session unless `python -m benchmarks` brought its own."""
    if _session(config) is None:
        config.pluginmanager.register(BenchmarkSession(Options(output_dir=PARTIAL_RESULTS)))


@pytest.fixture(scope="session")
def benchmark_session(pytestconfig: pytest.Config) -> Iterator[BenchmarkSession]:
    """The session that measures; with `--base` it holds two processes as long as there are cases."""
    session = _session(pytestconfig)
    with session.revisions():
        yield session


def _session(config: pytest.Config) -> BenchmarkSession | None:
    plugins = config.pluginmanager.get_plugins()
    return next((plugin for plugin in plugins if isinstance(plugin, BenchmarkSession)), None)
