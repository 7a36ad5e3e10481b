"""``fastssl bench``: what this machine gives, and how much of it a training step takes."""

from __future__ import annotations

from fastssl.cli.verbs import Verb, dispatch

VERBS = {
    "machine": Verb("fastssl.cli.bench_machine", "the rate of matrix products and of memory"),
    "step": Verb("fastssl.cli.bench_step", "the speed of a training step, and with --profile where its time goes"),
}

_DESCRIPTION = """\
Quick measurements of this machine. `python -m benchmarks`, in a checkout, compares with other libraries."""


def main(arguments: list[str]) -> int:
    """Run one of the verbs behind ``fastssl bench``; returns its exit code."""
    return dispatch("fastssl bench", _DESCRIPTION, VERBS, arguments)
