"""``fastssl data``: from text files to shards, examples in words, and counts."""

import gzip
import re
from pathlib import Path

import pytest

from fastssl.cli.main import main
from fastssl.data.causal import CausalData, CausalObjectiveConfig
from fastssl.data.shards import TokenShards
from fastssl.data.tokenizer import Tokenizer

_VERSES = "And God saw the light, that it was good. And God divided the light from the darkness.\n" * 4
_TEXT = "\n".join([_VERSES, _VERSES.replace("light", "evening"), _VERSES.replace("God", "the king")])


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "verses.txt"
    path.write_text(_TEXT, encoding="utf-8")
    return path


@pytest.fixture
def shards_directory(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    output = tmp_path / "shards"
    assert main(["data", "encode", str(text_file), "--vocab-size", "120", "--output-dir", str(output)]) == 0
    capsys.readouterr()
    return output


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err


def test_encode_trains_a_tokenizer(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "shards"
    arguments = ["data", "encode", str(text_file), "--vocab-size", "120", "--cased", "--output-dir", str(output)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    shards = TokenShards.open(output, tokenizer=Tokenizer.load(output))
    assert f"{shards.num_tokens:,} tokens of 24 sentences in 3 documents" in shown
    assert Tokenizer.load(output).token_to_id("God") is not None
    assert main(arguments) == 0, "encoding again must find everything done"


def test_encode_with_a_tokenizer(text_file: Path, tmp_path: Path, test_data: Path):
    tokenizer = test_data / "tokenizers" / "bert-base-uncased"
    compressed = tmp_path / "verses.txt.gz"
    compressed.write_bytes(gzip.compress(text_file.read_bytes()))
    arguments = ["--tokenizer", str(tokenizer), "--output-dir", str(tmp_path / "shards"), "--num-processes", "2"]
    assert main(["data", "encode", str(text_file), str(compressed), *arguments]) == 0
    shards = TokenShards.open(tmp_path / "shards", tokenizer=Tokenizer.load(tokenizer))
    assert shards.num_documents == 6


def test_encode_tells_what_the_tokenizer_does_not_know(text_file: Path, tmp_path: Path, capsys):
    chinese = tmp_path / "chinese.txt"
    chinese.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 400))) * 2 + "\n")
    output = str(tmp_path / "shards")
    assert main(["data", "encode", str(chinese), "--vocab-size", "100", "--output-dir", output]) == 0
    assert "% of the tokens are [UNK]: the tokenizer does not know their characters" in capsys.readouterr().out
    arguments = ["data", "encode", str(text_file), "--vocab-size", "120", "--output-dir", output + "-2"]
    assert main(arguments) == 0
    assert "[UNK]" not in capsys.readouterr().out


def test_encode_makes_no_sentences_that_nothing_learns_from(text_file: Path, tmp_path: Path, capsys):
    arguments = ["data", "encode", str(text_file), "--tokenizer-type", "bpe", "--output-dir", str(tmp_path / "shards")]
    assert main(arguments) != 0
    assert "and bpe has no mask token; give --text-form exact" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_encode_of_another_file_needs_overwrite(
    shards_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other.txt"
    other.write_text(_TEXT[: len(_VERSES)])
    arguments = [
        "data",
        "encode",
        str(other),
        "--tokenizer",
        str(shards_directory),
        "--output-dir",
        str(shards_directory),
    ]
    assert "--overwrite" in error_of(arguments, capsys)
    assert main([*arguments, "--overwrite"]) == 0
    assert TokenShards.open(shards_directory).num_documents == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x00\x01", "a NUL byte at byte 0"),
        (b"caf\xe9", "byte 0xe9 at byte 3"),
        (b"\n\n", "holds no documents"),
    ],
)
def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    shown = error_of(["data", "encode", str(path), "--vocab-size", "99", "--output-dir", str(tmp_path / "out")], capsys)
    assert shown.startswith("fastssl: error: ")
    assert shown.count("\n") == 1
    assert str(path) in shown
    assert message in shown


def test_bad_bytes_can_be_replaced(tmp_path: Path):
    path = tmp_path / "bad.txt"
    path.write_bytes(_TEXT.encode() + b"caf\xe9")
    arguments = ["--vocab-size", "120", "--output-dir", str(tmp_path / "out"), "--encoding-errors", "replace"]
    assert main(["data", "encode", str(path), *arguments]) == 0


@pytest.mark.parametrize("flags", [[], ["--vocab-size", "99", "--tokenizer", "somewhere"]])
def test_one_of_tokenizer_and_vocabulary_size(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
):
    shown = error_of(["data", "encode", str(text_file), "--output-dir", str(tmp_path / "out"), *flags], capsys)
    assert "either --tokenizer DIR or --vocab-size N" in shown


@pytest.mark.parametrize("verb", ["encode", "show", "stats"])
def test_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str):
    output = ["--output-dir", str(tmp_path)] if verb == "encode" else []
    assert "no files given" in error_of(["data", verb, *output], capsys)


