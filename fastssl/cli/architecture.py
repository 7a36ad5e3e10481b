"""Which architecture a command line is about: it decides which other flags there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastssl.models.pretrained import read_config

ARCHITECTURES = ("bert", "gpt")


def architecture_of(arguments: Sequence[str]) -> str:
    """Return "bert" or "gpt": what --arch says, else what --preset or the directory of --model is, else "bert".

    Raises:
        ValueError: for another --arch.
    """
    if (named := _value_of("--arch", arguments)) is not None:
        if named not in ARCHITECTURES:
            raise ValueError(f"--arch must be {' or '.join(ARCHITECTURES)}, got {named!r}")
        return named
    if (preset := _value_of("--preset", arguments)) is not None:
        return "gpt" if preset.startswith("gpt") else "bert"
    model = _value_of("--model", arguments)
    if model is not None and (Path(model) / "config.json").is_file():
        return "bert" if read_config(model).get("model_type", "bert") == "bert" else "gpt"
    return "bert"


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and place + 1 < len(arguments):
            return arguments[place + 1]
    return None
