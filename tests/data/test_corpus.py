"""Readers: every format gives the same documents, and bad input is named with its place."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fastssl.data import bytes_of_file, corpus
from fastssl.data.corpus import EXACT, Corpus, TextForm, read_documents

Compress = Callable[[bytes], bytes]


def gzipped(data: bytes) -> bytes:
    """The same bytes at any time: contents are parts of tests' names, which all processes of a run must agree upon."""
    return gzip.compress(data, mtime=0)


COMPRESSIONS: dict[str, Compress] = {
    "": lambda data: data,
    ".gz": gzipped,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}

_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=8)


def is_visible(text: str) -> bool:
    return bool(text) and not text.isspace()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "documents"), [("kjv", 1189), ("wikitext2.valid", 1160), ("wikitext2.test", 1320), ("moby_dick", 2557)]
)
def test_real_text(test_data: Path, name: str, documents: int):
    path = test_data / "corpus" / f"{name}.txt"
    found = list(read_documents(path))
    assert len(found) == documents
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    assert [line for document in found for line in document.split("\n")] == lines
    if name == "kjv":
        assert len(lines) == 31102


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(_LINE, max_size=4), max_size=4), st.sampled_from([1, 3, 1 << 20]), st.sampled_from(["\n", "\r\n"])
)
def test_every_compression_gives_the_same_text(
    tmp_path_factory: pytest.TempPathFactory, written: list[list[str]], chunk_bytes: int, newline: str
):
    lines = [line for document in written for line in [*document, ""]]
    expected = ["\n".join(kept) for document in split_at_blank(lines) if (kept := document)]
    folder = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bytes_of_file, "_CHUNK_BYTES", chunk_bytes)
        patch.setattr(bytes_of_file, "_COMPRESSED_CHUNK_BYTES", chunk_bytes)
        for ending, compress in COMPRESSIONS.items():
            path = write(folder / f"a.txt{ending}", compress(newline.join(lines).encode() or b"\n"))
            assert read_or_nothing(path) == expected


def split_at_blank(lines: list[str]) -> list[list[str]]:
    documents: list[list[str]] = [[]]
    for line in lines:
        if is_visible(line):
            documents[-1].append(line)
        else:
            documents.append([])
    return documents


def read_or_nothing(path: Path, **options: str) -> list[str]:
    try:
        return list(read_documents(path, **options))
    except ValueError as error:
        assert "holds no documents" in str(error)
        return []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), min_size=1, max_size=5))
def test_records(tmp_path_factory: pytest.TempPathFactory, texts: list[str]):
    folder = tmp_path_factory.mktemp("records")
    expected = [text for text in texts if is_visible(text)]
    lines = "".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts))
    parquet.write_table(pyarrow.table({"body": texts}), folder / "a.parquet")
    paths = [folder / "a.parquet"]
    for ending, compress in COMPRESSIONS.items():
        paths.append(write(folder / f"a.jsonl{ending}", compress(lines.encode())))
    for path in paths:
        assert read_or_nothing(path, text_field="body") == expected


def test_byte_order_mark_and_joined_members(tmp_path: Path):
    first, second = "\ufeffone\n\n".encode(), "two 台灣".encode()
    plain = write(tmp_path / "a.txt", first + second)
    joined = write(tmp_path / "a.txt.gz", gzipped(first) + gzipped(second) + bytes(512))
    frames = write(tmp_path / "a.txt.zst", b"".join(map(COMPRESSIONS[".zst"], (first, second))))
    for path in (plain, joined, frames):
        assert list(read_documents(path)) == ["one", "two 台灣"]


def test_every_byte_is_reported_as_read(tmp_path: Path):
    parquet.write_table(pyarrow.table({"text": ["a"] * 5000}), tmp_path / "a.parquet")
    paths = [write(tmp_path / f"a.txt{e}", compress(b"word\n\n" * 9999)) for e, compress in COMPRESSIONS.items()]
    for path in [*paths, tmp_path / "a.parquet"]:
        read: list[int] = []
        list(read_documents(path, on_read=read.append))
        assert sum(read) == path.stat().st_size


