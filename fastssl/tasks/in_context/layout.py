"""How a prompt is laid out: an instruction, examples with their answers, a question without one.

    Translate English to French:
    sea otter => loutre de mer
    peppermint => menthe poivrée
    cheese =>

Source: Brown et al. 2020 (arXiv 2005.14165), figure 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Example(NamedTuple):
    """A question and its answer."""

    prompt: str
    """The question."""
    completion: str
    """The answer."""


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    r"""The texts around questions and answers; \n and \t in them are a line end and a tab."""

    instruction: tuple[str, ...] = ()
    """What is asked for, a line above the examples: one for all tasks, or one a task; without, that of the file's
    column "instruction", where it has one."""
    separator: str | None = None
    """Between question and answer; None: " => ", or nothing where the answers of the file begin with a space."""
    example_separator: str | None = None
    """Between an answer and the next question; None: a line end, or nothing where the questions begin with one."""
    begin_with_bos: bool | None = None
    """Put the model's first token in front of a prompt; None: where the model's tokenizer does so, as those do that
    fastssl trains."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the prompts of one task are laid out."""

    instruction: str = ""
    """A line above everything; "": none."""
    separator: str = " => "
    """Between question and answer."""
    example_separator: str = "\n"
    """Behind the instruction and behind each answer."""

    @classmethod
    def of(cls, config: LayoutConfig, task: int, examples: Sequence[Example], instruction: str = "") -> Layout:
        """Return the layout of task number `task`, which its examples and file decide where the config does not."""
        instructions = config.instruction
        instruction = instructions[task if len(instructions) > 1 else 0] if instructions else instruction
        laid_out = all(example.completion[:1].isspace() for example in examples)
        own_lines = all(example.prompt.startswith("\n") for example in examples)
        separator = ("" if laid_out else " => ") if config.separator is None else config.separator
        between = ("" if own_lines else "\n") if config.example_separator is None else config.example_separator
        return cls(
            instruction=_unescaped(instruction),
            separator=_unescaped(separator),
            example_separator=_unescaped(between),
        )

    def prompt(self, question: str, demonstrations: Sequence[Example]) -> str:
        """Return the text in front of the answer to a question; it ends without a space, which the answer begins with.

        Args:
            question: the one that is asked.
            demonstrations: examples above it, first ones first.
        """
        head = self.instruction + self.example_separator if self.instruction else ""
        shown = "".join(
            example.prompt + self.separator + example.completion + self.example_separator for example in demonstrations
        )
        return head + shown + question + self.separator.rstrip(" ")

    def answer(self, completion: str) -> str:
        """Return an answer as it stands behind a prompt."""
        return self.separator[len(self.separator.rstrip(" ")) :] + completion


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")
