"""The tokenizer against the library that reads its files, on real vocabularies and real text."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from fastssl.data.tokenizer import TextBounds, Tokenizer
from fastssl.data.wordpiece import BERT_SPECIAL_TOKENS

MIXED = [
    "Hello, wörld! 台灣大學 isn't far.",
    "蘋果即將於下月發表新款iPhone",
    "unaffable 3.14",
    "  ",
    "e=mc²\tTabs\u3000",
]


@pytest.fixture(scope="module")
def bert(test_data: Path) -> Tokenizer:
    return Tokenizer.load(test_data / "tokenizers" / "bert-base-uncased")


@pytest.fixture(scope="module")
def lines(test_data: Path) -> list[str]:
    return (test_data / "corpus" / "kjv.txt").read_text(encoding="utf-8").split("\n")[:4000]


@pytest.fixture(scope="module")
def trained(lines: list[str]) -> Tokenizer:
    return Tokenizer.train_wordpiece(lines, vocab_size=1500)


@pytest.fixture(scope="module")
def byte_level(lines: list[str]) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=names, show_progress=False)
    backend.train_from_iterator(lines[:500], trainer)
    return Tokenizer(backend)


def test_published_vocabulary(bert: Tokenizer):
    assert bert.vocab_size == 30522
    assert bert.special.ids == (0, 100, 101, 102, 103)
    assert bert.encode("a [MASK] b") == [1037, 103, 1038]
    assert bert.decode(bert.encode("hello world")) == "hello world"


def test_padding_and_truncation_of_the_file_are_ignored(bert: Tokenizer, test_data: Path):
    state = json.loads((test_data / "tokenizers" / "bert-base-uncased" / "tokenizer.json").read_text())
    assert state["padding"] is not None, "the file no longer tests this"
    ((ids, _),) = bert.encode_batch(["word " * 300])
    assert ids.tolist() == [2773] * 300


def test_json_and_vocabulary_file_agree(bert: Tokenizer, test_data: Path, lines: list[str]):
    from_vocabulary = Tokenizer.load(test_data / "tokenizers" / "bert-base-uncased" / "vocab.txt")
    for text in lines[:300] + MIXED:
        assert from_vocabulary.encode(text) == bert.encode(text)
    assert from_vocabulary.fingerprint == bert.fingerprint


def test_minilm_directory(bert: Tokenizer, minilm_directory: Path):
    assert [Tokenizer.load(minilm_directory).encode(text) for text in MIXED] == [bert.encode(text) for text in MIXED]


def test_tokens_added_beside_a_vocabulary_file(test_data: Path, tmp_path: Path):
    shutil.copy(test_data / "tokenizers" / "bert-base-uncased" / "vocab.txt", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "additional_special_tokens": ["[ENT]"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text('{"newWord": 30523, "[ENT]": 30522}')
    tokenizer, published = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == len(published) == 30524
    for text in ("A [ENT] newword newWord [MASK]", "unaffected"):
        assert tokenizer.encode(text) == published(text, add_special_tokens=False)["input_ids"]


def test_bare_vocabulary_tells_its_case(tmp_path: Path):
    for word, text in (("Paris", "Paris"), ("paris", "PARIS")):
        file = tmp_path / "vocab.txt"
        file.write_text("\n".join([*BERT_SPECIAL_TOKENS, word]) + "\n")
        assert Tokenizer.load(tmp_path).encode(text) == [5]


def test_training_is_deterministic_across_processes(lines: list[str], trained: Tokenizer, tmp_path: Path):
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    program = (
        "import sys; from fastssl.data.tokenizer import Tokenizer\n"
        "lines = open(sys.argv[1], encoding='utf-8').read().split('\\n')\n"
        "print(Tokenizer.train_wordpiece(iter(lines), vocab_size=1500).fingerprint)"
    )
    root = Path(__file__).resolve().parents[2]
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", program, str(file)], cwd=root, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == trained.fingerprint


def test_trained_vocabulary(trained: Tokenizer):
    assert trained.vocab_size == 1500
    assert [trained.id_to_token(i) for i in range(5)] == list(BERT_SPECIAL_TOKENS)
    assert len({trained.id_to_token(i) for i in range(1500)}) == 1500
    assert trained.token_to_id("the") is not None
    assert trained.token_to_id("The") is None


@pytest.mark.parametrize("lowercase", [True, False])
def test_transformers_gives_the_same_ids(lines: list[str], tmp_path: Path, lowercase: bool):
    tokenizer = Tokenizer.train_wordpiece(lines[:1000], vocab_size=900, lowercase=lowercase)
    tokenizer.save(tmp_path, model_max_length=128)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 128
    assert theirs.is_fast
    for text in lines[:200] + MIXED:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    pair = theirs("in the beginning", "god created")
    cls, sep = tokenizer.special.cls, tokenizer.special.sep
    first, second = tokenizer.encode("in the beginning"), tokenizer.encode("god created")
    assert pair["input_ids"] == [cls, *first, sep, *second, sep]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert (theirs.pad_token_id, theirs.mask_token_id) == (tokenizer.special.pad, tokenizer.special.mask)


def test_transformers_gives_the_same_ids_beside_a_bert_config(trained: Tokenizer, tmp_path: Path):
    trained.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": trained.vocab_size}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs(t, add_special_tokens=False)["input_ids"] for t in MIXED] == [trained.encode(t) for t in MIXED]


def test_saved_files_round_trip(trained: Tokenizer, byte_level: Tokenizer, tmp_path: Path):
    for name, tokenizer in (("wordpiece", trained), ("bytes", byte_level)):
        tokenizer.save(tmp_path / name)
        again = Tokenizer.load(tmp_path / name)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.special == tokenizer.special
    (tmp_path / "wordpiece" / "tokenizer.json").unlink()
    assert Tokenizer.load(tmp_path / "wordpiece").fingerprint == trained.fingerprint


def test_byte_level_in_transformers(byte_level: Tokenizer, tmp_path: Path):
    byte_level.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs(t, add_special_tokens=False)["input_ids"] for t in MIXED] == [byte_level.encode(t) for t in MIXED]


def test_pickled_tokenizer_is_the_same(trained: Tokenizer):
    again = pickle.loads(pickle.dumps(trained))
    assert (again.fingerprint, again.special) == (trained.fingerprint, trained.special)


def test_threads_do_not_change_the_ids(bert: Tokenizer, lines: list[str]):
    for threads, alone in zip(
        bert.encode_batch(lines[:99]), bert.encode_batch(lines[:99], parallel=False), strict=True
    ):
        assert [values.tolist() for values in threads] == [values.tolist() for values in alone]


def test_word_starts_of_wordpiece(bert: Tokenizer):
    ((ids, starts),) = bert.encode_batch(["unaffable, 台灣!"])
    pieces = [bert.id_to_token(i) for i in ids]
    assert pieces == ["una", "##ffa", "##ble", ",", "[UNK]", "[UNK]", "!"]
    assert starts.tolist() == [True, False, False, True, True, True, True]


def test_word_starts_of_byte_level_bpe(byte_level: Tokenizer):
    ((ids, starts),) = byte_level.encode_batch(["the firmament Zzyx"])
    words = np.split(ids, np.flatnonzero(starts)[1:])
    assert [byte_level.decode(word) for word in words] == ["the", " firmament", " Zzyx"]
    assert max(map(len, words)) > 1


def test_special_tokens_in_a_corpus_are_ordinary_text(bert: Tokenizer):
    ((ids, _),) = bert.encode_batch(["the [MASK] token [SEP]"])
    assert not set(ids.tolist()) & set(bert.special.ids)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_batch_agrees_with_single_texts(text: str):
    tokenizer = Tokenizer(_small_backend())
    ((ids, starts),) = tokenizer.encode_batch([text])
    assert len(ids) == len(starts)
    assert not len(starts) or starts[0]
    assert ids.tolist() == tokenizer.encode(text)


def _small_backend() -> tokenizers.Tokenizer:
    from fastssl.data.wordpiece import bert_tokenizer

    vocabulary = [*BERT_SPECIAL_TOKENS, *"abcde", "##a", "##b"]
    return bert_tokenizer({t: i for i, t in enumerate(vocabulary)}, lowercase=True)


def test_extension_keeps_the_old_ids(bert: Tokenizer, tmp_path: Path):
    texts = ["The immunoglobulin titre of nivolumab 藥 rose.", "nivolumab and immunoglobulin 藥"] * 5
    extended = bert.extend(texts, 40)
    added = [extended.id_to_token(i) for i in range(bert.vocab_size, extended.vocab_size)]
    assert 0 < len(added) <= 40
    assert all(bert.token_to_id(token) is None for token in added)
    assert all(extended.id_to_token(i) == bert.id_to_token(i) for i in range(bert.vocab_size))
    assert len(extended.encode("nivolumab immunoglobulin")) < len(bert.encode("nivolumab immunoglobulin"))
    extended.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(texts[0], add_special_tokens=False)["input_ids"] == extended.encode(texts[0])
    assert len(theirs) == extended.vocab_size


def test_extension_adds_what_the_text_uses(bert: Tokenizer, lines: list[str]):
    extended = bert.extend(lines, 100)
    before, after = (sum(len(ids) for ids, _ in t.encode_batch(lines)) for t in (bert, extended))
    assert after < 0.97 * before
    used = {i for ids, _ in extended.encode_batch(lines) for i in ids.tolist()}
    assert used >= set(range(bert.vocab_size, extended.vocab_size))
    assert extended.vocab_size == bert.vocab_size + 100


def test_byte_pairs_cannot_be_extended(byte_level: Tokenizer):
    with pytest.raises(ValueError, match="only a WordPiece vocabulary can be extended, and this one is a BPE"):
        byte_level.extend(["text"], 5)


def test_chinese_characters_are_words():
    tokenizer = Tokenizer.train_wordpiece(["今天買了蘋果來吃", "蘋果茶真難喝"] * 3, vocab_size=60)
    ((ids, starts),) = tokenizer.encode_batch(["今天喝蘋果茶"])
    assert [tokenizer.id_to_token(i) for i in ids] == list("今天喝蘋果茶")
    assert starts.all()


def test_alphabet_is_limited_to_the_most_frequent_characters():
    tokenizer = Tokenizer.train_wordpiece(["aaa bbb ab"] * 9 + ["zz zz"], vocab_size=30, limit_alphabet=2)
    assert tokenizer.token_to_id("a") is not None
    assert tokenizer.token_to_id("z") is None


@pytest.mark.parametrize("texts", [[], ["", "  \n"], iter([])])
def test_training_without_text(texts):
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        Tokenizer.train_wordpiece(texts, vocab_size=100)


def test_vocabulary_too_small_for_the_characters():
    with pytest.raises(ValueError, match=r"vocab_size must hold .* at least 16 tokens, but is 12"):
        Tokenizer.train_wordpiece(["abcdef abcdef"] * 2, vocab_size=12, limit_alphabet=100)


def test_missing_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing there"):
        Tokenizer.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", '{"model": ', "is damaged: expected JSON"),
        ("tokenizer.json", '{"model": {"type": "NoSuchModel", "vocab": {"a": 0}}}', "is damaged: data did not match"),
        ("tokenizer.json", "[]", "expected a JSON object"),
        ("tokenizer.json", "{}", 'expected a "model" with a "vocab"'),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', 'expected a "model" with a "vocab"'),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n", r"lacks \[MASK\]"),
        ("vocab.txt", "[PAD]\n[UNK]\nword\nword\n", "'word' is there twice"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


def test_tokenizer_without_a_mask():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.add_special_tokens(["<pad>", "<unk>", "<s>", "</s>"])
    tokenizer = Tokenizer(backend)
    with pytest.raises(ValueError, match=r"has no mask token.*made for masked language models"):
        _ = tokenizer.special
    assert tokenizer.bounds == TextBounds(bos=2, eos=3)


def test_tokenizer_without_an_end_of_text(trained: Tokenizer):
    with pytest.raises(ValueError, match=r"has no bos token: expected one of <\|endoftext\|>.*causal language models"):
        _ = trained.bounds


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "texts must be several strings, got one; put it into a list"),
        (["a", 3], "texts must be strings, got int: 3"),
        (["a", "b\ud800c"], r"the text 'b\\ud800c' holds half a character, '\\ud800' at 1.*mend it"),
    ],
)
def test_what_is_no_text_is_told(trained: Tokenizer, texts, message: str):
    calls = (trained.encode_many, trained.encode_batch, lambda given: trained.encode_batch(given, parallel=False))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(texts)
