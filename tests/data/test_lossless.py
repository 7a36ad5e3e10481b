"""Tokenizers for causal models: every text comes back, and transformers reads them."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from fastssl.data.lossless import byte_characters
from fastssl.data.tokenizer import TextBounds, Tokenizer

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n  Speak,\tspeak!\r\n" * 3
STRANGE = "Café 台灣大學\r\n\n  <|endoftext|> [MASK]\t x\u3000\x01\ufeff 🙂 'll 3.14 "
BYTE_PAIRS = Tokenizer.train_byte_pairs([TEXT], vocab_size=300)
BYTES = Tokenizer.of_bytes()


@pytest.fixture(scope="module")
def gpt2(test_data: Path) -> Tokenizer:
    return Tokenizer.load(test_data / "tokenizers" / "gpt2")


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ((ids, _),) = tokenizer.encode_batch([text])
    return ids.tolist()


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str):
    for tokenizer in (BYTE_PAIRS, BYTES):
        assert tokenizer.decode(plain_ids(tokenizer, text)) == text
    assert plain_ids(BYTES, text) == list(text.encode())


def test_files_come_back(test_data: Path, gpt2: Tokenizer):
    for name in ("tinyshakespeare", "kjv"):
        text = (test_data / "corpus" / f"{name}.txt").read_bytes().decode()[:200_000]
        for tokenizer in (gpt2, Tokenizer.train_byte_pairs([text], vocab_size=600), Tokenizer.train_characters([text])):
            assert tokenizer.decode(plain_ids(tokenizer, text)) == text


def test_published_gpt2(gpt2: Tokenizer, test_data: Path, tmp_path: Path):
    assert gpt2.vocab_size == 50257
    assert gpt2.bounds == TextBounds(bos=50256, eos=50256)
    assert gpt2.encode("Hello world<|endoftext|>") == [15496, 995, 50256]
    assert 50256 not in plain_ids(gpt2, "Hello world<|endoftext|>")
    for theirs, ours in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        shutil.copy(test_data / "tokenizers" / "gpt2" / ours, tmp_path / theirs)
    published = GPT2Tokenizer.from_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == gpt2.fingerprint
    for text in (STRANGE, TEXT, ""):
        assert published(text)["input_ids"] == gpt2.encode(text)


@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
def test_transformers_gives_the_same_ids(kind: str, tmp_path: Path):
    characters = Tokenizer.train_characters([TEXT])
    tokenizer = {"bpe": BYTE_PAIRS, "bytes": BYTES, "characters": characters}[kind]
    tokenizer.save(tmp_path, model_max_length=64)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0}')
    for theirs in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert (theirs.eos_token, theirs.eos_token_id) == ("<|endoftext|>", tokenizer.bounds.eos)
        assert theirs.model_max_length == 64
        for text in (TEXT, STRANGE):
            ids = theirs(text)["input_ids"]
            assert ids == [tokenizer.bounds.bos, *tokenizer.encode(text)]
            assert theirs.decode(ids) == tokenizer.decode(ids)
    assert tokenizer.adds_bos
    again = Tokenizer.load(tmp_path)
    assert (again.fingerprint, again.bounds) == (tokenizer.fingerprint, tokenizer.bounds)


def test_spelling_of_bytes_is_the_librarys():
    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert plain_ids(BYTES, "A\n\u00e9") == [65, 10, 0xC3, 0xA9]
    assert BYTES.bounds == TextBounds(bos=256, eos=256)


def test_training_again_gives_the_same_tokenizer():
    code = (
        "from fastssl.data.tokenizer import Tokenizer; from tests.data.test_lossless import TEXT; "
        "print(Tokenizer.train_byte_pairs([TEXT], vocab_size=300).fingerprint)"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == BYTE_PAIRS.fingerprint


def test_characters_that_the_text_lacked_are_unknown():
    tokenizer = Tokenizer.train_characters(["abba\n", "cab b"])
    assert tokenizer.vocab_size == 2 + len("abc \n")
    assert tokenizer.decode(plain_ids(tokenizer, "cab\nz")) == "cab\n<unk>"
    kept = Tokenizer.train_characters(["aaabbc"], vocab_size=4)
    assert kept.decode(plain_ids(kept, "abc")) == "ab<unk>"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tokenizer.train_byte_pairs([TEXT], vocab_size=256), r"at least 257 tokens, but is 256"),
        (lambda: Tokenizer.train_byte_pairs([], vocab_size=300), "no text to train a tokenizer on"),
        (lambda: Tokenizer.train_characters(["", ""]), "no text to train a tokenizer on"),
        (lambda: Tokenizer.train_characters(["ab"], vocab_size=2), "at least 3, but is 2"),
        (lambda: BYTES.special, r"has no pad token.*masked language models"),
    ],
)
def test_errors_say_what_is_wanted(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"encoder.json": '{"a": 0}'}, FileNotFoundError, r"vocab\.bpe is missing, which encoder\.json needs"),
        ({"vocab.json": "{", "merges.txt": "a b"}, ValueError, r"vocab\.json or merges\.txt is damaged"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b"}, ValueError, r"vocab\.json or merges\.txt is damaged"),
    ],
)
def test_damaged_byte_pair_files(tmp_path: Path, files: dict[str, str], error: type[Exception], message: str):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        Tokenizer.load(tmp_path)


def published_byte_pairs(directory: Path, test_data: Path, config: dict, added: dict[str, int] | None = None) -> None:
    """Write GPT-2's pairs as a directory without tokenizer.json holds them."""
    for theirs, ours in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        shutil.copy(test_data / "tokenizers" / "gpt2" / ours, directory / theirs)
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if added is not None:
        (directory / "added_tokens.json").write_text(json.dumps(added))


