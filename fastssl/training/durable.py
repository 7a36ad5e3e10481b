"""Files that are there whole or not at all, also after a power cut."""

import hashlib
import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Wait until a file's content is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, content: str) -> None:
    """Replace a text file in one step: written under a hidden name, synced, renamed."""
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        hidden.write_text(content, encoding="utf-8")
        sync_file(hidden)
        hidden.replace(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
