"""From questions to prompts that fit into a model's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastssl.data.continuation import encode_continuations
from fastssl.data.tokenizer import Tokenizer
from fastssl.tasks.in_context.layout import Example, Layout
from fastssl.tasks.in_context.task_file import InContextTask


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a model can read."""

    tokenizer: Tokenizer
    """Of the model."""
    positions: int
    """Its longest text, in tokens."""
    bos: int | None
    """Token in front of every prompt; None: none."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question as it is asked."""

    row: int
    """Of the task."""
    text: str
    """The text in front of the answer."""
    tokens: tuple[int, ...]
    """The same in tokens."""
    shots: int
    """Examples that it shows."""
    dropped: int
    """Examples that found no room in it."""


class PromptMaker:
    """Lays questions out for a model, with as many of their examples as fit.

    Args:
        task: the questions.
        layout: of its prompts.
        room: what the model can read.
    """

    def __init__(self, task: InContextTask, layout: Layout, room: Room) -> None:
        self.task, self.layout, self.room = task, layout, room

    def make(
        self, rows: Sequence[int], draws: Sequence[Sequence[Example]], answer_tokens: Sequence[int]
    ) -> list[Prompt]:
        """Return the prompts of some rows.

        Args:
            rows: of the task.
            draws: the examples above each, the first of which are left out until the prompt fits.
            answer_tokens: room to leave behind each.

        Raises:
            ValueError: where a question does not fit without any example; names its line.
        """
        texts = [self._text(row, draw) for row, draw in zip(rows, draws, strict=True)]
        encoded = self._encode(texts)
        return [
            self._fitting(row, draw, text, tokens, self.room.positions - needed)
            for row, draw, text, tokens, needed in zip(rows, draws, texts, encoded, answer_tokens, strict=True)
        ]

    def continuations(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]
    ) -> list[tuple[list[int], list[int]]]:
        """Return (context, continuation) tokens of each answer behind its prompt, prompt by prompt."""
        pairs = [(p.text, self.layout.answer(a)) for p, own in zip(prompts, answers, strict=True) for a in own]
        bos = [] if self.room.bos is None else [self.room.bos]
        return [
            (bos + context, continuation) for context, continuation in encode_continuations(self.room.tokenizer, pairs)
        ]

    def longest_answer(self, answers: Sequence[str]) -> int:
        """Return how many tokens the longest of some answers has behind a prompt, a few more where they are joined."""
        return max(map(len, self.room.tokenizer.encode_many([self.layout.answer(answer) for answer in answers]))) + 1

    def _fitting(self, row: int, draw: Sequence[Example], text: str, tokens: list[int], room: int) -> Prompt:
        dropped = 0
        while len(tokens) > room:
            if dropped == len(draw):
                raise ValueError(
                    f"{self.task.places[row]}: the question has {len(tokens)} tokens without any example, and the "
                    f"model has {self.room.positions} positions, {self.room.positions - room} of them for the answer; "
                    "leave the row out, let answers be shorter (max_new_tokens), or take a model with more"
                )
            dropped += 1
            text = self._text(row, draw[dropped:])
            (tokens,) = self._encode([text])
        return Prompt(row=row, text=text, tokens=tuple(tokens), shots=len(draw) - dropped, dropped=dropped)

    def _text(self, row: int, draw: Sequence[Example]) -> str:
        return self.layout.prompt(self.task.examples[row].prompt, draw)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        first = [] if self.room.bos is None else [self.room.bos]
        return [first + ids for ids in self.room.tokenizer.encode_many(texts)]
