"""Texts of any number, read a window at a time and made ready by a thread of their own while the model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Ready, Result = TypeVar("Item"), TypeVar("Ready"), TypeVar("Result")

TEXTS_AT_ONCE, CHARACTERS_AT_ONCE = 1024, 1 << 22
"""Size of a window: at most so many texts, and no further text once it has so many characters."""


def characters_of_text(number: int, item: object) -> int:
    """Return the number of characters of a text; ValueError for something else, named by its number in the stream."""
    if not isinstance(item, str):
        raise ValueError(f"texts must be strings, got {type(item).__name__} as number {number}")
    return len(item)


def stream_windows(
    items: Iterable[Item],
    prepare: Callable[[list[Item]], Ready],
    compute: Callable[[Ready], Result],
    *,
    texts_at_once: int = TEXTS_AT_ONCE,
    characters_of: Callable[[int, Item], int] = characters_of_text,
) -> Iterator[Result]:
    """Yield ``compute(prepare(window))`` for each window of a stream of texts, in their order.

    While `compute` has one window, a thread runs `prepare` on the next: two windows are in memory, however long the
    stream is. Several threads may stream at once.

    Args:
        items: strings, or what `characters_of` takes; may be endless.
        prepare: cuts a window into tokens.
        compute: runs the model.
        texts_at_once: most items of a window; few for a source that waits for answers, such as a queue.
        characters_of: (number in the stream, item) -> its characters; raises ValueError for an item that is none.

    Raises:
        ValueError: at once for one string instead of several or a `texts_at_once` below 1; on the way for a wrong item.
    """
    if isinstance(items, str):
        raise ValueError("texts must be several strings, got one; put it into a list")
    if texts_at_once < 1:
        raise ValueError(f"texts_at_once must be at least 1, got {texts_at_once}")
    return _one_ahead(_windows(items, texts_at_once, characters_of), prepare, compute)


def one_by_one(parts: Iterable[Iterable[Result]]) -> Iterator[Result]:
    """Yield what is in the parts of a stream; closing it closes the stream."""
    for part in parts:
        yield from part


def strings(name: str, values: Iterable[str]) -> list[str]:
    """Return several strings as a list.

    Raises:
        ValueError: for one string, or something else among them; `name` says what they are.
    """
    if isinstance(values, str):
        raise ValueError(f"{name} must be several strings, got one; put it into a list")
    values = list(values)
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{name} must be strings, got {type(value).__name__} as number {number}")
    return values


def _one_ahead(
    windows: Iterator[list[Item]], prepare: Callable[[list[Item]], Ready], compute: Callable[[Ready], Result]
) -> Iterator[Result]:
    with ThreadPoolExecutor(max_workers=1) as preparing:
        ready = None
        for window in windows:
            following = preparing.submit(prepare, window)
            if ready is not None:
                yield compute(ready.result())
            ready = following
        if ready is not None:
            yield compute(ready.result())


def _windows(
    items: Iterable[Item], texts_at_once: int, characters_of: Callable[[int, Item], int]
) -> Iterator[list[Item]]:
    window, num_characters = [], 0
    for number, item in enumerate(items):
        num_characters += characters_of(number, item)
        window.append(item)
        if len(window) >= texts_at_once or num_characters >= CHARACTERS_AT_ONCE:
            yield window
            window, num_characters = [], 0
    if window:
        yield window
