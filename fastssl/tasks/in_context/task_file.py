"""A task's questions, answers and choices, from a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from fastssl.data.table import Table, read_table
from fastssl.tasks.in_context.config import TaskColumnConfig
from fastssl.tasks.in_context.layout import Example

PROMPT_COLUMNS = ("prompt", "context", "text", "sentence", "question", "input")
COMPLETION_COLUMNS = ("completion", "label", "answer", "target")
MOST_CHOICES = 20
"""Up to so many different answers are taken as the choices where none are given."""


@dataclass(frozen=True, kw_only=True)
class InContextTask:
    """Rows of a file, ready to be asked."""

    name: str
    """The file's name without its ending."""
    examples: tuple[Example, ...]
    """The questions with their answers."""
    choices: tuple[tuple[str, ...], ...] | None
    """For each, the answers to choose among, the right one included; None: there are none."""
    groups: tuple[str, ...] | None = None
    """What part of the file each belongs to; None: the file has no parts."""
    instruction: str | None = ""
    """The line above the examples, where the file has a column "instruction"; None: its rows have different ones."""
    reworded: frozenset[str] = frozenset()
    """Answers of the file in whose place stand words of `label_words`."""
    places: tuple[str, ...]
    """Where each stands, for errors."""


def read_task(path: Path, columns: TaskColumnConfig, *, needs_choices: bool | None = None) -> InContextTask:
    """Read a task.

    Args:
        path: a .jsonl, .tsv or .csv file.
        columns: where things stand in it.
        needs_choices: whether there must be choices; None: they are taken where they are given or few.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing or holds no text, a row has no answer, or one that is not among its choices, or
            there are none where they are needed.
    """
    table = read_table(path)
    words = dict(pair.split("=", 1) for pair in columns.label_words)
    labels = _column(table, columns.completion_column, COMPLETION_COLUMNS, "completion")
    if "" in labels:
        raise ValueError(f"{table.place(labels.index(''))}: the answer is empty; give one, or leave the row out")
    completions = [words.get(label, label) for label in labels]
    examples = tuple(Example(*pair) for pair in zip(_prompts(table, columns), completions, strict=True))
    places = tuple(map(table.place, range(len(examples))))
    choices = _choices(table, columns, completions, words)
    if choices is None and needs_choices:
        raise ValueError(
            f"{path} has {len(set(completions)):,} different answers and no column {columns.choices_column!r}; name "
            f"the choices, or score by generation"
        )
    for example, place, own in zip(examples, places, choices or (), strict=choices is not None):
        if example.completion not in own:
            raise ValueError(f"{place}: the answer {example.completion!r} is not among the choices {list(own)}")
    grouped = columns.group_column
    instructions = {str(value or "") for value in table.columns.get("instruction", ("",))}
    return InContextTask(
        name=path.name.split(".")[0],
        examples=examples,
        choices=choices,
        groups=None if grouped is None else tuple(_column(table, grouped, (), "group")),
        instruction=instructions.pop() if len(instructions) == 1 else None,
        reworded=frozenset(words) & {*labels, *_listed_choices(table, columns)},
        places=places,
    )


def _prompts(table: Table, columns: TaskColumnConfig) -> list[str]:
    if columns.template is None:
        return _column(table, columns.prompt_column, PROMPT_COLUMNS, "prompt")
    template = columns.template.replace("\\n", "\n")
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"template {columns.template!r} cannot be read: {error}; name columns in braces, and double other braces"
        ) from error
    if wrong := [name for name in names if name not in table.columns]:
        found = ", ".join(table.columns)
        raise ValueError(f"template {columns.template!r}: no column {wrong[0]!r}; {table.path} has {found}")
    values = {name: _column(table, name, (), "template") for name in names}
    return [template.format_map({name: values[name][row] for name in names}) for row in range(len(table.lines))]


def _find_column(table: Table, name: str | None, known: Sequence[str], what: str) -> str:
    """Return the name of a column, given or the first of those that are known."""
    found = next((column for column in ((name,) if name else known) if column in table.columns), None)
    if found is None:
        expected = repr(name) if name else f"of {', '.join(known)}"
        raise ValueError(
            f"{table.path} has no column {expected}, but {', '.join(table.columns)}; name it as {what}_column"
        )
    return found


def _column(table: Table, name: str | None, known: Sequence[str], what: str) -> list[str]:
    found = _find_column(table, name, known, what)
    values = table.columns[found]
    for row, value in enumerate(values):
        if value is None or isinstance(value, list | dict):
            raise ValueError(f"{table.place(row)}: the column {found!r} must hold text, got {value!r:.60}")
    return [value if isinstance(value, str) else str(value) for value in values]


def _choices(
    table: Table, columns: TaskColumnConfig, completions: list[str], words: dict[str, str]
) -> tuple[tuple[str, ...], ...] | None:
    if columns.choices:
        return (tuple(dict.fromkeys(columns.choices)),) * len(completions)
    if columns.choices_column != TaskColumnConfig.choices_column:
        _find_column(table, columns.choices_column, (), "choices")
    if columns.choices_column in table.columns:
        return tuple(
            _own_choices(table, row, value, words) for row, value in enumerate(table.columns[columns.choices_column])
        )
    different = tuple(sorted(set(completions)))
    return (different,) * len(completions) if len(different) <= MOST_CHOICES else None


def _own_choices(table: Table, row: int, value: object, words: dict[str, str]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{table.place(row)}: choices must be a list of texts, got {value!r:.60}")
    return tuple(dict.fromkeys(words.get(str(choice), str(choice)) for choice in value))


def _listed_choices(table: Table, columns: TaskColumnConfig) -> set[str]:
    """Return all choices that the rows list for themselves, as they stand there."""
    lists = (value for value in table.columns.get(columns.choices_column, ()) if isinstance(value, list))
    return {str(choice) for value in lists for choice in value}
