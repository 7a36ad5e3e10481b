"""Encoding: what is stored is the text, however it was cut up, interrupted or resumed."""

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastssl.data import encode, encoding_pool, shard_writer
from fastssl.data.corpus import EXACT, read_documents
from fastssl.data.encode import encode_files
from fastssl.data.encoding_pool import EncodingPool
from fastssl.data.encoding_worker import encode_documents
from fastssl.data.sentences import split_sentences
from fastssl.data.shard_format import ShardError, ShardIndex
from fastssl.data.shards import TokenShards
from fastssl.data.tokenizer import Tokenizer

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer(test_data: Path) -> Tokenizer:
    return Tokenizer.load(test_data / "tokenizers" / "bert-base-uncased")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train_wordpiece(["some words to be found again, one by one. " * 3] * 3, vocab_size=80)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_CHUNK_CHARACTERS", 40)


def text_file(path: Path, numbers: range) -> Path:
    path.write_text("\n\n".join(f"one word {i} to find. again {i}\nby words" for i in numbers), encoding="utf-8")
    return path


def contents(shards: TokenShards) -> list[list[list[int]]]:
    return [[sentence.tolist() for sentence in document] for document in shards.documents()]


def expected_contents(paths: list[Path], tokenizer: Tokenizer) -> list[list[list[int]]]:
    documents = [split_sentences(document) for path in paths for document in read_documents(path)]
    return [[ids.tolist() for ids, _ in tokenizer.encode_batch(sentences)] for sentences in documents]


def test_real_text(tokenizer: Tokenizer, test_data: Path, tmp_path: Path):
    path = test_data / "corpus" / "wikitext2.valid.txt"
    shards = encode_files([path], tokenizer, tmp_path, progress=False)
    assert (shards.num_documents, shards.vocab_size) == (1160, 30522)
    assert shards.parts[0].tokens.dtype == np.uint16
    assert contents(shards) == expected_contents([path], tokenizer)
    lines = tokenizer.encode_batch(path.read_text(encoding="utf-8").split("\n"))
    whole = np.concatenate([ids for ids, _ in lines]).tolist()
    assert np.concatenate([part.tokens for part in shards.parts]).tolist() == whole
    starts = np.concatenate([part.word_starts for part in shards.parts])
    assert [tokenizer.id_to_token(i).startswith("##") for i in whole] == (starts == 0).tolist()
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    shards.verify()


def test_a_damaged_index_is_replaced_on_request(words: Tokenizer, tmp_path: Path):
    path = text_file(tmp_path / "a.txt", range(5))
    encode_files([path], words, tmp_path / "out", progress=False)
    index = tmp_path / "out" / "index.json"
    index.write_text(index.read_text()[:50])
    with pytest.raises(ShardError, match=r"index\.json is damaged.*encode again with --overwrite"):
        encode_files([path], words, tmp_path / "out", progress=False)
    encode_files([path], words, tmp_path / "out", progress=False, overwrite=True).verify()


def test_most_of_the_time_goes_to_the_tokenizer(tokenizer: Tokenizer, test_data: Path):
    documents = list(read_documents(test_data / "corpus" / "wikitext2.test.txt"))[:300]
    sentences = [sentence for document in documents for sentence in split_sentences(document)]
    ratios = []
    for _ in range(3):
        start = time.process_time()
        for sentence in sentences:
            tokenizer.encode(sentence)
        middle = time.process_time()
        encode_documents(documents, tokenizer, parallel=False)
        ratios.append((time.process_time() - middle) / (middle - start))
    assert min(ratios) < 2


def test_processes_do_not_change_the_result(words: Tokenizer, tmp_path: Path, small_chunks: None):
    paths = [text_file(tmp_path / f"{i}.txt", range(10 * i, 10 * i + 10)) for i in range(4)]
    encoded = [
        encode_files(paths, words, tmp_path / str(n), num_processes=n, progress=False, tokens_per_part=150)
        for n in (1, 2)
    ]
    assert contents(encoded[0]) == contents(encoded[1]) == expected_contents(paths, words)
    assert encoded[0].fingerprint == encoded[1].fingerprint
    assert len(encoded[0].parts) > 3


def test_finished_shards_are_not_made_again(words: Tokenizer, tmp_path: Path):
    path = text_file(tmp_path / "a.txt", range(5))
    encode_files([path], words, tmp_path / "out", progress=False)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    encode_files([path], words, tmp_path / "out", progress=False)
    os.utime(path, (1, 1))
    encode_files([path], words, tmp_path / "out", progress=False)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


