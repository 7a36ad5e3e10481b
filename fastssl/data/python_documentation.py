"""Real English that every Python installation carries: the corpus of the demonstration, without files or network."""

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "ensurepip", "turtledemo"}
_MIN_DOCUMENT_CHARACTERS = 200


def python_documentation() -> Iterator[str]:
    """Yield documents of English prose: the topics of the language reference, then one per standard module.

    A module's document is its docstring followed by those of its classes and functions. Code is left out: examples,
    signatures, tables and rulers are dropped line by line. The order is fixed, so a given Python gives one corpus.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for name in sorted(topics):
        yield from _prose([topics[name]], seen)
    for path in standard_modules().values():
        yield from _prose(_docstrings(path), seen)


def standard_modules() -> dict[str, Path]:
    """Return the modules of the standard library that are written in Python, in order: dotted name -> file."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(stdlib.rglob("*.py"))
    parts = {path: path.relative_to(stdlib).with_suffix("").parts for path in files}
    return {".".join(names): path for path, names in parts.items() if not _SKIPPED_FOLDERS & set(names)}


def _docstrings(path: Path) -> list[str]:
    tree = ast.parse(path.read_bytes())
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return [doc for node in ast.walk(tree) if isinstance(node, documented) and (doc := ast.get_docstring(node))]


def _prose(texts: list[str], seen: set[str]) -> Iterator[str]:
    """Yield the paragraphs of `texts` that read as English and were not seen before, as one document."""
    paragraphs = []
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
            words = " ".join(line.strip() for line in paragraph.splitlines() if _is_prose(line))
            if words and words not in seen:
                seen.add(words)
                paragraphs.append(words)
    document = "\n".join(paragraphs)
    if len(document) >= _MIN_DOCUMENT_CHARACTERS:
        yield document


def _is_prose(line: str) -> bool:
    stripped = line.strip()
    if stripped.startswith((">>>", "...", "|", "+-", "==", "--", "**", "~~", "#", "@", "$")):
        return False
    letters = sum(character.isalpha() or character == " " for character in stripped)
    return len(stripped) > 3 and letters >= 0.8 * len(stripped)


if __name__ == "__main__":
    print("\n\n".join(python_documentation()))
