"""Words and tags of a file, whatever its kind; which columns are meant; what is refused."""

import json
from pathlib import Path

import pytest

from fastssl.tasks.labelled_texts import ColumnConfig
from fastssl.tasks.tagging.tagged_sentences import TaggedSentences, read_tagged_sentences

CONLLU = """1\tI\tI\tPRON\tPRP\t_\t2\tnsubj\t_\t_
2\tsaw\tsee\tVERB\tVBD\t_\t0\troot\t_\t_

1\t_\t_\t_\tSYM\t_\t_\t_\t_\t_
"""
CONLL = "I PRP O\nsaw VBD B-X\n\n_ SYM _\n"


def read(path: Path, content: str, *, needs_tags: bool = True, **columns: str) -> TaggedSentences:
    path.write_text(content, encoding="utf-8")
    return read_tagged_sentences(path, ColumnConfig(**columns), needs_tags=needs_tags)


def rows(*objects: dict) -> str:
    return "".join(json.dumps(one) + "\n" for one in objects)


@pytest.mark.parametrize(
    ("name", "content", "options", "column", "tags"),
    [
        ("a.conllu", CONLLU, {}, "UPOS", [["PRON", "VERB"], [None]]),
        ("a.conllu", CONLLU, {"label_column": "XPOS"}, "XPOS", [["PRP", "VBD"], ["SYM"]]),
        ("a.conllu", CONLLU, {"label_column": "xpos"}, "XPOS", [["PRP", "VBD"], ["SYM"]]),
        ("a.conllu", CONLLU, {"label_column": "DEPREL"}, "DEPREL", [["nsubj", "root"], [None]]),
        ("a.conll", CONLL, {}, "3", [["O", "B-X"], ["_"]]),
        ("a.txt", CONLL, {"label_column": "2"}, "2", [["PRP", "VBD"], ["SYM"]]),
        ("a.tsv", "word\tpos\tner\nI\tPRP\tO\nsaw\tVBD\tB-X\n\n_\tSYM\t_\n", {}, "ner", [["O", "B-X"], ["_"]]),
    ],
)
def test_columns(tmp_path, name, content, options, column, tags):
    found = read(tmp_path / name, content, **options)
    assert found.words == [["I", "saw"], ["_"]] and found.tags == tags and found.tag_column == column
    assert len(found) == 2 and found.num_words == 3
    assert read(tmp_path / name, content, needs_tags=False, **options).tags is None


def test_texts_are_not_words(tmp_path):
    with pytest.raises(ValueError, match=r"a.tsv, column 'sentence': expected a word a line, .*--task classification"):
        read(tmp_path / "a.tsv", "sentence\tlabel\nthis is good\t1\nthis was bad\t0\nbad\t0\nso so\t0\n")
    # Some words have a blank in them.
    assert read(tmp_path / "b.tsv", "1 000\tNUM\nNew York\tPROPN\na\tDET\nb\tDET\n").num_words == 4


