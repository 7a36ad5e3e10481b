"""The labelled examples that every Python carries."""

from collections import Counter

from fastssl.data import python_tasks


def test_summaries_of_modules_are_many_and_each_is_of_one():
    rows = python_tasks.modules_of_summaries(num_modules=5)
    labels = Counter(row["label"] for row in rows)
    assert len(labels) == 5 and min(labels.values()) > 50
    assert len({row["text"] for row in rows}) == len(rows)
    assert rows == python_tasks.modules_of_summaries(num_modules=5)


def test_summaries_fit_about_half_of_the_signatures():
    rows = python_tasks.summaries_and_signatures()
    fits = [row for row in rows if row["label"] == "fits"]
    assert len(rows) > 1000 and 0.4 < len(fits) / len(rows) < 0.6
    of_summary = {f.summary: f.signature for f in python_tasks.documented_functions()}
    assert all((of_summary[row["sentence1"]] == row["sentence2"]) == (row["label"] == "fits") for row in rows)


def test_a_token_has_its_kind_from_its_line():
    line = python_tasks._tagged_lines(b'with open(name, mode="r", times=3) as file:\n    x = file.read(open=name)\n')
    (words, tags), (_, more) = line
    assert dict(zip(words, tags, strict=True)) == {
        "with": "keyword",
        "open": "call",
        "(": "operator",
        "name": "name",
        ",": "operator",
        "mode": "argument",
        "=": "operator",
        '"r"': "string",
        "times": "argument",
        "3": "number",
        ")": "operator",
        "as": "keyword",
        "file": "name",
        ":": "operator",
    }
    assert more == "name operator name operator call operator argument operator name operator".split()


def test_lines_of_code_hold_words_with_several_tags():
    rows = python_tasks.kinds_of_tokens(max_lines=1000)
    assert len(rows) == 1000 and all(len(row["words"]) == len(row["tags"]) >= 5 for row in rows)
    tags: dict[str, set[str]] = {}
    for row in rows:
        for word, tag in zip(row["words"], row["tags"], strict=True):
            tags.setdefault(word, set()).add(tag)
    assert sum(len(kinds) > 1 for kinds in tags.values()) > 50


def test_answers_stand_at_their_offset_and_documents_name_each_function_once():
    rows = python_tasks.functions_in_documents()
    assert len(rows) > 1000
    for row in rows:
        assert row["context"][row["answer_start"] :].startswith(f"{row['answer']}(")
        names = [line.removeprefix("def ").partition("(")[0] for line in row["context"].splitlines()]
        assert len(names) == 5 and names.count(row["answer"]) == 1
