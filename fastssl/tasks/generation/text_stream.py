"""Tokens to text while they come: no character is shown before all of its bytes are there."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import groupby

from fastssl.data.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_TOKENS_IN_FRONT = 4
"""How many tokens of the prompt are decoded with the first new one: some tokenizers join words by what is in front."""


class TextStream:
    """Turns the tokens of one text into text, piece by piece.

    The pieces joined are the text of all tokens together. Where the last token ends inside a character, its text is
    held back until the rest has come, or something has come that no character is spelt by. Where tokens are bytes by
    name, as Llama's ``<0xE6>``, and some of them are no character, the whole ones beside them stay; the tokenizer's own
    decoder gives up all bytes in a row then.

    Args:
        tokenizer: of the tokens.
        prompt: what stands in front; its text is not given out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._byte_of = tokenizer.named_bytes
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        front = list(prompt[-_TOKENS_IN_FRONT:])
        for are_bytes, group in groupby(front, key=self._byte_of.__contains__):
            self._bytes.reset()
            if are_bytes:
                self._bytes.decode(bytes(map(self._byte_of.__getitem__, group)))
        self._go_on_behind(front)

    def add(self, *tokens: int) -> str:
        """Take one token or several and return the text that they complete, which may be empty."""
        groups = groupby(tokens, key=self._byte_of.__contains__)
        return "".join(self._add_bytes([*group]) if are_bytes else self._add([*group]) for are_bytes, group in groups)

    def finish(self) -> str:
        """Return the text that was held back to the end."""
        return self._bytes.decode(b"", final=True) + self._give(self._tokenizer.decode(self._tokens))

    def _add(self, tokens: list[int]) -> str:
        broken = self._bytes.decode(b"", final=True)
        self._tokens += tokens
        text = self._tokenizer.decode(self._tokens)
        unfinished = text.endswith(_REPLACEMENT)
        piece = self._give(text[: len(text) - unfinished])
        if not unfinished:
            # What stands in front of the tokens that have come since the last whole character is needed no more.
            self._go_on_behind(self._tokens[self._whole :])
        return broken + piece

    def _add_bytes(self, tokens: list[int]) -> str:
        held = self._give(self._tokenizer.decode(self._tokens))
        self._go_on_behind([*self._tokens, *tokens][-_TOKENS_IN_FRONT:])
        return held + self._bytes.decode(bytes(map(self._byte_of.__getitem__, tokens)))

    def _go_on_behind(self, tokens: list[int]) -> None:
        self._tokens, self._whole, self._given = tokens, len(tokens), len(self._tokenizer.decode(tokens))

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

    def ends(self, tokenizer: Tokenizer, tokens: Sequence[int], prompt: Sequence[int] = ()) -> bool:
        """Return whether a stop string has come into the text of tokens behind a prompt by the last of them."""
        if not self.strings:
            return False
        # A token has at least a byte, so what the last one completes lies in as many tokens as the string has bytes.
        first = max(0, len(tokens) - self._longest_bytes)
        stream = TextStream(tokenizer, tokens[:first] or prompt)
        tail = stream.add(*tokens[first:]) + stream.finish()
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
