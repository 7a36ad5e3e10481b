"""Flags from frozen dataclasses: the fields are the flags, their docstrings the help."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar, get_type_hints

import tyro

Config = TypeVar("Config")


def parse_flags(config_class: type[Config], arguments: Sequence[str], *, program: str) -> Config:
    """Make a config from command-line flags.

    Fields of nested configs are flat flags of their own name; lists are separated by spaces; a bool that defaults to
    False is a flag without value. An unknown flag ends the process with code 2 after suggesting the nearest.

    Args:
        config_class: A dataclass; its docstring is the description.
        arguments: The flags.
        program: Shown in the usage line, such as ``fastssl data encode``.
    """
    _refuse_unknown_flags(list(_flags(config_class)), arguments, program)
    return tyro.cli(
        config_class,
        args=list(arguments),
        prog=program,
        # Left to itself, tyro shows the docstring without its examples.
        description=inspect.cleandoc(config_class.__doc__ or ""),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _flags(config_class: type) -> Iterator[str]:
    types = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(types[field.name]):
            yield from _flags(types[field.name])
        else:
            yield "--" + field.name.replace("_", "-")


def _refuse_unknown_flags(known: Sequence[str], arguments: Sequence[str], program: str) -> None:
    """End the process with code 2 at a misspelt flag; tyro would first complain of what is then missing."""
    for argument in arguments:
        if argument == "--":
            return
        flag = argument.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in (*known, "--help"):
            nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
            remedy = f"did you mean {nearest[0]}?" if nearest else f"`{program} --help` lists them"
            print(f"fastssl: error: {program} has no flag {flag}; {remedy}", file=sys.stderr)
            raise SystemExit(2)