def test_resumes_behind_the_last_finished_part(
    words: Tokenizer, tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
):
    paths = [text_file(tmp_path / f"{i}.txt", range(30)) for i in range(3)]
    whole = encode_files(paths, words, tmp_path / "whole", progress=False, tokens_per_part=200)
    for interrupted_at in range(1, len(whole.parts)):
        output = tmp_path / f"out{interrupted_at}"
        with monkeypatch.context() as patch:
            patch.setattr(encode._Encoding, "_finish_part", failing_after(interrupted_at))
            with pytest.raises(KeyboardInterrupt):
                encode_files(paths, words, output, progress=False, tokens_per_part=200)
        with pytest.raises(ShardError, match="unfinished; encode again to go on"):
            TokenShards.open(output)
        kept = {file: file.stat().st_mtime_ns for file in output.glob("part-*")}
        assert len(kept) == interrupted_at
        resumed = encode_files(paths, words, output, progress=False, tokens_per_part=200)
        assert contents(resumed) == contents(whole)
        assert {file: file.stat().st_mtime_ns for file in kept} == kept
        assert resumed.fingerprint == whole.fingerprint


def failing_after(num_parts: int):
    finish = encode._Encoding._finish_part

    def finish_part(self, writer):
        if len(self._index.parts) == num_parts:
            raise KeyboardInterrupt
        finish(self, writer)

    return finish_part


def test_changed_source_is_encoded_again(words: Tokenizer, tmp_path: Path):
    paths = [text_file(tmp_path / f"{i}.txt", range(9)) for i in range(3)]
    encode_files(paths, words, tmp_path / "out", progress=False, tokens_per_part=60)
    text_file(paths[1], range(20, 25))
    shards = encode_files(paths, words, tmp_path / "out", progress=False, tokens_per_part=60)
    assert contents(shards) == expected_contents(paths, words)


def test_more_files_go_behind_the_old_ones(words: Tokenizer, tmp_path: Path):
    paths = [text_file(tmp_path / f"{i}.txt", range(9)) for i in range(3)]
    first = encode_files(paths[:2], words, tmp_path / "out", progress=False)
    checksums = [info.sha256 for info in first.index.parts]
    shards = encode_files(paths, words, tmp_path / "out", progress=False)
    assert contents(shards) == expected_contents(paths, words)
    assert [info.sha256 for info in shards.index.parts][: len(checksums)] == checksums


def test_damaged_part_is_made_anew(words: Tokenizer, tmp_path: Path):
    path = text_file(tmp_path / "a.txt", range(20))
    whole = encode_files([path], words, tmp_path / "out", progress=False, tokens_per_part=60)
    content = bytearray(whole.parts[0].path.read_bytes())
    content[70] ^= 1
    whole.parts[0].path.write_bytes(content)
    with pytest.raises(ShardError, match="is altered"):
        whole.verify()
    encode_files([path], words, tmp_path / "out", progress=False, tokens_per_part=60).verify()


def test_other_tokenizer_settings_or_files(words: Tokenizer, tmp_path: Path):
    first, second = (text_file(tmp_path / name, range(3)) for name in ("a.txt", "b.txt"))
    encode_files([first], words, tmp_path / "out", progress=False)
    other = words.extend(["entirely different vocabulary"] * 3, 40)
    with pytest.raises(ShardError, match=r"another tokenizer.*--overwrite"):
        encode_files([first], other, tmp_path / "out", progress=False)
    with pytest.raises(ShardError, match=r"other settings.*--overwrite"):
        encode_files([first], words, tmp_path / "out", progress=False, encoding_errors="replace")
    with pytest.raises(ShardError, match=r"of other files, such as .*a\.txt.*--overwrite"):
        encode_files([second], words, tmp_path / "out", progress=False)
    shards = encode_files([second], other, tmp_path / "out", progress=False, overwrite=True)
    assert contents(shards) == expected_contents([second], other)