def test_half_a_surrogate_pair_in_json_is_replaced(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", rb'{"text": "a \ud83d b"}' + b"\n" + rb'{"text": "\ud83d\ude00"}')
    assert list(read_documents(path)) == ["a \ufffd b", "😀"]


def test_a_file_without_blank_lines_is_cut_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "MAX_DOCUMENT_CHARACTERS", 10)
    path = write(tmp_path / "a.txt", b"0123456\n" * 5)
    assert list(read_documents(path)) == ["0123456\n0123456"] * 2 + ["0123456"]


def test_memory_is_constant(tmp_path: Path):
    path = write(tmp_path / "a.txt.gz", gzip.compress((b"some words " * 20 + b"\n\n") * 200_000, compresslevel=1))
    tracemalloc.start()
    count = sum(1 for _ in read_documents(path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200_000
    assert peak_bytes < 16_000_000


PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
BAD_CONTENT = [
    ("a.txt", b"", "is empty"),
    ("a.txt", b" \n\n\t\n", "holds no documents"),
    ("a.txt", "\ufeff".encode(), "holds no documents"),
    ("a.jsonl", b'\n{"text": " "}\n', "holds no documents"),
    ("a.txt", b"ab\nc\0d", "is not text: expected UTF-8, found a NUL byte at byte 4"),
    ("a.txt", PNG, "is not text: expected UTF-8, found a PNG image"),
    ("a.txt", gzipped(b"x"), r"found gzip data without the ending \.gz"),
    ("a.txt.gz", gzipped(PNG), "found a PNG image"),
    ("a.txt", "text".encode("utf-16"), "found UTF-16 text; convert it"),
    ("a.txt", b"good\nbad \xe9t\xe9", "not UTF-8: byte 0xe9 at byte 9 .*`--encoding-errors replace`"),
    ("a.txt", "\ufeff".encode() + b"\xff", "not UTF-8: byte 0xff at byte 3"),
    ("a.jsonl", b'{"text": "caf\xe9"}', "not UTF-8: byte 0xe9 at byte 13"),
    ("a.jsonl", b'{"text": "a"}\n{"title": "b"}', r"a\.jsonl:2: no field 'text'; it has 'title'; .*--text-field"),
    ("a.jsonl", b'{"text": 5}', r"a\.jsonl:1: the field 'text' must be text, but is int"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": ', r"a\.jsonl:3: not a JSON record"),
    ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, r"a\.jsonl:2: cannot be read as JSON \(maximum recursion depth"),
    ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", r"a\.jsonl:1: cannot be read as JSON \(Exceeds the limit"),
    ("a.json", b'[{"text": "a"}]', r"a\.json:1: expected a JSON object with 'text', found a list"),
    ("a.txt.gz", gzipped(b"line\n" * 1000)[:-12], "is truncated: its gzip data ends early"),
    ("a.txt.gz", b"plain text", "is damaged: no valid gzip data"),
    ("a.txt.gz", gzipped(b"text") + b"rubbish", "is damaged: no valid gzip data after 4 decompressed bytes"),
    ("a.txt.zst", COMPRESSIONS[".zst"](b"line %d\n" * 9)[:-2], "is truncated: its zstd data ends early"),
    ("a.txt.zst", b"plain text", "is damaged: no valid zstd data"),
    ("a.parquet", b"PAR1 and no more", "is no Parquet file or is truncated"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_CONTENT)
def test_bad_content(tmp_path: Path, name: str, content: bytes, message: str):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_documents(path))
    assert str(path) in str(caught.value)


def test_offset_of_a_bad_byte_far_into_the_file(tmp_path: Path):
    path = write(tmp_path / "a.txt", b"a line of text\n" * 200_000 + b"\x80")
    with pytest.raises(ValueError, match="byte 0x80 at byte 3000000 "):
        list(read_documents(path))


def test_encoding_errors_can_be_passed_over(tmp_path: Path):
    path = write(tmp_path / "a.txt", b"bad \xe9 byte")
    assert list(read_documents(path, encoding_errors="replace")) == ["bad \ufffd byte"]
    assert list(read_documents(path, encoding_errors="ignore")) == ["bad  byte"]
    with pytest.raises(ValueError, match="encoding_errors must be one of strict, replace, ignore, but is 'skip'"):
        list(read_documents(path, encoding_errors="skip"))


def test_paths_that_are_no_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.txt"):
        list(read_documents(tmp_path / "absent.txt"))
    with pytest.raises(IsADirectoryError, match="is a directory: expected a file"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("log_bytes", [28, 31])
def test_long_windows_of_zstd(tmp_path: Path, log_bytes: int):
    """As of ``zstd --long=31``: a frame whose header says how far back it may look, with one block."""
    text = b"a line\n"
    frame = b"\x28\xb5\x2f\xfd\0" + bytes([(log_bytes - 10) << 3]) + (len(text) << 3 | 1).to_bytes(3, "little") + text
    assert list(read_documents(write(tmp_path / "a.txt.zst", frame))) == ["a line"]


def test_damage_inside_a_parquet_file_is_placed(tmp_path: Path):
    path = tmp_path / "a.parquet"
    texts = [f"{number} " * 50 for number in range(4096)]
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=1024, compression="snappy")
    begin = parquet.ParquetFile(path).metadata.row_group(2).column(0).dictionary_page_offset
    content = path.read_bytes()
    write(path, content[: begin + 40] + b"\xff" * 200 + content[begin + 240 :])
    with pytest.raises(ValueError, match=r"a\.parquet is damaged behind row 2048 \(.*\); fetch or write it again"):
        list(read_documents(path))


def test_parquet_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["a", None]}), path)
    with pytest.raises(ValueError, match="no column 'text'; it has 'body'"):
        list(read_documents(path))
    with pytest.raises(ValueError, match="row 2: the field 'body' must be text, but is NoneType"):
        list(read_documents(path, text_field="body"))
    monkeypatch.setattr(corpus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs pyarrow, .*`pip install fastssl\[parquet\]`"):
        list(read_documents(path))


def test_corpus_can_be_read_twice_and_in_part(tmp_path: Path):
    paths = [write(tmp_path / name, b"aaaa\n\nbbbb\n\ncccc") for name in ("a.txt", "b.txt")]
    files = Corpus(paths=paths)
    assert list(files) == list(files) == ["aaaa", "bbbb", "cccc"] * 2
    assert list(Corpus(paths=paths, max_characters=10)) == ["aaaa", "bbbb"] * 2


_EXACT_TEXT = "\ufeffone\r\n\n  two \n\n\n<|endoftext|>\nthree\n \n<|endoftext|>\r\n<|endoftext|>\nfour <|endoftext|>"


@pytest.mark.parametrize(
    ("separator", "documents"),
    [
        (None, [_EXACT_TEXT[1:]]),
        ("<|endoftext|>", ["one\r\n\n  two \n\n\n", "three\n \n", "four <|endoftext|>"]),
        ("", ["one\r\n", "  two \n", _EXACT_TEXT[_EXACT_TEXT.index("<") :]]),
    ],
)
@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_exact_text_stays_as_it_is(tmp_path: Path, separator: str | None, documents: list[str], ending: str):
    path = write(tmp_path / f"a.txt{ending}", COMPRESSIONS[ending](_EXACT_TEXT.encode()))
    form = TextForm(exact=True, document_separator=separator)
    assert list(read_documents(path, form=form)) == documents
    assert list(Corpus(paths=[path], form=form)) == documents


def test_exact_records_stay_as_they_are(tmp_path: Path):
    texts = ["a\r\n\n b\n", "\n\nc"]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    assert list(read_documents(path, form=EXACT)) == texts


def test_a_long_exact_document_is_cut_at_a_line_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "MAX_DOCUMENT_CHARACTERS", 10)
    text = "".join(f"line {i}\n\n" for i in range(9))
    found = list(read_documents(write(tmp_path / "a.txt", text.encode()), form=EXACT))
    assert "".join(found) == text
    assert max(map(len, found)) <= 10 + len("line 0\n")


def test_a_separator_is_of_exact_text():
    with pytest.raises(ValueError, match="document_separator is of exact text"):
        TextForm(document_separator="x")
