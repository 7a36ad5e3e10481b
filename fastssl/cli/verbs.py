"""Verbs of the command line: found by name, imported only when called."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Verb(NamedTuple):
    """A verb of the command line."""

    module: str
    """Where it lives; its function ``main(arguments) -> exit code`` runs it."""
    help: str
    """What it does, in a few words."""


def dispatch(program: str, description: str, verbs: Mapping[str, Verb], arguments: Sequence[str]) -> int:
    """Run the verb that the first argument names, with the rest of them.

    Args:
        program: What the verb stands behind, such as ``fastssl data``.
        description: Shown above the list of verbs.
        verbs: By name.
        arguments: The verb and its flags; ``--help`` lists the verbs.

    Returns:
        The verb's exit code; 2 for a verb that does not exist, after a suggestion on standard error.
    """
    name = arguments[0] if arguments else None
    if name in verbs:
        return importlib.import_module(verbs[name].module).main(list(arguments[1:]))
    if name is None or name in ("-h", "--help"):
        print(_overview(program, description, verbs), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    nearest = difflib.get_close_matches(name, verbs, n=1, cutoff=0.5)
    remedy = f"did you mean `{program} {nearest[0]}`?" if nearest else f"expected one of {', '.join(verbs)}"
    print(f"fastssl: error: {program} has no verb {name!r}; {remedy}", file=sys.stderr)
    return 2


def _overview(program: str, description: str, verbs: Mapping[str, Verb]) -> str:
    width = max(map(len, verbs))
    rows = [f"  {name:{width}}  {verb.help}" for name, verb in verbs.items()]
    return "\n".join([f"usage: {program} VERB [--help | FLAGS]", "", description, "", *rows])
