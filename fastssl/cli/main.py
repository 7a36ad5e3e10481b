"""The command line: one verb, one file."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import fastssl
from fastssl.cli.verbs import Verb, dispatch

VERBS = {
    "demo": Verb("fastssl.cli.demo", "the whole way in five minutes, on text that every Python carries"),
    "pretrain": Verb("fastssl.cli.pretrain", "pretrain a model on text, resumably"),
    "finetune": Verb("fastssl.cli.finetune", "teach a pretrained model a task from labelled examples"),
    "evaluate": Verb("fastssl.cli.evaluate", "measure a fine-tuned model on labelled examples"),
    "predict": Verb("fastssl.cli.predict", "what a fine-tuned model makes of texts, with probabilities"),
    "compare-init": Verb("fastssl.cli.compare_init", "what pretraining was worth: a task learnt from two starts"),
    "glue": Verb("fastssl.cli.glue", "fine-tune on the tasks of GLUE, with their official scores and a chart"),
    "fill-mask": Verb("fastssl.cli.fill_mask", "the likeliest tokens for every mask of a text"),
    "generate": Verb("fastssl.cli.generate", "write on from a prompt with a causal model"),
    "in-context": Verb("fastssl.cli.in_context", "tasks solved from a few examples in the prompt, without training"),
    "score": Verb("fastssl.cli.score", "how likely a model finds each line of a file"),
    "lm-eval": Verb("fastssl.cli.lm_eval", "EleutherAI's evaluation harness with our causal models in it"),
    "embed": Verb("fastssl.cli.embed", "a vector for every line of a file"),
    "search": Verb("fastssl.cli.search", "the lines of a file that are nearest to a query in meaning"),
    "info": Verb("fastssl.cli.info", "parameters, FLOPs and memory of a model directory or preset"),
    "bench": Verb("fastssl.cli.bench", "what this machine gives, and what a training step takes of it"),
    "data": Verb("fastssl.cli.data", "encode text, look at training examples, measure lengths"),
}

_DESCRIPTION = """\
Pretrain, adapt, serve and measure language models, fast, on the machine you have.
`fastssl VERB --help` explains a verb and all its flags."""

_INTERRUPTED = 128 + 2
_PACKAGE = Path(fastssl.__file__).parent
_usual_form = warnings.formatwarning


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: What stands behind ``fastssl`` on the command line; None takes it from there. ``--traceback`` in the first
            place shows where in the code an error arose.

    Returns:
        The exit code: 0 done; 1 it could not be done, for a reason told in one line on standard error; 2 the command
        line itself is wrong; 130 interrupted; or what the verb returns.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.formatwarning = _warning_in_one_line
    if arguments[:1] == ["--version"]:
        print(f"fastssl {fastssl.__version__}")
        return 0
    if arguments[:1] == ["--traceback"]:
        return dispatch("fastssl", _DESCRIPTION, VERBS, arguments[1:])
    try:
        return dispatch("fastssl", _DESCRIPTION, VERBS, arguments)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough; Python must not try to flush into it at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UnicodeEncodeError as error:
        told = f"{error.object[error.start]!r} cannot be printed in {error.encoding}; set PYTHONIOENCODING=utf-8"
        print(f"fastssl: error: {told}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"fastssl: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fastssl: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _warning_in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Show what fastssl warns of as its errors are shown, and all other warnings as Python does."""
    if category in (UserWarning, RuntimeWarning) and Path(filename).is_relative_to(_PACKAGE):
        return f"fastssl: warning: {message}\n"
    return _usual_form(message, category, filename, lineno, line)
