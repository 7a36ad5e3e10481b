"""Sentence embeddings: those of sentence-transformers, in any batch, from any thread."""

import itertools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import fastssl
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertModel
from fastssl.models.bert_config import BertConfig
from fastssl.models.embedding_files import EmbeddingConfig, read_embedding_config
from fastssl.tasks import streaming
from fastssl.tasks.embedding.embedder import SentenceEmbedder

TEXTS = [
    "A man is eating food.",
    "",
    "  Someone  eats\tsomething [MASK] tasty. ",
    "台灣大學",
    "the moon " * 400,
    "Is it [SEP] raining?",
    "café CAFÉ",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A directory with a random model and a tokenizer of a few words."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer.train_wordpiece([text for text in TEXTS if text] * 2, vocab_size=90)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=40, initializer_range=0.2, **sizes)
    BertModel(config).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


def sentence_transformers_directory(path: Path, source: Path, modules: list[str], pooling: dict, **files) -> Path:
    """Write what sentence-transformers 2 wrote: a transformer at the top, other modules in folders."""
    shutil.copytree(source, path)
    folders = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    listed = [{"type": f"sentence_transformers.models.{name}", "path": folders[name]} for name in modules]
    (path / "1_Pooling").mkdir()
    (path / "2_Normalize").mkdir()
    (path / "modules.json").write_text(json.dumps([{"idx": i, "name": str(i)} | m for i, m in enumerate(listed)]))
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def theirs(directory: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(directory), device="cpu").encode(texts, show_progress_bar=False)


def test_real_weights_give_the_same_numbers(minilm_directory, test_data):
    lines = (test_data / "sst2" / "dev.tsv").read_text().splitlines()[1:41]
    texts = [*TEXTS, *(line.split("\t")[0] for line in lines)]
    ours = fastssl.embed(texts, model=minilm_directory)
    assert ours.shape == (len(texts), 384)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs(minilm_directory, texts), atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize("normalize", [False, True])
def test_every_pooling_of_a_directory(pooling: str, normalize: bool, tiny: Path, tmp_path: Path):
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    directory = sentence_transformers_directory(
        tmp_path / "st", tiny, modules, {f"pooling_mode_{pooling}": True}, sentence_bert_config={"max_seq_length": 17}
    )
    np.testing.assert_allclose(fastssl.embed(TEXTS, model=directory), theirs(directory, TEXTS), atol=1e-5)


def test_what_todays_sentence_transformers_writes(tiny: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    modules = [Transformer(str(tiny), max_seq_length=12), Pooling(32, pooling_mode=("cls", "mean", "max"))]
    options = {"prompts": {"q": "moon: "}, "default_prompt_name": "q", "truncate_dim": 40}
    SentenceTransformer(modules=modules, device="cpu", **options).save(str(tmp_path))
    embedder = SentenceEmbedder.load(tmp_path)
    expected = EmbeddingConfig(pooling=("cls", "mean", "max"), max_length=12, prompt="moon: ", truncate_dim=40)
    assert embedder.config == expected and embedder.width == 40
    np.testing.assert_allclose(embedder(TEXTS), theirs(tmp_path, TEXTS), atol=1e-5)


def test_a_plain_directory_is_averaged(tiny: Path):
    np.testing.assert_allclose(fastssl.embed(TEXTS, model=tiny), theirs(tiny, TEXTS), atol=1e-5)


def test_options_overrule_the_directory(tiny: Path):
    one = fastssl.embed(TEXTS, model=tiny, pooling=["cls", "max"], normalize=True, max_length=5)
    assert one.shape == (len(TEXTS), 64)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    cut = fastssl.embed(["the moon"], model=tiny, pooling=["cls", "max"], normalize=True, max_length=5)
    assert SentenceEmbedder.load(tiny, pooling="cls").config.pooling == ("cls",)
    assert cut.shape == (1, 64)


def test_the_batch_does_not_matter(tiny: Path):
    whole = SentenceEmbedder.load(tiny, tokens_per_batch=10**6)(TEXTS * 3)
    for tokens_per_batch in (1, 50):
        parts = SentenceEmbedder.load(tiny, tokens_per_batch=tokens_per_batch)(TEXTS * 3)
        np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_a_stream_is_read_as_it_is_used(tiny: Path, monkeypatch):
    taken = 0

    def endless():
        nonlocal taken
        for text in itertools.cycle(TEXTS):
            taken += 1
            yield text

    embedder = SentenceEmbedder.load(tiny)
    stream = embedder.stream(endless(), texts_at_once=10)
    parts = list(itertools.islice(stream, 4))
    stream.close()
    assert [len(part) for part in parts] == [10] * 4
    assert taken <= 60
    texts = list(itertools.islice(itertools.cycle(TEXTS), 40))
    np.testing.assert_allclose(np.concatenate(parts), embedder(texts), atol=1e-6)
    monkeypatch.setattr(streaming, "CHARACTERS_AT_ONCE", 30)
    assert [len(part) for part in embedder.stream(texts[:5])] == [3, 2]


def test_many_threads_may_call(tiny: Path):
    embedder = SentenceEmbedder.load(tiny)
    expected = {shift: embedder(TEXTS[shift:]) for shift in range(4)}
    with ThreadPoolExecutor(4) as pool:
        for shift, found in [*pool.map(lambda i: (i % 4, embedder(TEXTS[i % 4 :])), range(24))]:
            np.testing.assert_array_equal(found, expected[shift])


@pytest.mark.parametrize(("dtype", "cosine"), [("bf16", 0.999), ("int8", 0.96)])
def test_fewer_bits_are_near(dtype: str, cosine: float, minilm_directory):
    exact, near = (fastssl.embed(TEXTS, model=minilm_directory, dtype=dtype) for dtype in ("fp32", dtype))
    assert near.dtype == np.float32
    assert (exact * near).sum(1).min() > cosine


def test_nothing_to_embed(tiny: Path):
    assert fastssl.embed([], model=tiny).shape == (0, 32)
    assert list(SentenceEmbedder.load(tiny).stream(iter(()))) == []


def test_wrong_calls_are_explained(tiny: Path):
    embedder = SentenceEmbedder.load(tiny)
    with pytest.raises(ValueError, match="got one; put it into a list"):
        embedder("a text")
    with pytest.raises(ValueError, match="must be strings, got int as number 1"):
        embedder(["a", 3])
    with pytest.raises(ValueError, match="normalize cannot be changed"):
        fastssl.embed(["a"], model=embedder, normalize=True)
    with pytest.raises(ValueError, match="dtype must be one of fp32, bf16, int8"):
        fastssl.embed(["a"], model=tiny, dtype="fp8")
    with pytest.raises(ValueError, match="pooling must be some of cls, max, mean, mean_sqrt_len_tokens, got 'median'"):
        fastssl.embed(["a"], model=tiny, pooling="median")
    with pytest.raises(ValueError, match="at most the model's 40 positions, got 41"):
        fastssl.embed(["a"], model=tiny, max_length=41)
    with pytest.raises(ValueError, match="at least 3"):
        fastssl.embed(["a"], model=tiny, max_length=2)
    with pytest.raises(ValueError, match="tokens_per_batch must be at least 1"):
        SentenceEmbedder.load(tiny, tokens_per_batch=0)


def test_wrong_directories_are_explained(tiny: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        SentenceEmbedder.load(tmp_path / "nowhere")
    dense = sentence_transformers_directory(tmp_path / "dense", tiny, ["Transformer", "Pooling", "Dense"], {})
    with pytest.raises(ValueError, match="Transformer -> Pooling -> Dense; expected Transformer -> Pooling, and"):
        SentenceEmbedder.load(dense)
    prompt = {"prompts": {"q": "moon: "}, "default_prompt_name": "q"}
    left_out = sentence_transformers_directory(
        tmp_path / "left_out",
        tiny,
        ["Transformer", "Pooling"],
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        config_sentence_transformers=prompt,
    )
    with pytest.raises(ValueError, match=r"the prompt 'moon: ' .* leaves its tokens out of the pooling"):
        SentenceEmbedder.load(left_out)
    (left_out / "config_sentence_transformers.json").unlink()
    SentenceEmbedder.load(left_out)  # there is nothing to leave out
    for wrong in (0, "16"):
        (left_out / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": wrong}))
        with pytest.raises(ValueError, match=f"truncate_dim must be a whole number of at least 1, got {wrong!r}"):
            SentenceEmbedder.load(left_out)
    last = sentence_transformers_directory(
        tmp_path / "last", tiny, ["Transformer", "Pooling"], {"pooling_mode_lasttoken": True}
    )
    with pytest.raises(ValueError, match="pools by lasttoken; expected some of cls, max"):
        SentenceEmbedder.load(last)
    (last / "1_Pooling" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"1_Pooling.config.json is missing"):
        SentenceEmbedder.load(last)
    (last / "modules.json").write_text("[{}]")
    with pytest.raises(ValueError, match="expected a type and a path"):
        read_embedding_config(last)
    (last / "modules.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a JSON list"):
        read_embedding_config(last)
    (last / "modules.json").write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        read_embedding_config(last)
