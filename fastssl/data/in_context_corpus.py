"""A corpus from which even a small model learns to learn from its prompt, and tasks to measure that with.

Each document is one task, unnamed but for its family: some lines of the same hidden operation, laid out as prompts are.

    Translate:
    dako => zubi
    mefu => lora

A document's first line cannot be answered but by chance among the operations of its family; from the second on, the
lines above tell. What a model makes of more lines is thus what it learns in its context, beside what its weights know:
the words of three made-up languages, sums.

Source: of the layout, Brown et al. 2020 (arXiv 2005.14165) figure 2.1; of documents as tasks, Chan et al. 2022
(arXiv 2205.05055).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

INSTRUCTIONS = {"translate": "Translate:", "pick": "Pick:", "neighbour": "Look up:", "compute": "Compute:"}
"""Family of tasks -> the line above its examples."""
CORPUS_FILE = "corpus.jsonl"
_NUM_LANGUAGES = 3
_LIST_LENGTH = 4
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
            ("num_words", 2 * _LIST_LENGTH),
            ("num_questions", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        possible = len(_all_words()) // (1 + _NUM_LANGUAGES)
        if self.num_words > possible:
            raise ValueError(f"num_words must be at most {possible}, got {self.num_words}")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One line of a document."""

    prompt: str
    """What is asked."""
    answers: Mapping[str, str]
    """Operation -> what is right under it; all of them different."""


class TaskFamilies:
    """Draws questions of the four families.

    Args:
        num_words: of the vocabulary.
        seed: of its words.
    """

    def __init__(self, *, num_words: int, seed: int) -> None:
        words = _all_words()
        random.Random(seed).shuffle(words)
        self.words = words[:num_words]
        """What all families but the last are made of."""
        self.languages = [words[num_words * n : num_words * (n + 1)] for n in range(1, 1 + _NUM_LANGUAGES)]
        """The same words in each of the languages."""

    def question(self, family: str, draw: random.Random) -> Question:
        """Return a random question of a family, one of `INSTRUCTIONS`."""
        return getattr(self, f"_{family}")(draw)

    def _translate(self, draw: random.Random) -> Question:
        """A word, copied or in one of the languages."""
        number = draw.randrange(len(self.words))
        answers = {f"language {n}": words[number] for n, words in enumerate(self.languages, start=1)}
        return Question(prompt=self.words[number], answers={"copy": self.words[number], **answers})

    def _pick(self, draw: random.Random) -> Question:
        """Some words: the one in a certain place."""
        words = draw.sample(self.words, _LIST_LENGTH)
        return Question(prompt=" ".join(words), answers={f"place {n}": word for n, word in enumerate(words, start=1)})

    def _neighbour(self, draw: random.Random) -> Question:
        """Some words and one of them again: the word in front of it or behind it."""
        words = draw.sample(self.words, _LIST_LENGTH)
        asked = draw.randrange(1, _LIST_LENGTH - 1)
        answers = {"before": words[asked - 1], "itself": words[asked], "behind": words[asked + 1]}
        return Question(prompt=f"{' '.join(words)}, {words[asked]}", answers=answers)

    def _compute(self, draw: random.Random) -> Question:
        """Two numbers: the larger, the smaller, their sum or their difference."""
        while True:
            a, b = (draw.randint(1, _LARGEST_NUMBER) for _ in range(2))
            answers = {"sum": a + b, "difference": abs(a - b), "larger": max(a, b), "smaller": min(a, b)}
            if len(set(answers.values())) == len(answers):
                return Question(prompt=f"{a} {b}", answers={name: str(value) for name, value in answers.items()})


def documents(config: InContextCorpusConfig) -> Iterator[str]:
    """Yield the documents of a corpus; the same config gives the same ones."""
    families = TaskFamilies(num_words=config.num_words, seed=config.seed)
    draw = random.Random(f"documents {config.seed}")
    names = list(INSTRUCTIONS)
    for number in range(config.num_documents):
        family = names[number % len(names)]
        first = families.question(family, draw)
        operation = draw.choice(list(first.answers))
        rest = [families.question(family, draw) for _ in range(draw.randrange(config.max_lines))]
        lines = [f"{question.prompt} => {question.answers[operation]}" for question in (first, *rest)]
        yield "\n".join((INSTRUCTIONS[family], *lines))


def task_rows(config: InContextCorpusConfig, family: str) -> Iterator[dict[str, object]]:
    """Yield the rows of a family's task: its operations in turn, with the answers of all of them as choices."""
    families = TaskFamilies(num_words=config.num_words, seed=config.seed)
    draw = random.Random(f"{family} {config.seed}")
    for number in range(config.num_questions):
        question = families.question(family, draw)
        operations = list(question.answers)
        operation = operations[number % len(operations)]
        yield {
            "prompt": question.prompt,
            "completion": question.answers[operation],
            "choices": sorted(question.answers.values()),
            "operation": operation,
            "instruction": INSTRUCTIONS[family],
        }


def write_in_context_corpus(config: InContextCorpusConfig, directory: Path) -> list[Path]:
    """Write the corpus and the task of each family, and return their paths, the corpus first.

    Args:
        config: how much of what.
        directory: made where missing; gets ``corpus.jsonl`` and a .jsonl file for each family.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / CORPUS_FILE]
    with paths[0].open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents(config))
    for family in INSTRUCTIONS:
        paths.append(directory / f"{family}.jsonl")
        with paths[-1].open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in task_rows(config, family))
    return paths


def _all_words() -> list[str]:
    """Return all words of two open syllables, such as "dako"."""
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    return ["".join(pair) for pair in product(syllables, repeat=2)]