def test_other_words_than_the_first_column(tmp_path):
    numbered = "# http://example.org [2009]\n1\tAnn\tB-PER\tO\n2\tsaw\tO\tO\n\n1\tRome\tB-LOC\tO\n"
    found = read(tmp_path / "a.tsv", numbered, label_column="3")
    assert found.words == [["Ann", "saw"], ["Rome"]] and found.tags == [["B-PER", "O"], ["B-LOC"]]
    assert read(tmp_path / "a.tsv", "1\tO\n2\tB-X\n").words == [["1", "2"]]
    assert read(tmp_path / "a.iob2", "x I O\ny saw B-X\n", text_column="2").words == [["I", "saw"]]
    assert read(tmp_path / "a.conllu", CONLLU, text_column="LEMMA").words == [["I", "see"], ["_"]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.txt"])
@pytest.mark.parametrize(("words", "tags"), [("tokens", "ner_tags"), ("words", "tags"), ("tokens", "labels")])
def test_json_lines(tmp_path, name, words, tags):
    content = rows({words: ["I", "saw"], tags: [3, 0]}, {words: [], tags: []}, {words: ["_"], tags: [None]})
    found = read(tmp_path / name, content)
    assert found.words == [["I", "saw"], [], ["_"]] and found.tags == [["3", "0"], [], [None]]
    assert found.tag_column == tags and found.lines == [[1, 1], [], [3]]


def test_json_keys_by_name_and_numbers_as_text(tmp_path):
    content = rows({"w": ["a", "b", "c", "d"], "t": [1, 1.0, True, -100], "tags": ["x"] * 4})
    found = read(tmp_path / "a.jsonl", content, text_column="w", label_column="t")
    assert found.tags == [["1", "1", "true", None]]


def test_files_without_tags_can_be_read_for_their_words(tmp_path):
    assert read(tmp_path / "a.conll", "I\nsaw\n", needs_tags=False).words == [["I", "saw"]]
    assert read(tmp_path / "a.jsonl", rows({"tokens": ["I"]}), needs_tags=False).words == [["I"]]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.conllu", CONLLU, {"label_column": "NER"}, r"no column 'NER' \(label_column\); it has ID, FORM, .*, MISC"),
        ("a.conll", CONLL, {"label_column": "4"}, r"no column '4' \(label_column\); it has 1, 2, 3"),
        ("a.conll", CONLL, {"text_column": "word"}, r"no column 'word' \(text_column\)"),
        ("a.conllu", CONLLU, {"label_column": "MISC"}, "no word has a tag in column 'MISC'; name another one with --l"),
        ("a.conll", "I\nsaw\n", {}, "line 1: expected a word and its tag, got one field: 'I'"),
        ("a.conll", "I\tO\nsaw\t\n", {}, "line 2: there is a word without a tag"),
        ("a.conll", CONLL, {"text_pair_column": "2"}, "text_pair_column is for pairs of texts"),
        ("a.conll", "\n\n", {}, "has no words"),
        ("a.jsonl", "\n", {}, "has no rows"),
        ("a.jsonl", rows({"tokens": [], "tags": []}), {}, "has no words"),
        (
            "a.jsonl",
            rows({"text": "I saw", "tags": []}),
            {},
            r"well-known name for words .* it has text, tags: name one",
        ),
        (
            "a.jsonl",
            rows({"tokens": ["I"]}),
            {},
            r"well-known name for tags \(tags, .*; it has tokens: .* --label-column",
        ),
        ("a.jsonl", rows({"tokens": ["I"], "tags": ["O"]}), {"label_column": "ner"}, r"no key 'ner' \(label_column\)"),
        ("a.jsonl", rows({"tokens": ["I"], "tags": ["O", "O"]}), {}, "line 1: 'tags' has 2 values for 1 words"),
        ("a.jsonl", "\n" + rows({"tokens": "I saw", "tags": ["O"]}), {}, "line 2: 'tokens' must hold a list"),
        ("a.jsonl", rows({"tokens": ["I"], "tags": None}), {}, "line 1: 'tags' must hold a list"),
        ("a.jsonl", rows({"tokens": ["I", 3], "tags": ["O", "O"]}), {}, "line 1: 'tokens' must hold words, got 3"),
        ("a.jsonl", rows({"tokens": ["I"], "tags": [["O"]]}), {}, "line 1: 'tags' must hold strings or numbers"),
        ("a.csv", "word,tag\nI,O\n", {}, r"has the ending \.csv; expected CoNLL-U"),
        ("a.json", "[]", {}, r"has the ending \.json"),
    ],
)
def test_what_is_refused(tmp_path, name, content, options, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name, content, **options)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.conllu is not a file"):
        read_tagged_sentences("nowhere.conllu", ColumnConfig())


def test_universal_dependencies(test_data):
    found = read_tagged_sentences(test_data / "ud_en_ewt" / "en_ewt-ud-dev.conllu", ColumnConfig())
    assert (len(found), found.num_words) == (2001, 25147)
    assert len({tag for tags in found.tags for tag in tags}) == 17
