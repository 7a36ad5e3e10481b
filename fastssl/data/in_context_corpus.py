"""A corpus from which even a small model learns to learn from its prompt, and tasks to measure that with.

Each document is one task, unnamed but for its family: some lines of the same hidden operation, laid out as prompts are.

    Translate:
    dako => zubi
    mefu => lora

A document's first line cannot be answered but by chance; from the second on, the lines above tell. What a model makes
of more lines is thus what it learns in its context, beside what its weights know: three made-up languages, sums.

Source: of the layout, Brown et al. 2020 (arXiv 2005.14165) figure 2.1; of documents as tasks, Chan et al. 2022
(arXiv 2205.05055).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from fastssl.data.files import make_directory, written_whole

INSTRUCTIONS = {"translate": "Translate:", "look-up": "Look up:", "pick": "Pick:", "compute": "Compute:"}
"""Family of tasks -> the line above its examples."""
CORPUS_FILE = "corpus.jsonl"
_NUM_LANGUAGES = 3
_DICTIONARY_WORDS = 4
_ROWS_OF_DICTIONARY = 10
_LARGEST_NUMBER = 49


@dataclass(frozen=True, kw_only=True)
class InContextCorpusConfig:
    """How much is written, and of what."""

    num_documents: int = 100_000
    """Documents of the corpus, in equal shares of the four families."""
    max_lines: int = 8
    """Most solved examples of a document; each has between one and so many."""
    num_words: int = 40
    """Words of the made-up vocabulary; each of the three languages has one for each of them."""
    num_questions: int = 400
    """Rows of each task's file."""
    seed: int = 0
    """Of words, documents and tasks."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_documents", 1),
            ("max_lines", 1),
            ("num_words", 2 * _DICTIONARY_WORDS),
            ("num_questions", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        possible = len(_all_words()) // (1 + _NUM_LANGUAGES)
        if self.num_words > possible:
            raise ValueError(f"num_words must be at most {possible}, got {self.num_words}")


class Question(NamedTuple):
    """One line of a document."""

    prompt: str
    """What is asked."""
    answer: str
    """What is right."""
    choices: list[str]
    """What would be right under some operation of the family, in alphabetical order; all of them different."""


class HiddenTask(NamedTuple):
    """One operation, which a document does not name."""

    operation: str
    """Its name."""
    ask: Callable[[random.Random], Question]
    """Draws a question."""


class TaskFamilies:
    """The operations of the four families.

    Args:
        num_words: of the vocabulary.
        seed: of its words.
    """

    def __init__(self, *, num_words: int, seed: int) -> None:
        words = _all_words()
        random.Random(seed).shuffle(words)
        self.words = words[:num_words]
        """What questions are made of."""
        self.languages = [words[num_words * n : num_words * (n + 1)] for n in range(1, 1 + _NUM_LANGUAGES)]
        """The same words in each of the languages."""

    def tasks(self, family: str, draw: random.Random) -> list[HiddenTask]:
        """Return the operations of a family, one of `INSTRUCTIONS`; of "look-up" a fresh dictionary."""
        if family == "look-up":
            return [self._dictionary(draw)]
        answers = {"translate": self._translations, "pick": self._places, "compute": self._results}[family]
        return [HiddenTask(name, partial(_ask, answers, name)) for name in answers(draw)[1]]

    def _translations(self, draw: random.Random) -> tuple[str, dict[str, str]]:
        """Return a word, and what becomes of it: it is copied, or put into one of the languages."""
        number = draw.randrange(len(self.words))
        answers = {f"language {n}": words[number] for n, words in enumerate(self.languages, start=1)}
        return self.words[number], {"copy": self.words[number], **answers}

    def _places(self, draw: random.Random) -> tuple[str, dict[str, str]]:
        """Return two words, and each of them."""
        first, second = draw.sample(self.words, 2)
        return f"{first} {second}", {"first": first, "second": second}

    def _results(self, draw: random.Random) -> tuple[str, dict[str, str]]:
        """Return two numbers, and what can be made of them."""
        while True:
            a, b = (draw.randint(1, _LARGEST_NUMBER) for _ in range(2))
            answers = {"sum": a + b, "difference": abs(a - b), "larger": max(a, b), "smaller": min(a, b)}
            if len(set(answers.values())) == len(answers):
                return f"{a} {b}", {name: str(value) for name, value in answers.items()}

    def _dictionary(self, draw: random.Random) -> HiddenTask:
        """Return a dictionary that no weights can know: only a word that has been shown can be looked up."""
        words = draw.sample(self.words, 2 * _DICTIONARY_WORDS)
        meanings = dict(zip(words[:_DICTIONARY_WORDS], words[_DICTIONARY_WORDS:], strict=True))

        def ask(draw: random.Random) -> Question:
            word = draw.choice(list(meanings))
            return Question(word, meanings[word], sorted(meanings.values()))

        return HiddenTask(" ".join(words), ask)


def _ask(
    answers: Callable[[random.Random], tuple[str, dict[str, str]]], operation: str, draw: random.Random
) -> Question:
    prompt, found = answers(draw)
    return Question(prompt, found[operation], sorted(found.values()))


def documents(config: InContextCorpusConfig) -> Iterator[str]:
    """Yield the documents of a corpus; the same config gives the same ones."""
    families = TaskFamilies(num_words=config.num_words, seed=config.seed)
    draw = random.Random(f"documents {config.seed}")
    names = list(INSTRUCTIONS)
    for number in range(config.num_documents):
        yield document(families, names[number % len(names)], draw.randint(1, config.max_lines), draw)


def document(families: TaskFamilies, family: str, num_lines: int, draw: random.Random) -> str:
    """Return solved examples of one operation of a family, under the family's instruction."""
    task = draw.choice(families.tasks(family, draw))
    questions = [task.ask(draw) for _ in range(num_lines)]
    return "\n".join((INSTRUCTIONS[family], *(f"{one.prompt} => {one.answer}" for one in questions)))


def task_rows(config: InContextCorpusConfig, family: str) -> Iterator[dict[str, object]]:
    """Yield the rows of a family's task, its operations (of "look-up", many dictionaries) in turn."""
    families = TaskFamilies(num_words=config.num_words, seed=config.seed)
    draw = random.Random(f"{family} {config.seed}")
    tasks = families.tasks(family, draw)
    if family == "look-up":
        more = config.num_questions // _ROWS_OF_DICTIONARY - 1
        tasks += [task for _ in range(more) for task in families.tasks(family, draw)]
    for number in range(config.num_questions):
        task = tasks[number % len(tasks)]
        question = task.ask(draw)
        yield {
            "prompt": question.prompt,
            "completion": question.answer,
            "choices": question.choices,
            "operation": task.operation,
            "instruction": INSTRUCTIONS[family],
        }


def write_in_context_corpus(config: InContextCorpusConfig, directory: Path) -> list[Path]:
    """Write the corpus and the task of each family, and return their paths, the corpus first.

    Args:
        config: how much of what.
        directory: made where missing; gets ``corpus.jsonl`` and a .jsonl file for each family.

    Raises:
        ValueError: A file stands in the place of the directory.
    """
    make_directory(directory)
    contents = {CORPUS_FILE: ({"text": text} for text in documents(config))}
    contents |= {f"{family}.jsonl": task_rows(config, family) for family in INSTRUCTIONS}
    return [_write_lines(directory / name, rows) for name, rows in contents.items()]


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write a .jsonl file, whole or not at all, and return its path."""
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def _all_words() -> list[str]:
    """Return all words of two open syllables, such as "dako"."""
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    return ["".join(pair) for pair in product(syllables, repeat=2)]