@pytest.mark.parametrize("strategy", ["token", "word", "ngram", "span"])
@pytest.mark.parametrize("sentence_objective", ["none", "nsp", "sop"])
def test_show_restores_the_text(
    shards_directory: Path, capsys: pytest.CaptureFixture[str], strategy: str, sentence_objective: str
):
    objective = ["--mask-strategy", strategy, "--sentence-objective", sentence_objective, "--max-seq-length", "40"]
    assert main(["data", "show", str(shards_directory), *objective, "--num-examples", "4"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("example ") == 4
    assert ("order " in shown) == (sentence_objective != "none")
    assert "[MASK] -> " in shown
    tokenizer = Tokenizer.load(shards_directory)
    text = tokenizer.decode(tokenizer.encode(" ".join(_TEXT.split())))
    for line in re.findall(r"^  restored  (.*)$", shown, re.MULTILINE):
        for segment in line.split(" | "):
            assert "[MASK]" not in segment
            assert segment in text


def test_show_counts_what_is_to_be_predicted(shards_directory: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "show", str(shards_directory), "--mask-rate", "0.5", "--num-examples", "2"]) == 0
    for length, targets in re.findall(r"example \d+: (\d+) tokens, (\d+) to predict", capsys.readouterr().out):
        assert int(targets) == round(0.5 * int(length))


def test_show_of_text_files(text_file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "show", str(text_file), "--vocab-size", "120", "--num-examples", "1"]) == 0
    assert "restored" in capsys.readouterr().out


def test_show_with_another_tokenizer(shards_directory: Path, test_data: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = test_data / "tokenizers" / "bert-base-uncased"
    shown = error_of(["data", "show", str(shards_directory), "--tokenizer", str(tokenizer)], capsys)
    assert "made with another tokenizer" in shown


def test_show_of_a_directory_without_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "no token shards at" in error_of(["data", "show", str(tmp_path)], capsys)


def test_next_sentence_prediction_needs_two_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "one.txt"
    path.write_text(_VERSES)
    arguments = ["data", "show", str(path), "--vocab-size", "99", "--sentence-objective", "nsp"]
    assert "'nsp' needs at least 2 documents" in error_of(arguments, capsys)


def test_show_of_damaged_shards(shards_directory: Path, capsys: pytest.CaptureFixture[str]):
    (part,) = shards_directory.glob("part-*")
    part.write_bytes(part.read_bytes()[:-8])
    assert "truncated or altered" in error_of(["data", "show", str(shards_directory)], capsys)


def test_stats(shards_directory: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--max-seq-length", "64", "--tokens-per-batch", "256", "--short-sequence-rate", "0"]
    assert main(["data", "stats", str(shards_directory), *flags]) == 0
    shown = capsys.readouterr().out
    shards = TokenShards.open(shards_directory)
    assert re.search(rf"documents +{shards.num_documents} ", shown)
    assert re.search(rf"sentences +{shards.num_sentences} ", shown)
    assert re.search(rf"tokens +{shards.num_tokens}\b", shown)
    counts = [int(count) for count in re.findall(r"^ \d+-\d+ +(\d+)", shown, re.MULTILINE)]
    assert sum(counts) == int(re.search(r"sequences +(\d+)", shown)[1])
    assert 0 < float(re.search(r"batch fill +([\d.]+)%", shown)[1]) <= 100


def test_stats_of_real_text(test_data: Path, capsys: pytest.CaptureFixture[str]):
    path, tokenizer = test_data / "corpus" / "wikitext2.valid.txt", test_data / "tokenizers" / "bert-base-uncased"
    assert main(["data", "stats", str(path), "--tokenizer", str(tokenizer)]) == 0
    assert re.search(r"documents +1,160 ", capsys.readouterr().out)


def test_stats_with_a_budget_below_one_sequence(shards_directory: Path, capsys: pytest.CaptureFixture[str]):
    shown = error_of(["data", "stats", str(shards_directory), "--tokens-per-batch", "100"], capsys)
    assert "tokens_per_batch must hold the longest sequence, max_seq_length=128, but is 100" in shown


def test_exact_text_is_encoded_for_causal_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stories = tmp_path / "stories.txt"
    stories.write_text("Once.\n\n  Twice upon.\n<|end|>\nThe end\n")
    out = tmp_path / "shards"
    flags = ["--tokenizer-type", "bytes", "--text-form", "exact", "--document-separator", "<|end|>"]
    assert main(["data", "encode", str(stories), *flags, "--output-dir", str(out)]) == 0
    assert "pretrain --arch gpt" in capsys.readouterr().out
    texts = [bytes(ids.tolist()).decode() for (ids,) in TokenShards.open(out).documents()]
    assert texts == ["Once.\n\n  Twice upon.\n", "The end\n"]
    assert main(["data", "show", str(out), "--num-examples", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    read, predicted = (line.split()[1:] for line in shown[1:3])
    assert read[1:] == predicted[:-1]
    assert shown[3].split(maxsplit=1)[1] in (repr(text) for text in texts)
    assert main(["data", "stats", str(out), "--max-seq-length", "16", "--tokens-per-batch", "16"]) == 0
    shown = capsys.readouterr().out
    shards = TokenShards.open(out)
    data = CausalData(
        shards, Tokenizer.load(out).bounds, CausalObjectiveConfig(max_seq_length=16), seed=42, tokens_per_batch=16
    )
    assert re.search(rf"sequences +{data.plan(0).num_examples} ", shown)
    assert re.search(rf"batches +{data.num_batches(0)} of at most 16 ", shown)


def test_exact_text_wants_a_tokenizer_that_loses_nothing(tmp_path: Path, test_data: Path, capsys):
    stories = tmp_path / "stories.txt"
    stories.write_text("Once upon a time.\n" * 9)
    flags = ["data", "encode", str(stories), "--text-form", "exact", "--output-dir", str(tmp_path / "shards")]
    assert "give --tokenizer-type bpe, characters or bytes, or" in error_of([*flags, "--vocab-size", "99"], capsys)
    tokenizer = str(test_data / "tokenizers" / "bert-base-uncased")
    assert "made for causal language models" in error_of([*flags, "--tokenizer", tokenizer], capsys)
    of_bytes = [*flags, "--tokenizer-type", "bytes", "--vocab-size", "99"]
    assert "takes the 256 bytes as tokens: leave out --vocab-size" in error_of(of_bytes, capsys)
