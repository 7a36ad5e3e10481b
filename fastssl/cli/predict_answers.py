"""``fastssl predict`` for a model that answers questions from documents."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastssl.cli.plain_table import plain_table
from fastssl.cli.predict_flags import PredictFlags
from fastssl.cli.text_lines import STANDARD_INPUT, text_lines
from fastssl.data.squad import read_squad
from fastssl.tasks.question_answering.answerer import AnswerProbabilities, QuestionAnswerer
from fastssl.tasks.question_answering.figure import draw_probabilities
from fastssl.tasks.question_answering.spans import Answer

_AT_ONCE = 256
_SHOWN_FROM = 0.005
_BAR = 20


def predict_answers(flags: PredictFlags) -> None:
    """Print the answer to every question."""
    _check(flags)
    answerer = QuestionAnswerer.load(
        flags.model,
        max_seq_length=flags.max_seq_length,
        windows=flags.windows,
        spans=flags.spans,
        dtype=flags.dtype,
        device=flags.device,
    )
    asked = _of_file(flags.file) if flags.file is not None else _of_document(flags.document, flags.question)
    console = Console(highlight=False)
    while chunk := list(itertools.islice(asked, _AT_ONCE)):
        names, questions, documents = zip(*chunk, strict=True)
        answers = answerer(questions, documents)
        wanted = flags.show_probabilities or flags.figure is not None
        rows = [answerer.probabilities(*pair) if wanted else None for pair in zip(questions, documents, strict=True)]
        if flags.json:
            shown = rows if flags.show_probabilities else [None] * len(rows)
            for one in zip(names, answers, shown, strict=True):
                print(json.dumps(_as_json(*one), ensure_ascii=False), flush=True)
        else:
            console.print(_table(answers))
        for answer, row in zip(answers, rows, strict=True):
            if flags.show_probabilities and not flags.json:
                console.print(Text(f"\n{answer.question}", style="bold"), _rows(row))
            if flags.figure is not None:
                draw_probabilities(row, flags.figure, title=answer.question)


def _check(flags: PredictFlags) -> None:
    if flags.texts:
        raise ValueError(
            f"{flags.model} answers questions from a document; give them as --document FILE --question TEXT"
        )
    if (flags.document is None) == (flags.file is None):
        found = "neither" if flags.file is None else "both"
        raise ValueError(f"expected --document FILE with questions, or --file FILE in SQuAD's format; got {found}")
    if flags.question and flags.file is not None:
        raise ValueError("--question goes with --document; the questions of --file stand in it")
    if flags.figure is not None and len(flags.question) != 1:
        raise ValueError(f"--figure draws one question, got {len(flags.question)}; give one with --question")


def _of_file(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the identifier of each question of a file, itself, and its document.

    Raises:
        ValueError: before the first one, where a question or a document has no text.
    """
    file = read_squad(path)
    for question in file.questions:
        for name, text in (("question", question.text), ("document", file.documents[question.document])):
            if not text.strip():
                raise ValueError(f"{question.place}: the {name} is empty; take the question out of the file")
    yield from ((question.id, question.text, file.documents[question.document]) for question in file.questions)


def _of_document(path: Path, questions: Sequence[str]) -> Iterator[tuple[None, str, str]]:
    document = "\n".join(text_lines(path))
    if not document.strip():
        raise ValueError(f"{path} is empty; a document has text in which answers can be found")
    lines = iter(questions) if questions else (line for line in text_lines(STANDARD_INPUT) if line.strip())
    first = next(lines, None)
    if first is None:
        raise ValueError('there is no question; give one with --question "...", or one a line on standard input')
    yield from ((None, question, document) for question in itertools.chain((first,), lines))


def _as_json(name: str | None, answer: Answer, row: AnswerProbabilities | None) -> dict[str, object]:
    found = asdict(answer) if name is None else {"id": name, **asdict(answer)}
    if answer.no_answer_difference is not None and math.isinf(answer.no_answer_difference):
        # The document has no token that could be an answer; JSON has no infinity.
        found["no_answer_difference"] = None
    if row is not None:
        found["probabilities"] = {"tokens": row.tokens, "start": row.start.tolist(), "end": row.end.tolist()}
    return found


def _table(answers: Sequence[Answer]) -> Table:
    table = plain_table("answer", "probability", "question", "other answers")
    for one in answers:
        others = [span for span in one.candidates if span.start != one.start or span.end != one.end]
        shown = "  ".join(f"{span.text} {span.probability:.1%}" for span in others)
        text = Text(one.text, style="bold") if one.text else Text("(no answer)", style="dim")
        table.add_row(text, f"{one.probability:.1%}", Text(one.question), Text(shown))
    return table


def _rows(row: AnswerProbabilities) -> Table:
    """Show the two softmax rows, one token a line; of tokens that are nowhere likely only their number."""
    table = plain_table("", "token", "P(start)", "", "P(end)", "")
    likely = [max(pair) >= _SHOWN_FROM for pair in zip(row.start.tolist(), row.end.tolist(), strict=True)]
    for shown, group in itertools.groupby(range(len(row.tokens)), key=likely.__getitem__):
        numbers = list(group)
        if not shown:
            table.add_row("", Text(f"... {len(numbers)} below {_SHOWN_FROM:.1%}", style="dim"))
            continue
        for number in numbers:
            start, end = row.start[number].item(), row.end[number].item()
            bars = ("█" * round(_BAR * p) for p in (start, end))
            first, last = ((f"{p:.3f}", Text(bar, style="blue")) for p, bar in zip((start, end), bars, strict=True))
            table.add_row(str(number + 1), Text(row.tokens[number]), *first, *last)
    return table
