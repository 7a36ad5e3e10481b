"""``fastssl data``: from text to what a model is trained on."""

from __future__ import annotations

from fastssl.cli.verbs import Verb, dispatch

VERBS = {
    "encode": Verb("fastssl.cli.data_encode", "turn text files into token shards, once, with all cores"),
    "show": Verb("fastssl.cli.data_show", "print (input, target) pairs of an objective in words"),
    "stats": Verb("fastssl.cli.data_stats", "count documents, sentences, tokens; what padding would waste"),
    "in-context-corpus": Verb(
        "fastssl.cli.data_in_context_corpus", "write made-up tasks that teach a small model to learn from its prompt"
    ),
}

_DESCRIPTION = """\
Text becomes token shards (encode), and those become training examples (show, stats).
Text files are UTF-8 with a blank line between documents, or .jsonl, each also .gz or .zst, or .parquet."""


def main(arguments: list[str]) -> int:
    """Run one of the verbs behind ``fastssl data``; returns its exit code."""
    return dispatch("fastssl data", _DESCRIPTION, VERBS, arguments)
