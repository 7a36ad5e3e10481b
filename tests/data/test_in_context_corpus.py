"""The corpus of hidden operations: what its documents claim is true, and its tasks are their kin."""

import json
import random

import pytest

from fastssl.cli.main import main
from fastssl.data import in_context_corpus
from fastssl.data.in_context_corpus import (
    INSTRUCTIONS,
    InContextCorpusConfig,
    TaskFamilies,
    documents,
    task_rows,
    write_in_context_corpus,
)

CONFIG = InContextCorpusConfig(num_documents=400, num_words=12, num_questions=50, seed=5)


def answers_of(family: str, prompt: str) -> dict[str, str]:
    """What each operation makes of a prompt, computed anew."""
    families = TaskFamilies(num_words=CONFIG.num_words, seed=CONFIG.seed)
    if family == "translate":
        number = families.words.index(prompt)
        return {"copy": prompt, **{f"language {n}": own[number] for n, own in enumerate(families.languages, start=1)}}
    if family == "pick":
        return dict(zip(("first", "second"), prompt.split(), strict=True))
    a, b = map(int, prompt.split())
    return {"sum": str(a + b), "difference": str(abs(a - b)), "larger": str(max(a, b)), "smaller": str(min(a, b))}


def test_every_document_has_one_operation():
    seen = set()
    for text in documents(CONFIG):
        instruction, *lines = text.split("\n")
        family = next(name for name, own in INSTRUCTIONS.items() if own == instruction)
        assert 1 <= len(lines) <= CONFIG.max_lines
        pairs = [tuple(line.split(" => ")) for line in lines]
        if family == "look-up":
            meanings = dict(pairs)
            assert all(meanings[word] == answer for word, answer in pairs)
            assert len(meanings) <= 4 and not set(meanings) & set(meanings.values())
            continue
        possible = set(answers_of(family, pairs[0][0]))
        for prompt, answer in pairs:
            possible &= {name for name, right in answers_of(family, prompt).items() if right == answer}
        assert len(possible) == 1  # the answers under all operations differ, so one line is enough to tell
        seen |= {(family, *possible)}
    assert len(seen) == 4 + 2 + 4


def test_no_word_has_two_meanings():
    families = TaskFamilies(num_words=50, seed=0)
    words = families.words + [word for language in families.languages for word in language]
    assert len(set(words)) == 200


@pytest.mark.parametrize("family", ["translate", "pick", "compute"])
def test_tasks_have_all_answers_as_choices(family):
    rows = list(task_rows(CONFIG, family))
    assert len(rows) == 50
    for row in rows:
        answers = answers_of(family, row["prompt"])
        assert row["completion"] == answers[row["operation"]]
        assert row["choices"] == sorted(answers.values()) and len(set(row["choices"])) == len(answers)
    assert len({row["operation"] for row in rows}) == len(answers)


def test_a_dictionary_has_ten_rows():
    rows = list(task_rows(CONFIG, "look-up"))
    dictionaries = {row["operation"] for row in rows}
    assert len(dictionaries) == 5
    for row in rows:
        words = row["operation"].split()
        assert row["completion"] == dict(zip(words[:4], words[4:], strict=True))[row["prompt"]]
        assert row["choices"] == sorted(words[4:])


def test_the_same_seed_gives_the_same_files(tmp_path, capsys):
    first = write_in_context_corpus(CONFIG, tmp_path / "first")
    flags = ["--num-documents", "400", "--num-words", "12", "--num-questions", "50", "--seed", "5"]
    assert main(["data", "in-context-corpus", "--output-dir", str(tmp_path / "second"), *flags]) == 0
    assert str(tmp_path / "second" / "corpus.jsonl") in capsys.readouterr().out
    for path in first:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    assert json.loads(first[0].read_text().splitlines()[0]).keys() == {"text"}
    assert list(documents(CONFIG)) != list(documents(InContextCorpusConfig(num_documents=400, num_words=12)))


def test_mistakes_are_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"must be a directory, but .* is a file"):
        write_in_context_corpus(CONFIG, tmp_path / "file")
    with pytest.raises(ValueError, match="num_words must be at most"):
        InContextCorpusConfig(num_words=10_000)
    with pytest.raises(ValueError, match="max_lines must be at least 1"):
        InContextCorpusConfig(max_lines=0)


def test_a_corpus_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def interrupted(config):
        yield "Translate:"
        raise KeyboardInterrupt

    write_in_context_corpus(CONFIG, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(in_context_corpus, "documents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_in_context_corpus(CONFIG, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_questions_are_random():
    families = TaskFamilies(num_words=20, seed=0)
    draw = random.Random(0)
    first, _ = families.tasks("pick", draw)
    assert len({first.ask(draw).prompt for _ in range(50)}) > 40
    assert families.tasks("look-up", draw)[0].operation != families.tasks("look-up", draw)[0].operation
