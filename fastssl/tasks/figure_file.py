"""Figures into files, whatever letters are written in them."""

from __future__ import annotations

import warnings
from collections.abc import Set
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LETTERS_SHOWN = 10
_PLACEHOLDERS = "Last Resort"
"""Name of a font that has a box with a code for every letter there is."""


def write_figure(figure: Figure, path: Path, *, dpi: int = 130) -> None:
    """Draw a figure into a file.

    Text with letters that matplotlib's usual font does not have, such as Chinese ones, falls back to installed fonts
    that do. Letters that no font has are drawn as boxes; one warning tells which, and what helps.

    Args:
        figure: with its canvas.
        path: .png or another format of matplotlib.
        dpi: pixels per inch.
    """
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    letters = {letter for text in texts for letter in text.get_text() if letter.isprintable()}
    missing = letters - _letters_of(findfont(FontProperties()))
    if missing:
        families, missing = _families_with(frozenset(missing))
        for text in texts:
            text.set_fontfamily([*rcParams["font.family"], *families])
    if missing:
        shown = "".join(sorted(missing)[:_LETTERS_SHOWN]) + ("..." if len(missing) > _LETTERS_SHOWN else "")
        warnings.warn(
            f"{path}: no installed font has the letters {shown}, which are drawn as boxes; install one that does, such "
            "as Noto Sans CJK for Chinese, Japanese and Korean (Debian's package fonts-noto-cjk)",
            stacklevel=3,
        )
    with warnings.catch_warnings():
        # It is said above, once, and not once for each letter.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(path, dpi=dpi)


@cache
def _families_with(letters: Set[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return installed fonts that have, one after the other, the most of some letters, and the letters none has."""
    from matplotlib.font_manager import fontManager

    files = {
        font.name: font.fname
        for font in sorted(fontManager.ttflist, key=lambda font: ("Sans" in font.name, font.name))
        if font.style == "normal" and not font.name.startswith(_PLACEHOLDERS)
    }
    families, left = [], set(letters)
    while left:
        # Of fonts that have as many letters, one without serifs.
        best = max(reversed(files), key=lambda name: len(left & _letters_of(files[name])))
        found = left & _letters_of(files[best])
        if not found:
            break
        families.append(best)
        left -= found
    return tuple(families), frozenset(left)


@cache
def _letters_of(file: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(file).get_charmap()))
