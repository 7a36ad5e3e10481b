"""``fastssl lm-eval``: EleutherAI's harness with our models in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys


def main(arguments: list[str]) -> int:
    """Run the harness's own command line, in which ``--model fastssl`` is known.

    Raises:
        ValueError: where the harness is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError('the harness is not installed; install it with pip install "fastssl[lm-eval]"')
    importlib.import_module("fastssl.tasks.harness")
    from lm_eval.__main__ import cli_evaluate

    # The harness reads the command line itself.
    before, sys.argv = sys.argv, ["fastssl lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0