ADDED = {"50257": {"content": "[PAD]", "special": True}, "50258": {"content": "an added one", "special": False}}


@pytest.mark.parametrize(
    ("config", "added"),
    [
        ({"tokenizer_class": "GPT2Tokenizer", "pad_token": "[PAD]"}, {"an added one": 50258, "[PAD]": 50257}),
        ({"tokenizer_class": "GPT2Tokenizer", "eos_token": "[PAD]", "added_tokens_decoder": ADDED}, None),
        ({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "[PAD]", "added_tokens_decoder": ADDED}, None),
    ],
    ids=["added_tokens.json", "tokenizer_config.json", "Qwen2"],
)
def test_byte_pair_files_beside_others_give_the_published_ids(config, added, test_data: Path, tmp_path: Path):
    published_byte_pairs(tmp_path, test_data, config, added)
    tokenizer, published = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(published).__name__ == config["tokenizer_class"]
    assert tokenizer.vocab_size == len(published) == 50259
    kind = "pad" if "pad_token" in config else "eos"
    assert tokenizer.token_to_id(tokenizer.special_names[kind]) == 50257
    for text in ("[PAD] Take an added one.", "year 12345 i'LL don'T cafe\u0301\n\n  x", STRANGE, TEXT):
        assert tokenizer.encode(text) == published(text)["input_ids"]


@pytest.mark.parametrize(
    ("config", "added", "message"),
    [
        ({}, {"[PAD]": 50300}, r"'\[PAD\]' the id 50300, but behind vocab\.json it has 50257: .*save"),
        ({}, {"hello": 50257}, r"'hello' the id 50257, but behind vocab\.json it has 31373"),
        ({}, {"[PAD]": None}, r"added_tokens\.json is damaged: expected added tokens"),
        ({"added_tokens_decoder": [1]}, None, r"tokenizer_config\.json is damaged: expected added tokens"),
        (
            {"tokenizer_class": "WhisperTokenizer"},
            None,
            r"holds a WhisperTokenizer, whose vocab\.json alone does",
        ),
    ],
)
def test_byte_pair_files_that_cannot_be_completed(config, added, message, test_data: Path, tmp_path: Path):
    published_byte_pairs(tmp_path, test_data, config, added)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


def test_a_special_token_that_is_not_there_is_named_when_it_is_needed(test_data: Path, tmp_path: Path):
    """Published directories name padding tokens that their models have no row for, and that nobody needs."""
    published_byte_pairs(tmp_path, test_data, {"eos_token": "<|im_end|>", "pad_token": "[PAD]"})
    tokenizer = Tokenizer.load(tmp_path)
    for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        with pytest.raises(ValueError, match=r"the eos token is said to be '<\|im_end\|>', which the vocabulary lacks"):
            _ = one.bounds
