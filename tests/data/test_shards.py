"""Token shards: what goes in comes out, and damage is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.data.shard_format import SourceInfo, token_dtype
from fastssl.data.shard_writer import ShardWriter
from fastssl.data.shards import ShardError, ShardIndex, TokenShards
from fastssl.data.tokenizer import Tokenizer

Documents = list[list[list[int]]]


def write_shards(directory: Path, parts: list[Documents], *, vocab_size: int, fingerprint: str = "f") -> None:
    """Write documents (lists of sentences, lists of ids) as the parts of one directory; even ids start words."""
    infos = []
    for number, documents in enumerate(parts):
        with ShardWriter(directory / f"part-{number}.tokens", vocab_size=vocab_size) as writer:
            sentences = [sentence for document in documents for sentence in document]
            tokens = np.array([i for sentence in sentences for i in sentence], dtype=np.int32)
            lengths = [np.array([len(x) for x in level], dtype=np.int64) for level in (sentences, documents)]
            writer.add_documents(tokens, tokens % 2 == 0, *lengths)
            infos.append(writer.finish(next_source=1, next_document=0))
    source = SourceInfo(path="a.txt", size_bytes=1, modified_ns=1, sha256="0")
    ShardIndex(
        vocab_size=vocab_size, tokenizer_fingerprint=fingerprint, complete=True, sources=(source,), parts=tuple(infos)
    ).write(directory)


def nonempty(documents: Documents) -> Documents:
    return [kept for sentences in documents if (kept := [s for s in sentences if s])]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    vocab_size = data.draw(st.sampled_from([7, 65536, 65537, 1 << 20]))
    sentences = st.lists(st.integers(0, vocab_size - 1), max_size=6)
    parts = data.draw(st.lists(st.lists(st.lists(sentences, max_size=4), max_size=4), max_size=3))
    directory = tmp_path_factory.mktemp("shards")
    write_shards(directory, parts, vocab_size=vocab_size)
    shards = TokenShards.open(directory)
    shards.verify()
    expected = [document for documents in parts for document in nonempty(documents)]
    assert [[s.tolist() for s in document] for document in shards.documents()] == expected
    assert shards.sentence_lengths().tolist() == [len(s) for document in expected for s in document]
    assert shards.document_lengths().tolist() == [sum(map(len, document)) for document in expected]
    assert shards.num_tokens == sum(map(len, (s for document in expected for s in document)))
    assert (shards.num_documents, len(shards.parts)) == (len(expected), len(parts))
    for part in shards.parts:
        assert part.tokens.dtype == token_dtype(vocab_size)
        assert np.array_equal(part.word_starts, part.tokens % 2 == 0)
        assert part.document_offsets[-1] == part.num_sentences


def test_ids_take_two_bytes_while_they_fit():
    assert [token_dtype(n).itemsize for n in (30522, 65536, 65537)] == [2, 2, 4]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_shards(tmp_path, [[[[1, 2, 3], [4, 5]], [[6] * 100]]], vocab_size=10)
    return tmp_path


def test_arrays_are_read_only_maps(directory: Path):
    part = TokenShards.open(directory).parts[0]
    for values in (part.tokens, part.word_starts, part.sentence_offsets, part.document_offsets):
        assert not values.flags.writeable
        assert not values.flags.owndata


def test_truncated_part(directory: Path):
    file = directory / "part-0.tokens"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"part-0\.tokens is truncated or altered: expected \d+ bytes.*encode again"):
        TokenShards.open(directory)


def test_missing_part(directory: Path):
    (directory / "part-0.tokens").unlink()
    with pytest.raises(ShardError, match=r"part-0\.tokens is missing; encode again"):
        TokenShards.open(directory)


@pytest.mark.parametrize("position", [3, 20, 40])
def test_altered_header(directory: Path, position: int):
    flip_byte(directory / "part-0.tokens", position)
    with pytest.raises(ShardError, match="header contradicts the index"):
        TokenShards.open(directory)


@pytest.mark.parametrize("position", [50, 64, 200, -1])
def test_altered_content_is_found_by_verify(directory: Path, position: int):
    flip_byte(directory / "part-0.tokens", position)
    with pytest.raises(ShardError, match=r"is altered.*encode again"):
        TokenShards.open(directory).verify()


def flip_byte(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x40
    file.write_bytes(content)


def test_altered_index(directory: Path):
    file = directory / "index.json"
    for text in (file.read_text().replace('"num_tokens": 105', '"num_tokens": 104'), file.read_text()[:-9], "[]"):
        file.write_text(text)
        with pytest.raises(ShardError, match=r"index\.json is damaged.*encode again"):
            TokenShards.open(directory)


def test_index_of_a_later_version(directory: Path):
    from fastssl.data.files import read_checked_json, write_checked_json

    content = read_checked_json(directory / "index.json")
    write_checked_json(directory / "index.json", {**content, "version": 2})
    with pytest.raises(ShardError, match="version 2; expected 'fastssl token shards' version 1"):
        TokenShards.open(directory)


def test_no_index(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing.*fastssl data encode"):
        TokenShards.open(tmp_path)


def test_unfinished_index(directory: Path):
    index = ShardIndex.read(directory)
    ShardIndex(vocab_size=10, tokenizer_fingerprint="f", sources=index.sources, parts=index.parts).write(directory)
    with pytest.raises(ShardError, match=r"are unfinished; encode again to go on"):
        TokenShards.open(directory)


def test_other_tokenizer(tmp_path: Path):
    ours = Tokenizer.train_wordpiece(["some words here"] * 3, vocab_size=60)
    theirs = Tokenizer.train_wordpiece(["other text there"] * 3, vocab_size=60)
    write_shards(tmp_path, [[[[1]]]], vocab_size=ours.vocab_size, fingerprint=ours.fingerprint)
    assert TokenShards.open(tmp_path, tokenizer=ours).num_tokens == 1
    with pytest.raises(ShardError, match="made with another tokenizer"):
        TokenShards.open(tmp_path, tokenizer=theirs)


def test_writer_leaves_nothing_behind_on_error(tmp_path: Path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "part", vocab_size=10) as writer:
        writer.add_documents(np.ones(3, dtype=np.int32), np.ones(3), np.array([3]), np.array([1]))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_follows_the_content(tmp_path: Path):
    fingerprints = []
    for name, tokens in (("a", [1, 2]), ("b", [1, 2]), ("c", [1, 3])):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, [[[tokens]]], vocab_size=10)
        fingerprints.append(TokenShards.open(tmp_path / name).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_index_is_readable_json(directory: Path):
    content = json.loads((directory / "index.json").read_text())
    assert content["format"] == "fastssl token shards"
    assert content["parts"][0]["num_tokens"] == 105
