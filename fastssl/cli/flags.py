"""Flags from frozen dataclasses: the fields are the flags, their docstrings the help."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn, TypeVar, get_origin, get_type_hints

import tyro

Config = TypeVar("Config")
_REQUIRED = "(required)"
_MISSING = re.compile(r"Missing from .*?: (.*)")
_UNREADABLE = re.compile(r"Error parsing (\S+): .*?('[^']*')\]?\.?(?: Got errors:.*)?$")


def parse_flags(config_class: type[Config], arguments: Sequence[str], *, program: str) -> Config:
    """Make a config from command-line flags.

    Fields of nested configs are flat flags of their own name; lists are separated by spaces; a bool that defaults to
    False is a flag without value, and of one that defaults to True the flag is --no-NAME.

    Args:
        config_class: A dataclass; its docstring is the description.
        arguments: The flags.
        program: Shown in the usage line, such as ``fastssl data encode``.

    Raises:
        SystemExit: With code 2, after one line that says so, for a flag that does not exist (the nearest is suggested),
            is missing, or has a value that cannot be read, and for a list in several parts.
        ValueError: As the config raises it, for a value that is out of range or does not fit the others.
    """
    flags = dict(_flags(config_class))
    _refuse_unknown_flags(list(flags), arguments, program)
    _refuse_lists_in_parts([flag for flag, kind in flags.items() if get_origin(kind) is tuple], arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                config_class,
                args=list(arguments),
                prog=program,
                # Left to itself, tyro shows the docstring without its examples.
                description=inspect.cleandoc(config_class.__doc__ or ""),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as end:
        if not end.code:
            raise
        if (error := _error_of_the_config(end)) is not None:
            raise error from None
        _refuse(f"{_in_one_line(said.getvalue())}; `{program} --help` explains the flags")


def _error_of_the_config(end: BaseException) -> ValueError | None:
    """Return the error that a config itself raised, which tyro would put into a box; None where tyro found one."""
    error = end.__context__
    while error is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if isinstance(error, ValueError) and trace and trace.tb_frame.f_globals["__name__"].startswith("fastssl."):
            return error
        error = error.__context__
    return None


def _in_one_line(box: str) -> str:
    """Return what tyro says in a box, between its title and the rule above what it says of help."""
    lines = [line.strip(" │╭╮╰╯\n") for line in box.splitlines()]
    body = [line for line in lines[1:] if line]
    if body and not body[0].strip("-"):
        body = body[1:]  # where lines cannot be drawn, the title stands above a rule
    told = " ".join(itertools.takewhile(lambda line: line.strip("─-"), body))
    if match := _MISSING.fullmatch(told):
        return "missing: " + ", ".join(map(_named, match[1].split(_REQUIRED)[:-1]))
    if match := _UNREADABLE.match(told):
        flag, value = match.groups()
        kind = next((line.removeprefix(f"{flag} ") for line in body if line.startswith(f"{flag} ")), "another value")
        return f"{flag} takes {kind.removeprefix('{None}|')}, got {value}"
    return told.rstrip(". ")


def _named(missing: str) -> str:
    """Return the name of a flag from its help; of an argument without a flag, the help itself."""
    name, explanation = missing.strip().split(" ", 1)
    return name if name.startswith("-") else explanation.strip(" .")


def _refuse(message: str) -> NoReturn:
    """End the process with code 2: the command line itself is wrong."""
    print(f"fastssl: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _flags(config_class: type) -> Iterator[tuple[str, object]]:
    """Yield the name and the type of each flag; that of a flag that may be repeated, or needs no name, is annotated."""
    types = get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(types[field.name]):
            yield from _flags(types[field.name])
        else:
            negated = "no-" if types[field.name] is bool and field.default is True else ""
            yield f"--{negated}{field.name.replace('_', '-')}", types[field.name]


def _refuse_unknown_flags(known: Sequence[str], arguments: Sequence[str], program: str) -> None:
    """End the process with code 2 at a misspelt flag; tyro would first complain of what is then missing."""
    for argument in arguments:
        if argument == "--":
            return
        flag = argument.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in (*known, "--help"):
            nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
            remedy = f"did you mean {nearest[0]}?" if nearest else f"`{program} --help` lists them"
            _refuse(f"{program} has no flag {flag}; {remedy}")


def _refuse_lists_in_parts(lists: Sequence[str], arguments: Sequence[str]) -> None:
    """End the process with code 2 at the second flag of one list, whose values alone would count."""
    given = [argument.split("=")[0].replace("_", "-") for argument in arguments]
    for flag in lists:
        if given.count(flag) > 1:
            _refuse(f"{flag} is given {given.count(flag)} times; put all of its values behind one {flag}")
