"""Long texts in pieces, cut where tokens end anyway."""

from collections.abc import Iterator

PIECE_CHARACTERS = 1 << 16


def text_pieces(text: str, max_characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    r"""Cut a text into pieces of at most ``max_characters``; joined they are the text.

    A piece begins with a single space between two visible characters, or else behind a line end between such. No token
    of byte-level BPE reaches across these places: the patterns of GPT-2 and its successors look ahead, never back, a
    space belongs to the word behind it, and a line end may belong to the punctuation in front. The tokens of the pieces
    are then those of the text. Where a piece has no such place it is cut at its end, which may split a word; bytes and
    characters are the same tokens wherever a text is cut.
    """
    begin = 0
    while len(text) - begin > max_characters:
        end = begin + max_characters
        cut = _last_place(text, " ", begin, end)
        if cut is None:
            line_end = _last_place(text, "\n", begin, end)
            cut = end if line_end is None else line_end + 1
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def pieces_between_spaces(text: str, max_characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text into pieces of about ``max_characters``; with a space between each two they are the text.

    The spaces stand alone between visible characters. They are left to tokenizers that put one in front of every text:
    the tokens of the pieces are then those of the text. Where there is no such space a piece is longer.
    """
    begin = 0
    while len(text) - begin > max_characters:
        end = begin + max_characters
        cut = _last_place(text, " ", begin, end)
        if cut is None:
            cut = _first_place(text, " ", end)
        if cut is None:
            break
        yield text[begin:cut]
        begin = cut + 1
    yield text[begin:]


def _last_place(text: str, character: str, begin: int, end: int) -> int | None:
    """Return the last place in (begin, end) where ``character`` stands alone between two visible ones."""
    while (place := text.rfind(character, begin + 1, end)) > 0:
        if _stands_alone(text, place):
            return place
        end = place
    return None


def _first_place(text: str, character: str, begin: int) -> int | None:
    """Return the first place from ``begin`` on where ``character`` stands alone between two visible ones."""
    while (place := text.find(character, begin, len(text) - 1)) > 0:
        if _stands_alone(text, place):
            return place
        begin = place + 1
    return None


def _stands_alone(text: str, place: int) -> bool:
    return not text[place - 1].isspace() and not text[place + 1].isspace()
