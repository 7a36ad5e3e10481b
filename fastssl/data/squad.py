"""Questions about documents, with their answers: files in the format of SQuAD."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastssl.data.bytes_of_file import read_lines
from fastssl.data.table import read_table


@dataclass(frozen=True, kw_only=True)
class GoldAnswer:
    """An answer as the file has it."""

    text: str
    """Without white space around it; not empty."""
    start: int | None
    """Where the file says that it begins in the document, in characters; None where it does not."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a document."""

    id: str
    """As in the file; where it has none, `place`."""
    text: str
    """The question itself."""
    document: int
    """Number of the document in `QuestionFile.documents`."""
    answers: tuple[GoldAnswer, ...]
    """What counts as right; none where there is no answer, and in a file without labels."""
    unanswerable: bool
    """Whether the file says that the document does not answer it (``is_impossible``)."""
    place: str
    """Where it stands, for errors."""

    @property
    def labelled(self) -> bool:
        """Whether it is known what would be right."""
        return self.unanswerable or bool(self.answers)


@dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """The questions of one file and the documents that they are about."""

    path: Path
    """The file."""
    documents: list[str]
    """Each once, however many questions it has."""
    questions: list[Question]
    """In the order of the file."""

    def __len__(self) -> int:
        return len(self.questions)


def read_squad(path: str | Path) -> QuestionFile:
    """Read questions from a .json or .jsonl file, also with .gz or .zst behind it.

    .json is SQuAD's own format, of version 1 or 2: ``{"data": [{"paragraphs": [{"context": TEXT, "qas": [{"id": ID,
    "question": TEXT, "answers": [{"text": TEXT, "answer_start": CHARACTER}], "is_impossible": false}]}]}]}``; other
    keys are passed over. .jsonl has one ``{"context": TEXT, "question": TEXT, "answers": ...}`` a line, where answers
    may also be ``{"text": [TEXT], "answer_start": [CHARACTER]}``, as Hugging Face's datasets have them: empty lists in
    it mean that there is no answer.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, not of this format (the place in it is named), or without any question.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected questions in SQuAD's format, .json or .jsonl")
    found = _of_lines(path) if {".jsonl", ".ndjson"} & set(path.suffixes) else _of_tree(path)
    if not found.questions:
        raise ValueError(f"{path} has no questions; expected at least one")
    return found


def _of_tree(path: Path) -> QuestionFile:
    documents: list[str] = []
    questions: list[Question] = []
    for paragraph, place in _paragraphs(_read_json(path), path):
        documents.append(_value(paragraph, "context", str, place))
        for number, entry in enumerate(_value(paragraph, "qas", list, place)):
            questions.append(_question(entry, len(documents) - 1, f"{place}.qas[{number}]"))
    return QuestionFile(path=path, documents=documents, questions=questions)


def _of_lines(path: Path) -> QuestionFile:
    table = read_table(path)
    numbers: dict[str, int] = {}
    questions = []
    for row in range(len(table.lines)):
        entry = {name: values[row] for name, values in table.columns.items() if values[row] is not None}
        context = _value(entry, "context", str, table.place(row))
        document = numbers.setdefault(context, len(numbers))
        questions.append(_question(entry, document, table.place(row)))
    return QuestionFile(path=path, documents=list(numbers), questions=questions)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(b"\n".join(line for _, line in read_lines(path, lambda _: None)).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); questions are read from SQuAD's format") from error


def _paragraphs(content: Any, path: Path) -> Iterator[tuple[Any, str]]:
    for number, article in enumerate(_value(content, "data", list, str(path))):
        place = f"{path}: data[{number}]"
        for paragraph_number, paragraph in enumerate(_value(article, "paragraphs", list, place)):
            yield paragraph, f"{place}.paragraphs[{paragraph_number}]"


def _question(entry: Any, document: int, place: str) -> Question:
    text, found = _value(entry, "question", str, place), entry.get("answers", [])
    in_columns = isinstance(found, dict)
    if in_columns:
        texts, starts = _value(found, "text", list, place), _value(found, "answer_start", list, place)
        if len(texts) != len(starts):
            raise ValueError(
                f"{place}: 'text' has {len(texts)} answers and 'answer_start' {len(starts)}; expected a number, or "
                "null, for each answer"
            )
        found = [{"text": one, "answer_start": start} for one, start in zip(texts, starts, strict=True)]
    elif "answers" in entry:
        found = _value(entry, "answers", list, place)
    answers = (_answer(one, f"{place}.answers[{number}]") for number, one in enumerate(found))
    return Question(
        id=str(entry.get("id", place)),
        text=text,
        document=document,
        answers=tuple(answer for answer in answers if answer is not None),
        unanswerable=entry.get("is_impossible", in_columns and not found) is True,
        place=place,
    )


def _answer(entry: Any, place: str) -> GoldAnswer | None:
    """Return an answer, or None for one without characters."""
    text = _value(entry, "text", str, place)
    start = _value(entry, "answer_start", int, place) if entry.get("answer_start") is not None else None
    if not text.strip():
        return None
    if start is not None:
        start += len(text) - len(text.lstrip())
    return GoldAnswer(text=text.strip(), start=start)


def _value(entry: Any, key: str, kind: type, place: str) -> Any:
    if not isinstance(entry, dict):
        raise ValueError(f"{place} must be a JSON object, got {type(entry).__name__}: not SQuAD's format")
    if key not in entry:
        raise ValueError(
            f"{place} has no {key!r}, it has {', '.join(map(repr, entry)) or 'nothing'}: not SQuAD's format"
        )
    if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
        expected = {str: "a text", list: "a list", int: "a whole number"}[kind]
        raise ValueError(f"{place}: {key!r} must be {expected}, got {entry[key]!r:.60}")
    return entry[key]
