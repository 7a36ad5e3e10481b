"""``fastssl lm-eval``: EleutherAI's harness with our models in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys

_HELP = """\
usage: fastssl lm-eval [FLAGS OF THE HARNESS]

Run EleutherAI's lm-evaluation-harness with fastssl's causal models in it. All flags are the harness's own; its model
"fastssl" takes pretrained=DIR, dtype=fp32|bf16|int8, tokens_per_batch, max_length, max_gen_toks, add_bos_token and
prefix_token_id. It is an extra: pip install "fastssl[lm-eval]".

Examples:
  fastssl lm-eval --model fastssl --model_args pretrained=gpt2/ --tasks lambada_openai,hellaswag
  fastssl lm-eval --model fastssl --model_args pretrained=runs/x,dtype=int8 --include_path my-tasks/ --tasks mine
"""


def main(arguments: list[str]) -> int:
    """Run the harness's own command line, in which ``--model fastssl`` is known.

    Raises:
        ValueError: where the harness is not installed.
    """
    wants_help = not arguments or arguments[0] in ("-h", "--help")
    installed = importlib.util.find_spec("lm_eval") is not None
    if wants_help:
        print(_HELP)
        if not installed:
            return 0
    elif not installed:
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
