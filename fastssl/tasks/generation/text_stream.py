"""Tokens to text while they come: no character is shown before all of its bytes are there."""

from __future__ import annotations

from collections.abc import Sequence

from fastssl.data.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_TOKENS_IN_FRONT = 4
"""How many tokens of the prompt are decoded with the first new one: some tokenizers join words by what is in front."""


class TextStream:
    """Turns the tokens of one text into text, piece by piece.

    The pieces joined are the text of all tokens together. Where the last token ends inside a character, its text is
    held back until the rest has come, or something has come that no character is spelt by.

    Args:
        tokenizer: of the tokens.
        prompt: what stands in front; its text is not given out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-_TOKENS_IN_FRONT:])
        self._whole = len(self._tokens)
        self._given = len(tokenizer.decode(self._tokens))

    def add(self, token: int) -> str:
        """Take one token and return the text that it completes, which may be empty."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        unfinished = text.endswith(_REPLACEMENT)
        piece = self._give(text[: len(text) - unfinished])
        if not unfinished:
            # What stands in front of the tokens that have come since the last whole character is needed no more.
            self._tokens = self._tokens[self._whole :]
            self._whole = len(self._tokens)
            self._given = len(self._tokenizer.decode(self._tokens))
        return piece

    def finish(self) -> str:
        """Return the text that was held back to the end."""
        return self._give(self._tokenizer.decode(self._tokens))

    def _give(self, text: str) -> str:
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        return piece


class StopStrings:
    """Finds the first of several strings in new text, across the borders of tokens.

    Args:
        strings: none of them empty.

    Raises:
        ValueError: for an empty string, or one string instead of several.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if isinstance(strings, str):
            raise ValueError("stop must be several strings, got one; put it into a list")
        self.strings = tuple(strings)
        if not all(self.strings):
            raise ValueError("a stop string is empty, which would stop every text; leave it out")
        self._longest_bytes = max((len(string.encode()) for string in self.strings), default=0)

    def ends(self, tokenizer: Tokenizer, tokens: Sequence[int]) -> bool:
        """Return whether a stop string has come into the text by the last token."""
        if not self.strings:
            return False
        # A token has at least a byte, so what the last one completes lies in as many tokens as the string has bytes.
        tail = tokenizer.decode(tokens[-self._longest_bytes - 1 :])
        return any(string in tail for string in self.strings)

    def cut(self, text: str) -> str:
        """Return the text in front of the first stop string."""
        found = [place for string in self.strings if (place := text.find(string)) >= 0]
        return text[: min(found)] if found else text

    def safe_length(self, text: str) -> int:
        """Return how much of a text can be shown while more is to come: no stop string can begin in it."""
        for length in range(min(len(text), max(map(len, self.strings), default=1) - 1), 0, -1):
            if any(string.startswith(text[-length:]) for string in self.strings):
                return len(text) - length
        return len(text)
