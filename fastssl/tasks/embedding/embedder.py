"""Sentence embeddings: one vector for each text, near those of texts that mean the same."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastssl.data.batch import PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertModel
from fastssl.models.bert_embedder import sentence_vectors
from fastssl.models.embedding_files import EmbeddingConfig, read_embedding_config
from fastssl.tasks.embedding.scores import pair_scores, similarities
from fastssl.tasks.encoded_texts import groups_by_length
from fastssl.tasks.inference import dtype_of_parameters, ready
from fastssl.tasks.labelled_texts import LabelledTexts
from fastssl.tasks.streaming import TEXTS_AT_ONCE, stream_windows


class SentenceEmbedder:
    """Embeds texts, any number of them, with a BERT.

    Texts are cut into tokens once, by a thread of its own while the model computes, and laid end to end without padding
    in batches of about `tokens_per_batch`. May be called from several threads at once.

    Args:
        model: put into eval mode.
        tokenizer: of the model's vocabulary.
        config: pooling, normalisation, length.
        tokens_per_batch: about how many tokens go through the model at once.

    Raises:
        ValueError: where the tokenizer has ids that the model does not, or `config.max_length` is beyond its positions.

    Source: Reimers and Gurevych 2019, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks" (1908.10084).
    """

    def __init__(
        self, model: BertModel, tokenizer: Tokenizer, config: EmbeddingConfig, *, tokens_per_batch: int = 2048
    ) -> None:
        sizes = model.config
        if tokenizer.vocab_size > sizes.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {sizes.vocab_size}; give the tokenizer "
                "that the model was trained with"
            )
        if config.max_length > sizes.max_position_embeddings:
            raise ValueError(
                f"max_length must be at most the model's {sizes.max_position_embeddings} positions, "
                f"got {config.max_length}"
            )
        if tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config
        self.tokens_per_batch = tokens_per_batch

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        dtype: str = "fp32",
        device: str = "auto",
        pooling: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        tokens_per_batch: int = 2048,
    ) -> "SentenceEmbedder":
        """Read a directory of sentence-transformers, or a model directory with its tokenizer.

        Args:
            directory: what it says of pooling, normalisation and length holds unless said otherwise here.
            dtype: "fp32", "bf16" or "int8".
            device: "auto" (a GPU where there is one; "int8" always the CPU), "cpu", "cuda" or "cuda:1".
            pooling: one or several of "cls", "max", "mean", "mean_sqrt_len_tokens"; several are concatenated.
            normalize: divide every vector by its length.
            max_length: tokens of a text that are read, [CLS] and [SEP] included.
            tokens_per_batch: about how many tokens go through the model at once.

        Raises:
            FileNotFoundError: where a part is missing.
            ValueError: for a damaged part, another kind of model, or an option that does not exist.
        """
        parameters_in = dtype_of_parameters(dtype)
        model_directory, config = read_embedding_config(directory)
        chosen = {
            "pooling": (pooling,) if isinstance(pooling, str) else pooling,
            "normalize": normalize,
            "max_length": max_length,
        }
        config = replace(config, **{name: value for name, value in chosen.items() if value is not None})
        tokenizer = Tokenizer.load(model_directory)
        with warnings.catch_warnings():
            # Of a pooler that is not there: it is not used.
            warnings.simplefilter("ignore", UserWarning)
            model = BertModel.from_pretrained(model_directory, dtype=parameters_in)
        return cls(ready(model, dtype, device), tokenizer, config, tokens_per_batch=tokens_per_batch)

    @property
    def width(self) -> int:
        """Number of columns of the embeddings."""
        return self.config.width(self.model.config.hidden_size)

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """Return the embeddings of all texts, (n, `width`) float32, in their order.

        Raises:
            ValueError: where `texts` is one string, or holds something else than strings.
        """
        parts = list(self.stream(texts))
        return np.concatenate(parts) if parts else np.empty((0, self.width), dtype=np.float32)

    def stream(self, texts: Iterable[str], *, texts_at_once: int = TEXTS_AT_ONCE) -> Iterator[np.ndarray]:
        """Yield the embeddings of texts in their order, some rows (k, `width`) float32 at a time.

        Memory does not grow with the number of texts, which may be endless.

        Args:
            texts: any number of strings.
            texts_at_once: most rows at a time; twice as many texts are read ahead.
        """
        return stream_windows(texts, self._token_ids, self._embed, texts_at_once=texts_at_once)

    def evaluate(self, examples: LabelledTexts) -> dict[str, float]:
        """Return how good the embeddings of pairs are: "spearman" and "pearson", or "recall_at_1" and "recall_at_10".

        Args:
            examples: pairs with scores, or without, which then belong together; see `pair_scores`.

        Raises:
            ValueError: for single texts, or a score that is no number.
        """
        scores = similarities(examples)
        return pair_scores(self(examples.texts), self(examples.pairs), scores)

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        config, special = self.config, self.tokenizer.special
        prepared, room = [config.prepared(text) for text in texts], config.max_length - 2
        return [[special.cls, *ids[:room], special.sep] for ids in self.tokenizer.encode_many(prepared)]

    def _embed(self, sequences: Sequence[list[int]]) -> np.ndarray:
        embeddings = np.empty((len(sequences), self.width), dtype=np.float32)
        for numbers in groups_by_length(np.array([len(ids) for ids in sequences]), self.tokens_per_batch):
            embeddings[numbers] = self._embed_batch([sequences[number] for number in numbers]).numpy()
        return embeddings

    @torch.inference_mode()
    def _embed_batch(self, sequences: Sequence[list[int]]) -> Tensor:
        batch = PackedBatch.from_sequences(sequences).to(next(self.model.parameters()).device)
        return sentence_vectors(self.model, batch, self.config).cpu()


def embed(
    texts: Iterable[str],
    *,
    model: str | Path | SentenceEmbedder,
    dtype: str = "fp32",
    device: str = "auto",
    pooling: str | Sequence[str] | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
) -> np.ndarray:
    """Return the embeddings of texts, (n, width) float32.

    Args:
        texts: any number of strings.
        model: a directory, read anew by each call, or a `SentenceEmbedder` that keeps what it has read.
        dtype, device, pooling, normalize, max_length: as in `SentenceEmbedder.load`; for a directory alone.

    Raises:
        FileNotFoundError: where a part of the directory is missing.
        ValueError: for a damaged part, another kind of model, or an option that does not exist.
    """
    options = {"pooling": pooling, "normalize": normalize, "max_length": max_length}
    if not isinstance(model, SentenceEmbedder):
        return SentenceEmbedder.load(model, dtype=dtype, device=device, **options)(texts)
    given = [name for name, value in options.items() if value is not None]
    given += [name for name, value, usual in (("dtype", dtype, "fp32"), ("device", device, "auto")) if value != usual]
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be changed on an embedder that is loaded; give it to SentenceEmbedder.load"
        )
    return model(texts)
