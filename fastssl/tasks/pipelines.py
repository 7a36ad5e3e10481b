"""One door to models that are ready to serve: `pipeline("text-classification", DIR)` and friends."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from fastssl.tasks.classification.classifier import Classifier
from fastssl.tasks.embedding.embedder import SentenceEmbedder
from fastssl.tasks.fill_mask import FillMask
from fastssl.tasks.generation.text_generator import TextGenerator
from fastssl.tasks.question_answering.answerer import QuestionAnswerer
from fastssl.tasks.tagging.tagger import Tagger


class Pipeline(Protocol):
    """What every object that serves a model can do.

    Texts are cut into tokens once, by a thread of their own while the model computes, and go through it packed, longest
    first, without padding; answers come in the order of the texts. Several threads may use one object at once.
    """

    @classmethod
    def load(cls, directory: str | Path, *, dtype: str = "fp32", device: str = "auto") -> Pipeline:
        """Read model and tokenizer; an error says so where the model is not of this task."""

    def __call__(self, texts: Iterable) -> Any:
        """Return the answers to all texts."""

    def stream(self, texts: Iterable, *, texts_at_once: int) -> Iterator:
        """Yield the answers in order, in memory that does not grow with the number of texts."""


PIPELINES: dict[str, type[Pipeline]] = {
    "text-classification": Classifier,
    "fill-mask": FillMask,
    "token-classification": Tagger,
    "question-answering": QuestionAnswerer,
    "sentence-embedding": SentenceEmbedder,
    "feature-extraction": SentenceEmbedder,
    "text-generation": TextGenerator,
}
"""Task, as Hugging Face names it where it does -> what serves its models."""


def pipeline(task: str, model: str | Path, *, dtype: str = "fp32", device: str = "auto", **options: object) -> Pipeline:
    """Return an object that serves the model of a directory.

    | task | object | an answer |
    |---|---|---|
    | text-classification | `fastssl.Classifier` | a `Prediction` for each text or pair of texts |
    | fill-mask | `fastssl.FillMask` | a `FilledText` for each text |
    | token-classification | `fastssl.Tagger` | a `TaggedSentence` for each text, or list of words |
    | question-answering | `fastssl.QuestionAnswerer` | an `Answer` for each question and document |
    | sentence-embedding, feature-extraction | `fastssl.SentenceEmbedder` | a row of float32 for each text |
    | text-generation | `fastssl.TextGenerator` | a `GeneratedText` for each prompt and sample |

    Call it with a list of texts, or give any iterable to its method `stream`, which yields answers in order (rows of
    embeddings some at a time) and reads but a bounded number of texts ahead. Several threads may use it at once.

    Args:
        task: one of the table. "feature-extraction" gives one vector a text, as servers of sentence embeddings do, not
            one a token.
        model: a local directory.
        dtype: "fp32", "bf16" or "int8" (see `fastssl.quantize`), of the computation.
        device: "auto" (a GPU where there is one; "int8" always the CPU), "cpu", "cuda" or "cuda:1".
        options: further ones of the object's own `load`, such as `max_seq_length` or `pooling`.

    Raises:
        FileNotFoundError: where the directory or a part of it is missing.
        ValueError: for a task or option that does not exist, or a model of another task.
    """
    if task not in PIPELINES:
        nearest = difflib.get_close_matches(task, PIPELINES, n=1, cutoff=0.5)
        suggestion = f"did you mean {nearest[0]!r}, of " if nearest else "expected one of "
        raise ValueError(f"there is no task {task!r}; {suggestion}{', '.join(PIPELINES)}")
    load = PIPELINES[task].load
    known = [name for name in inspect.signature(load).parameters if name not in ("directory", "dtype", "device")]
    for name in options:
        if name not in known:
            raise ValueError(f"the pipeline {task!r} has no option {name!r}; expected some of {', '.join(known)}")
    return load(model, dtype=dtype, device=device, **options)
