"""Long texts in pieces, cut where tokens end anyway."""

from collections.abc import Iterator

PIECE_CHARACTERS = 1 << 16


def text_pieces(text: str, max_characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    r"""Cut a text into pieces of at most ``max_characters``; joined they are the text.

    A piece begins with a single space between two visible characters, or else with a line end behind one. No token of
    byte-level BPE reaches across the first of these places, nor, in GPT-2's, across the second: its pattern and its
    successors' look ahead, never back, and a space belongs to the word behind it. The tokens of the pieces are then
    those of the text. Where a piece has no such place it is cut at its end, which may split a word; bytes and
    characters are the same tokens wherever a text is cut.
    """
    begin = 0
    while len(text) - begin > max_characters:
        end = begin + max_characters
        cut = _last_place(text, " ", begin, end) or _last_place(text, "\n", begin, end) or end
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _last_place(text: str, character: str, begin: int, end: int) -> int | None:
    """Return the last place in (begin, end) where ``character`` stands alone between two visible ones."""
    while (place := text.rfind(character, begin + 1, end)) > 0:
        if not text[place - 1].isspace() and not text[place + 1].isspace():
            return place
        end = place
    return None
