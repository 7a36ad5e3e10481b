"""Flags from frozen dataclasses: the fields are the flags, their docstrings the help."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TypeVar

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
    return tyro.cli(
        config_class,
        args=list(arguments),
        prog=program,
        # Left to itself, tyro shows the docstring without its examples.
        description=inspect.cleandoc(config_class.__doc__ or ""),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
