"""What measuring in-context learning is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastssl.tasks.in_context.layout import LayoutConfig

Scoring = Literal["likelihood", "generation"]


@dataclass(frozen=True, kw_only=True)
class TaskColumnConfig:
    """Where the questions, the answers and the choices stand in a task's file."""

    prompt_column: str | None = None
    """Column of the questions; None: prompt, context, text, sentence, question or input, whichever is there."""
    completion_column: str | None = None
    """Column of the answers; None: completion, label, answer or target."""
    choices_column: str = "choices"
    """Column of each row's own choices, a list, where a .jsonl file has one."""
    choices: tuple[str, ...] = ()
    """The answers to choose among, for all rows; without them and the column, the different answers of the file."""
    label_words: tuple[str, ...] = ()
    """Words for the answers in the file, such as 0=negative 1=positive."""
    group_column: str | None = None
    """Column that parts the rows of a file, such as the direction of a translation: a prompt shows examples of the
    question's own group alone."""
    template: str | None = None
    """Make the question of several columns, such as "{premise} Question: {hypothesis} True or False?"."""

    def __post_init__(self) -> None:
        if wrong := [pair for pair in self.label_words if "=" not in pair]:
            raise ValueError(f"label_words are pairs such as 0=negative 1=positive, got {wrong[0]!r}")


@dataclass(frozen=True, kw_only=True)
class DemonstrationConfig:
    """Which examples stand in the prompt."""

    shots: tuple[int, ...] = (0, 1, 5)
    """Numbers of examples in the prompt; those of a smaller number are among those of a larger one."""
    demonstration_file: tuple[Path, ...] = ()
    """Files to draw them from, one a task; without, from the other rows of the task's file."""
    shared_demonstrations: bool = False
    """Show every question the same examples, which are read once for all; otherwise each gets its own draw."""
    num_seeds: int = 3
    """Draws of examples; seeds count up from --seed."""
    seed: int = 0
    """Of the draws, and of which rows are asked."""
    skip_shuffled_control: bool = False
    """Leave out the control that shows the examples with answers of other rows: what a model gets right then, it has
    not learnt from the pairs."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots must be different numbers from 0, such as 0 1 5, got {list(self.shots)}")
        if self.num_seeds < 1:
            raise ValueError(f"num_seeds must be at least 1, got {self.num_seeds}")


@dataclass(frozen=True, kw_only=True)
class InContextConfig:
    """Models, tasks, and how they are asked."""

    model: tuple[Path, ...]
    """Directories of causal language models, each with its tokenizer."""
    task: tuple[Path, ...]
    """Files of questions and answers: .jsonl, .tsv or .csv."""
    output_dir: Path
    """Gets the tables, the summary and the figures."""
    columns: TaskColumnConfig = field(default_factory=TaskColumnConfig)
    """Where questions and answers stand."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """How a prompt is laid out."""
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    """Which examples stand in it."""
    scoring: Literal["auto", "likelihood", "generation"] = "auto"
    """likelihood: the likeliest of the choices is the model's answer; generation: what it writes, up to the end of the
    line, must be the answer; auto: likelihood where there are choices, or few different answers."""
    max_new_tokens: int | None = None
    """Longest answer that is generated, in tokens; None: four more than the longest right one."""
    max_examples: int | None = None
    """Ask at most so many rows, drawn by the seed; None: all."""
    tokens_per_batch: int = 4096
    """About how many tokens go through the model at once."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in."""
    device: str = "auto"
    """Where: auto (a GPU where there is one; int8 always on the CPU), cpu, cuda or cuda:1."""

    def __post_init__(self) -> None:
        given = len(self.demonstrations.demonstration_file)
        if given not in (0, len(self.task)):
            raise ValueError(f"demonstration_file takes one file a task, {len(self.task)}, or none; got {given}")
        if len(self.layout.instruction) not in (0, 1, len(self.task)):
            raise ValueError(f"instruction takes one text, or one a task, got {len(self.layout.instruction)}")
        for name in ("model", "task"):
            names = [path.absolute() for path in getattr(self, name)]
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{name} takes at least one path, none of them twice, got {len(names)}")
        for name in ("max_examples", "max_new_tokens", "tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
