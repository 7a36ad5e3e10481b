"""Search by meaning: the lines that a query is like, from memory and from mapped files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastssl
from fastssl import SentenceEmbedder, SentenceSearch
from fastssl.data.array_file import write_rows
from tests.tasks.test_embedding import TEXTS, tiny  # noqa: F401


def test_the_nearest_of_some_sentences(minilm_directory):
    sentences = ["A man is eating.", "The stock market fell.", "It rains.", "Someone has a meal.", "A man is eating."]
    search = SentenceSearch.over(minilm_directory, iter(sentences))
    meal, weather = search(["a person eats food", "bad weather"], top_k=3)
    assert [match.row for match in meal] == [3, 0, 4] and weather[0].text == "It rains."
    assert meal[0].score > meal[1].score == pytest.approx(meal[2].score, abs=1e-6)
    rain, bad_weather = fastssl.embed([sentences[2], "bad weather"], model=minilm_directory)
    assert weather[0].score == pytest.approx(rain @ bad_weather, abs=1e-6)
    assert len(search(["a"], top_k=99)[0]) == 5 and search([]) == []


def test_mapped_embeddings_give_the_same(tiny: Path, tmp_path: Path):  # noqa: F811
    embedder = SentenceEmbedder.load(tiny)
    write_rows(tmp_path / "a.npy", embedder.stream(TEXTS), embedder.width)
    search = SentenceSearch.load(tiny, tmp_path / "a.npy")
    assert isinstance(search.embeddings, np.memmap)
    expected = SentenceSearch.over(embedder, TEXTS)(TEXTS, top_k=4)
    for matches, others in zip(search(TEXTS, top_k=4), expected, strict=True):
        assert [(m.row, m.score) for m in matches] == [(m.row, pytest.approx(m.score, abs=1e-6)) for m in others]
        assert matches[0].text is None and others[0].text == TEXTS[others[0].row]
    named = SentenceSearch.load(embedder, tmp_path / "a.npy", TEXTS)
    with ThreadPoolExecutor(4) as pool:
        assert all(found == named(TEXTS) for found in pool.map(lambda _: named(TEXTS), range(8)))


def test_what_does_not_fit_is_told(tiny: Path, tmp_path: Path):  # noqa: F811
    embedder = SentenceEmbedder.load(tiny)
    with pytest.raises(ValueError, match="embeddings has 31 columns, but this model's embeddings have 32"):
        SentenceSearch(embedder, np.zeros((2, 31), dtype=np.float32))
    with pytest.raises(ValueError, match=r"must be \(rows, 32\) floating, got int64 of shape \(2, 32\)"):
        SentenceSearch(embedder, np.zeros((2, 32), dtype=np.int64))
    with pytest.raises(ValueError, match="as many as the 2 embeddings, got 1"):
        SentenceSearch(embedder, np.zeros((2, 32), dtype=np.float32), ["a"])
    with pytest.raises(ValueError, match="several strings, got one"):
        SentenceSearch.over(embedder, "a text")
    with pytest.raises(ValueError, match="several strings, got one"):
        SentenceSearch.over(embedder, TEXTS)("a text")
    with pytest.raises(FileNotFoundError, match="make it with `fastssl embed"):
        SentenceSearch.load(embedder, tmp_path / "a.npy")
    (tmp_path / "a.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"is no .npy file of numbers"):
        SentenceSearch.load(embedder, tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", np.zeros(3))
    with pytest.raises(ValueError, match="holds several arrays"):
        SentenceSearch.load(embedder, tmp_path / "b.npz")
