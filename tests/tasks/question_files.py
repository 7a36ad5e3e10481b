"""Small files of questions that a tiny model can learn to answer."""

import json
from pathlib import Path

import numpy as np

KEYS, FILLERS = "red blue green white black".split(), "the house river stands by near old and".split()
VALUES = [f"n{number}" for number in range(12)]
WORDS = [*KEYS, *FILLERS, *VALUES, "where", "is", "?", "."]


def write_questions(path: Path, count: int = 200, *, seed: int = 0, unanswerable: float = 0.0, length: int = 6) -> Path:
    """Write documents in which a colour is followed by what is asked for: "where is red ?" -> the two words after red.

    Args:
        path: the file.
        count: documents, with one question each.
        seed: of what is written.
        unanswerable: share of questions whose document has no colour.
        length: words of filling before and after.
    """
    rng = np.random.default_rng(seed)
    paragraphs = []
    for number in range(count):
        here = rng.choice(KEYS)
        before, after = (" ".join(rng.choice(FILLERS, rng.integers(1, length))) for _ in range(2))
        answer = " ".join(rng.choice(VALUES, 2))
        missing = rng.random() < unanswerable
        context = f"{before} {after} ." if missing else f"{before} {here} {answer} {after} ."
        answers = [] if missing else [{"text": answer, "answer_start": context.index(answer)}]
        asked = {"id": f"q{number}", "question": f"where is {here} ?", "answers": answers}
        paragraphs.append({"context": context, "qas": [asked | ({"is_impossible": missing} if unanswerable else {})]})
    path.write_text(json.dumps({"version": "x", "data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    return path


def change(path: Path, *changes: dict) -> Path:
    """Replace parts of the first questions of a file, one dict each; "context" is of the document."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for paragraph, wanted in zip(content["data"][0]["paragraphs"], changes, strict=False):
        if "context" in wanted:
            paragraph["context"] = wanted.pop("context")
        paragraph["qas"][0].update(wanted)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
