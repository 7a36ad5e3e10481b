"""The directory of a run: who may write in it, and which run it holds.

A run's identity is what decides its numbers: the settings of training, model and data, and the number of processes.
A directory with checkpoints belongs to the run that made them; another run in it is refused.
"""

import dataclasses
import fcntl
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy
import torch

import fastssl
from fastssl.training.checkpoint import list_checkpoints, remove_leftovers
from fastssl.training.config import LENGTH_FIELDS, TrainingConfig, identity_of
from fastssl.training.durable import write_whole

RUN_FILE = "run.json"
_MAX_LISTED = 8


class RunDirectoryError(ValueError):
    """The output directory is in use, or holds another run."""


class DirectoryLock:
    """A claim on a directory that ends with the process, so that two runs never write into one.

    Args:
        path: an existing directory.

    Raises:
        RunDirectoryError: when another process has claimed it.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise RunDirectoryError(
                f"output_dir {path}: another process is training in it; wait for it, or choose another output_dir"
            ) from error

    def release(self) -> None:
        """Give the directory up."""
        os.close(self._descriptor)


def check_output_directory(config: TrainingConfig) -> None:
    """Refuse, before anything is prepared, an output directory in which the run could not start.

    Raises:
        RunDirectoryError: when it is a file, or holds checkpoints and the run is not to be resumed.
    """
    directory = Path(config.output_dir)
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"output_dir {directory} is a file; expected a directory, which is made where missing")
    if config.resume_from_checkpoint is None and (checkpoints := list_checkpoints(directory)):
        raise RunDirectoryError(
            f"output_dir {directory} already holds a run with {len(checkpoints)} checkpoints; "
            "go on with --resume-from-checkpoint last, or choose another output_dir"
        )


def claim_directory(path: Path, say: Callable[[str], None]) -> DirectoryLock:
    """Make the directory where it is missing, lock it, and delete what a killed save left in it."""
    path.mkdir(parents=True, exist_ok=True)
    lock = DirectoryLock(path)
    if names := remove_leftovers(path):
        say(f"deleted unfinished {', '.join(names)} of a run that was killed")
    return lock


def run_identity(config: TrainingConfig, model_config: object, data: Mapping[str, object], world_size: int) -> dict:
    """Return a run's identity as JSON values: "training", "model", "data", "processes"."""
    model = dataclasses.asdict(model_config) if dataclasses.is_dataclass(model_config) else str(model_config)
    identity = {"training": identity_of(config), "model": model, "data": dict(data), "processes": world_size}
    return json.loads(json.dumps(identity, default=str))


def check_identity(identity: dict, directory: Path, *, resuming: bool, say: Callable[[str], None]) -> None:
    """Compare this run with the one whose run.json lies in a directory (of a run, or a checkpoint).

    Settings of length (max_steps, ...) may change on resuming; it is said.

    Raises:
        RunDirectoryError: for another run, or for the same one that is not being resumed.
    """
    try:
        there = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError) as error:
        raise RunDirectoryError(
            f"{directory} holds checkpoints but no readable {RUN_FILE} ({error}); choose another output_dir"
        ) from error
    differing = differences(there, _known(identity, there))
    length = {name: pair for name, pair in differing.items() if name.removeprefix("training.") in LENGTH_FIELDS}
    if serious := {name: pair for name, pair in differing.items() if name not in length}:
        raise RunDirectoryError(
            f"{directory} holds a different run: {tell_differences(serious)}. "
            "Choose another output_dir, delete that run, or repeat its settings with --resume-from-checkpoint last"
        )
    if not resuming:
        raise RunDirectoryError(
            f"{directory} already holds this run, with {len(list_checkpoints(directory))} checkpoints; "
            "go on with --resume-from-checkpoint last, or choose another output_dir"
        )
    if length:
        say(f"resuming with another length: {tell_differences(length)}")


def _known(identity: dict, there: dict) -> dict:
    """Return what both versions tell of a run: the one that began it may not have told as much."""
    return {
        section: {name: value for name, value in fields.items() if name in there.get(section, {})}
        if isinstance(fields, dict)
        else fields
        for section, fields in identity.items()
    }


def differences(there: dict, here: dict) -> dict[str, tuple[object, object]]:
    """Return "section.name" -> (value there, value here) for every leaf in which two trees of settings differ."""
    old, new = _leaves(there), _leaves(here)
    names = [*old, *(name for name in new if name not in old)]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def tell_differences(differing: Mapping[str, tuple[object, object]]) -> str:
    """Return what `differences` found in words, the first few of them."""
    told = [f"{name} is {there!r} there and {here!r} here" for name, (there, here) in differing.items()]
    more = f"; and {len(told) - _MAX_LISTED} more" if len(told) > _MAX_LISTED else ""
    return f"{'; '.join(told[:_MAX_LISTED])}{more}"


def write_run_file(directory: Path, config: TrainingConfig, identity: dict) -> None:
    """Write run.json: the resolved settings, the identity, versions, commit, threads."""
    content = {
        "config": dataclasses.asdict(config) | {"lr_scheduler_type": config.scheduler},
        "identity": identity,
        "versions": {
            "fastssl": fastssl.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "commit": _commit(),
        "machine": {"processor": platform.processor() or platform.machine(), "num_threads": torch.get_num_threads()},
    }
    write_whole(directory / RUN_FILE, json.dumps(content, indent=1, default=str) + "\n")


def tell_of_threads(checkpoint: Path, say: Callable[[str], None]) -> None:
    """Say so when a checkpoint was made with another number of threads, since that can change the last bits."""
    before = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))["machine"]["num_threads"]
    if before != torch.get_num_threads():
        say(
            f"{checkpoint.name} was made with {before} threads, now there are {torch.get_num_threads()}: the numbers "
            "that follow may differ in their last bits from those of a run that was not interrupted"
        )


@cache
def _commit() -> str | None:
    """Return the commit of the checkout that the package runs from, if it runs from one."""
    project = Path(fastssl.__file__).resolve().parent.parent
    if not (project / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(project), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def _leaves(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _leaves(value, f"{prefix}.{key}" if prefix else key).items()
    }
