"""Files of a word a line: CoNLL-U and plainer columns, and what is said of damaged ones."""

import gzip
from pathlib import Path

import pytest

from fastssl.data.conll import CONLLU_COLUMNS, WordColumns, read_word_columns

CONLLU = """# sent_id = 1
# text = He didn't.
1\tHe\the\tPRON\tPRP\t_\t2\tnsubj\t_\t_
2-3\tdidn't\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
2\tdid\tdo\tAUX\tVBD\t_\t0\troot\t_\t_
3\tn't\tnot\tPART\tRB\t_\t2\tadvmod\t_\t_
3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_
4\t#\t#\tSYM\tSYM\t_\t2\tpunct\t_\t_

# text = No break
1\tNo break\t_\tX\tFW\t_\t0\troot\t_\t_
"""


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def words(found: WordColumns, column: int = 0) -> list[list[str]]:
    return [[row[column] for row in rows] for rows in found.sentences]


@pytest.mark.parametrize("name", ["a.conllu", "a.txt", "a.conllu.gz"])
def test_conllu_by_its_ending_and_by_its_content(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(CONLLU.encode()) if name.endswith(".gz") else CONLLU.encode())
    found = read_word_columns(path)
    assert found.is_conllu and found.columns == CONLLU_COLUMNS
    assert words(found, 1) == [["He", "did", "n't", "#"], ["No break"]]
    assert words(found, 3) == [["PRON", "AUX", "PART", "SYM"], ["X"]]
    assert found.lines == [[3, 5, 6, 8], [11]]


def test_columns_that_a_first_line_names(tmp_path):
    content = "# global.columns = ID FORM UPOS NER\n1\tSmith\tPROPN\tB-PER\n\n"
    found = read_word_columns(write(tmp_path / "a.cupt", content))
    assert found.is_conllu and found.columns == ("ID", "FORM", "UPOS", "NER") and words(found, 3) == [["B-PER"]]


@pytest.mark.parametrize(
    ("content", "columns", "expected"),
    [
        ("EU B-ORG\nrejects O\n\ncalls O\n", ("1", "2"), [["EU", "rejects"], ["calls"]]),
        ("EU\tB-ORG\r\nNew York\tB-LOC\r\n \r\n\r\ncalls\tO", ("1", "2"), [["EU", "New York"], ["calls"]]),
        ("-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n", ("1", "2", "3", "4"), [["EU", "rejects"]]),
        ("# id 3f domain=en\nEU _ _ B-ORG\n# _ _ O\n", ("1", "2", "3", "4"), [["EU", "#"]]),
        ("# just a comment\n#EU O\nrejects O\n\n# text = EU\n# O\n", ("1", "2"), [["#EU", "rejects"], ["#"]]),
        ("# O\nEU O\n", ("1", "2"), [["#", "EU"]]),
        ("word\ttag\nword\tO\n", ("word", "tag"), [["word"]]),
        ("Text\tLabel\ntext\tO\n", ("Text", "Label"), [["text"]]),
        ("sentence pos\nsentence NN\n", ("sentence", "pos"), [["sentence"]]),
        ("a\u00a0b O\n", ("1", "2"), [["a\u00a0b"]]),
        ("\x01\tO\n\tO\n", ("1", "2"), [["\x01", ""]]),
        ("one\ntwo\n\nthree\n", ("1",), [["one", "two"], ["three"]]),
        ("{ O\n} O\n", ("1", "2"), [["{", "}"]]),
    ],
)
def test_plain_columns(tmp_path, content, columns, expected):
    found = read_word_columns(write(tmp_path / "a.conll", content))
    assert not found.is_conllu and found.columns == columns and words(found) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "EU O\n\nrejects V O\n", "line 3: expected 2 fields between blanks, as in the first row, got 3"),
        ("a.conll", "EU\tO\nrejects O\n", "line 2: expected 2 fields between tabs, .* got 1: 'rejects O'"),
        ("a.conll", "EU O\n# more words here\n", "line 2: expected 2 fields"),
        ("a.conllu", "1\tEU\tO\n", r"line 1: expected 10 fields between tabs \(ID, FORM, .*, got 3"),
        ("a.conllu", CONLLU.replace("\n4\t", "\nfour\t"), "line 8: the ID of a word must be a number .* got 'four'"),
        ("a.conllu", "# nothing\n\n", "has no words"),
        ("a.conll", "", "has no words"),
        ("a.conll", "-DOCSTART- O\n\n", "has no words"),
        ("a.conll", "PK\x03\x04", "ZIP archive"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_word_columns(write(tmp_path / name, content))


def test_bytes_that_are_not_utf8_and_files_that_are_not_there(tmp_path):
    (tmp_path / "a.conll").write_bytes(b"EU O\nsch\xf6n O\n")
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        read_word_columns(tmp_path / "a.conll")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.conll is not a file"):
        read_word_columns(tmp_path / "nowhere.conll")
