"""Search by meaning: the sentences whose embeddings are nearest to a query's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastssl.tasks.embedding.embedder import SentenceEmbedder
from fastssl.tasks.embedding.nearest import nearest_rows


@dataclass(frozen=True, kw_only=True)
class Match:
    """One sentence that was found."""

    row: int
    """Its number among those that were searched, from 0."""
    score: float
    """The cosine of its embedding and the query's, -1 to 1."""
    text: str | None
    """The sentence, where the search knows it."""


class SentenceSearch:
    """Finds the sentences that are nearest to a query in meaning, by cosine, over all of them: nothing is approximated.

    Equally near ones come in their order. May be called from several threads at once.

        search = SentenceSearch.over("runs/embedder", lines)
        for match in search(["a man is eating"], top_k=3)[0]:
            print(match.score, match.text)

    Args:
        embedder: embeds the queries.
        embeddings: (R, W) floating, of the sentences; may be memory-mapped.
        texts: the R sentences, or None: matches then have only numbers.

    Raises:
        ValueError: where the width of the embeddings is not the embedder's, or the texts have another number.
    """

    def __init__(self, embedder: SentenceEmbedder, embeddings: np.ndarray, texts: Sequence[str] | None = None) -> None:
        _check_shape("embeddings", embeddings, embedder)
        if texts is not None and len(texts) != len(embeddings):
            raise ValueError(f"texts must be as many as the {len(embeddings)} embeddings, got {len(texts)}")
        self.embedder, self.embeddings, self.texts = embedder, embeddings, texts

    @classmethod
    def over(cls, model: str | Path | SentenceEmbedder, texts: Iterable[str]) -> SentenceSearch:
        """Embed texts, and keep them and their embeddings in memory.

        Args:
            model: a directory, or an embedder.
            texts: to be searched.
        """
        embedder = model if isinstance(model, SentenceEmbedder) else SentenceEmbedder.load(model)
        kept = texts if isinstance(texts, str) else list(texts)
        return cls(embedder, embedder(kept), kept)

    @classmethod
    def load(
        cls, model: str | Path | SentenceEmbedder, embeddings: str | Path, texts: Sequence[str] | None = None
    ) -> SentenceSearch:
        """Map a file that `fastssl embed` wrote into memory; see `read_embeddings`.

        Args:
            model: a directory, or an embedder, that the embeddings are of.
            embeddings: the .npy file.
            texts: the lines that it was made from, or None.
        """
        embedder = model if isinstance(model, SentenceEmbedder) else SentenceEmbedder.load(model)
        return cls(embedder, read_embeddings(embeddings, embedder), texts)

    def __call__(self, queries: Iterable[str], *, top_k: int = 10) -> list[list[Match]]:
        """Return the nearest sentences for each query, best first.

        Args:
            queries: any number.
            top_k: sentences for each query; all of them where there are fewer.

        Raises:
            ValueError: for one string instead of several, or a `top_k` below 1.
        """
        scores, rows = nearest_rows(self.embedder(queries), [self.embeddings], top_k)
        return [
            [self._match(row, score) for score, row in zip(*one, strict=True)]
            for one in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def _match(self, row: int, score: float) -> Match:
        return Match(row=row, score=score, text=None if self.texts is None else self.texts[row])


def read_embeddings(path: str | Path, embedder: SentenceEmbedder) -> np.ndarray:
    """Map a .npy file of embeddings into memory: what is read of it stays on disk until it is looked at.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no .npy file of numbers, or its width is not the embedder's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; make it with `fastssl embed ... --output {path}`")
    try:
        embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers ({error}); make it with `fastssl embed`") from error
    if not isinstance(embeddings, np.ndarray):
        raise ValueError(f"{path} holds several arrays; expected a .npy file, as `fastssl embed` writes it")
    _check_shape(str(path), embeddings, embedder)
    return embeddings


def _check_shape(name: str, embeddings: np.ndarray, embedder: SentenceEmbedder) -> None:
    if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating):
        raise ValueError(
            f"{name} must be (rows, {embedder.width}) floating, got {embeddings.dtype} of shape {embeddings.shape}"
        )
    if embeddings.shape[1] != embedder.width:
        raise ValueError(
            f"{name} has {embeddings.shape[1]} columns, but this model's embeddings have {embedder.width}; "
            "use the model and the pooling that they were made with"
        )
