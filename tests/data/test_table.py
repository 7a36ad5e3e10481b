"""Tables in three formats, and what is said of damaged ones."""

import gzip

import pytest

from fastssl.data.table import read_table

ROWS = {"sentence": ["it is good", 'a "quoted, one'], "label": ["1", "0"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'sentence\tlabel\nit is good\t1\n\na "quoted, one\t0\n'),
        ("a.tsv", '\ufeffsentence\tlabel\r\nit is good\t1\r\n\r\na "quoted, one\t0'),
        ("a.csv", 'sentence,label\nit is good,1\n\n"a ""quoted, one",0\n'),
        ("a.jsonl", '{"sentence": "it is good", "label": "1"}\n\n{"label": "0", "sentence": "a \\"quoted, one"}'),
    ],
)
def test_three_formats_one_table(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode())
    table = read_table(path)
    assert (table.columns, table.lines) == (ROWS, [1, 3] if name == "a.jsonl" else [2, 4])
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert read_table(packed).columns == ROWS


@pytest.mark.parametrize(
    ("name", "content", "columns", "lines", "lines_otherwise"),
    [
        ("a.tsv", "text\na\n\n \nb\n\n\n", {"text": ["a", "", "", "b"]}, [2, 3, 4, 5], [2, 5]),
        ("a.csv", '\ntext\n\na\n\n""\n\n', {"text": ["", "a", "", ""]}, [3, 4, 5, 6], [4, 6]),
        ("a.tsv", "\nx\ty\n\t\n\n \na\tb\n\t\n", {"x": ["", "a", ""], "y": ["", "b", ""]}, [3, 6, 7], [6]),
        ("a.csv", "x,y\n,\n\na,b\n", {"x": ["", "a"], "y": ["", "b"]}, [2, 4], [2, 4]),
    ],
)
def test_rows_without_text_are_kept_where_each_line_counts(tmp_path, name, content, columns, lines, lines_otherwise):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    table = read_table(path, keep_empty=True)
    assert (table.columns, table.lines) == (columns, lines)
    assert read_table(path).lines == lines_otherwise


def test_csv_fields_may_span_lines_and_rows_know_where_they_begin(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"one\ntwo",a\nthree,b\n', encoding="utf-8")
    table = read_table(path)
    assert table.columns["text"] == ["one\ntwo", "three"] and table.lines == [2, 4]
    assert table.place(1) == f"{path}, line 4"


def test_a_header_may_be_given_and_ragged_rows_left_out(tmp_path):
    path, ragged = tmp_path / "a.tsv", []
    path.write_text("a\t1\nb\nc\t2\t3\nd\t4\n", encoding="utf-8")
    table = read_table(path, header=["text", "label"], on_ragged=ragged.append)
    assert table.columns == {"text": ["a", "d"], "label": ["1", "4"]} and table.lines == [1, 4]
    told = [message.split(", but")[0] for message in ragged]
    assert told == [f"{path}, line 2: 1 fields", f"{path}, line 3: 3 fields"]


def test_json_values_keep_their_kind_and_missing_keys_are_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": ["x", "y"]}\n{"text": "b"}\n', encoding="utf-8")
    assert read_table(path).columns == {"text": ["a", "b"], "label": [["x", "y"], None]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"text\tlabel\na\t1\nb\n", r"line 3: 1 fields, but the header has 2 \(text, label\)"),
        ("a.csv", b"text,label\na,1,2\n", "line 2: 3 fields"),
        ("a.csv", b'text,label\n"a,1\n', "line 2: .*quotation mark"),
        ("a.tsv", b"text\ttext\na\t1\n", "names a column twice"),
        ("a.tsv", b"text\tlabel\n", "no rows"),
        ("a.tsv", b"", "no rows"),
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b'{"text": 1}\n[1]\n', "line 2: expected a JSON object, got list"),
        ("a.jsonl", b"{text}\n", "line 1: not JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1: not JSON \(maximum recursion depth"),
        ("a.tsv", b"text\tlabel\n\xff\t1\n", "line 2: not UTF-8"),
        ("a.xlsx", b"text", r"unknown ending; expected .tsv, .csv or .jsonl"),
        ("a.csv", b"PK\x03\x04...", "ZIP archive"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tsv is not a file"):
        read_table(tmp_path / "nowhere.tsv")
