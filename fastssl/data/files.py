"""Files that appear whole or not at all, and that tell when they were altered."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_CHECKSUM_KEY = "sha256_of_the_rest"


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def replaceable_file(path: Path) -> Path:
    """Return the file that writing ``path`` replaces: itself, or what it is a symbolic link to.

    Raises:
        ValueError: There is something that is not a regular file, such as a device or a pipe.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise ValueError(f"{path} is not a regular file, which alone can be replaced as a whole; name another file")
    return target


def make_directory(path: Path) -> None:
    """Make a directory and those above it, as far as they are missing.

    Raises:
        ValueError: A file of that name stands in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), path)
        raise ValueError(f"{path} must be a directory, but {file} is a file; name another directory") from error


def write_with_usual_mode(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written by a library that makes it readable for its owner alone, and give it the usual mode."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    write(path)
    path.chmod(mode)


def replace_file(temporary: Path, path: Path) -> None:
    """Bring a finished temporary file to disk and give it its name, in one step that survives a power cut.

    Raises:
        ValueError: ``path`` is something that is not a regular file; ask ``replaceable_file`` before the work.
    """
    path = replaceable_file(path)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; it takes the place of ``path`` at the end, or, after an error, nothing does.

    Raises:
        ValueError: ``path`` is something that is not a regular file.
    """
    path = replaceable_file(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_checked_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step; its last key holds a checksum of the others."""
    checked = {**content, _CHECKSUM_KEY: _checksum(content)}
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(checked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read what ``write_checked_json`` wrote.

    Raises:
        ValueError: The file was truncated or altered.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        intact = content.pop(_CHECKSUM_KEY) == _checksum(content)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it is not the JSON that was written") from error
    if not intact:
        raise ValueError(f"{path} is damaged: its content does not match its checksum")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