def test_source_that_changes_meanwhile(words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = text_file(tmp_path / "a.txt", range(3))
    describe = encode._describe_source
    monkeypatch.setattr(encode, "_describe_source", lambda path: (describe(path), path.write_text("other"))[0])
    with pytest.raises(ValueError, match="changed while it was being encoded"):
        encode_files([path], words, tmp_path / "out", progress=False)


def test_bad_requests(words: Tokenizer, tmp_path: Path):
    path = text_file(tmp_path / "a.txt", range(3))
    with pytest.raises(ValueError, match="is given 2 times"):
        encode_files([path, path], words, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="list of at least one file"):
        encode_files([], words, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="num_processes must be at least 1, but is 0"):
        encode_files([path], words, tmp_path / "out", progress=False, num_processes=0)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.txt"):
        encode_files([path, tmp_path / "absent.txt"], words, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_text_without_a_token(words: Tokenizer, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("\x01\x02\n\n\x03")
    with pytest.raises(ValueError, match=r"the tokenizer found no token in .*a\.txt"):
        encode_files([path], words, tmp_path / "out", progress=False)


def test_bad_byte_in_a_worker_process(words: Tokenizer, tmp_path: Path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"good line\n\nbad \xff line"))
    with pytest.raises(ValueError, match=r"a\.txt\.gz is not UTF-8: byte 0xff at byte 15"):
        encode_files([path], words, tmp_path / "out", progress=False, num_processes=2)


def test_killed_worker(words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = text_file(tmp_path / "a.txt", range(9))
    message = r"a worker process of the encoding ended with code -?9.*fewer with --num-processes"
    with EncodingPool(words, 2) as pool, pytest.raises(OSError, match=message):
        for worker in pool._workers:
            worker.process.kill()
        list(pool.map_documents(iter([encode._Task(0, ["text"])])))
    monkeypatch.setattr(encoding_pool, "_PROGRAM", "raise SystemExit(9)")
    with pytest.raises(OSError, match=message):
        encode_files([path], words, tmp_path / "out", progress=False, num_processes=2)
    monkeypatch.undo()
    assert contents(encode_files([path], words, tmp_path / "out", progress=False)) == expected_contents([path], words)


def test_a_script_needs_no_main_guard(words: Tokenizer, tmp_path: Path):
    text_file(tmp_path / "a.txt", range(9))
    words.save(tmp_path / "tokenizer")
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(_ROOT)!r})\n"
        "from fastssl.data.encode import encode_files; from fastssl.data.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer.load('tokenizer')\n"
        "print(encode_files(['a.txt'], tokenizer, 'out', num_processes=2, progress=False).num_documents)\n"
    )
    for arguments, program in (([str(script)], None), (["-"], script.read_text())):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        result = subprocess.run(
            [sys.executable, *arguments], input=program, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert result.stdout == "9\n"
        assert result.stderr == ""


@pytest.mark.parametrize("num_processes", [1, 2])
def test_disk_full(
    words: Tokenizer, tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch, num_processes: int
):
    path = text_file(tmp_path / "a.txt", range(40))
    options = {"progress": False, "tokens_per_part": 60, "num_processes": num_processes}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        replace_file, calls = shard_writer.replace_file, []
        patch.setattr(
            shard_writer, "replace_file", lambda *a: full() if len(calls) == 2 else (calls.append(a), replace_file(*a))
        )
        with pytest.raises(OSError, match="No space left"):
            encode_files([path], words, tmp_path / "out", **options)
    assert len(ShardIndex.read(tmp_path / "out").parts) == 2
    assert not list((tmp_path / "out").glob(".*"))
    shards = encode_files([path], words, tmp_path / "out", **options)
    assert contents(shards) == expected_contents([path], words)


def test_killed_at_any_moment(words: Tokenizer, tmp_path: Path):
    path = text_file(tmp_path / "a.txt", range(4000))
    words.save(tmp_path / "tokenizer")
    program = (
        "import sys; from fastssl.data import encode; from fastssl.data.tokenizer import Tokenizer\n"
        "encode._CHUNK_CHARACTERS = 40; tokenizer = Tokenizer.load(sys.argv[2])\n"
        "encode.encode_files([sys.argv[1]], tokenizer, sys.argv[3], progress=False, tokens_per_part=99)"
    )
    output = tmp_path / "out"
    arguments = [sys.executable, "-c", program, str(path), str(tmp_path / "tokenizer"), str(output)]
    parts_before = 0
    for _ in range(3):
        with subprocess.Popen(arguments, cwd=_ROOT) as process:
            while process.poll() is None and len(list(output.glob("part-*"))) <= parts_before + 3:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        index = ShardIndex.read(output)
        assert len(index.parts) > parts_before
        assert not index.complete
        parts_before = len(index.parts)
    shards = encode_files([path], words, output, progress=False)
    assert contents(shards) == expected_contents([path], words)
    assert not list(output.glob(".*"))


def test_exact_text_is_one_sentence_a_document(tmp_path: Path):
    texts = {"a.txt": "One.  Two!\n\nThree\r\n" * 9000, "b.jsonl": json.dumps({"text": "\n x"})}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    paths = [tmp_path / name for name in texts]
    tokenizer = Tokenizer.of_bytes()
    alone = encode_files(paths, tokenizer, tmp_path / "alone", form=EXACT, num_processes=1, progress=False)
    assert alone.is_exact
    assert [bytes(ids) for (ids,) in contents(alone)] == [texts["a.txt"].encode(), b"\n x"]
    pool = encode_files(paths, tokenizer, tmp_path / "pool", form=EXACT, num_processes=2, progress=False)
    assert pool.fingerprint == alone.fingerprint
    with pytest.raises(ShardError, match="other settings"):
        encode_files(paths, tokenizer, tmp_path / "pool", progress=False)
    assert not encode_files(paths, tokenizer, tmp_path / "sentences", progress=False).is_exact
