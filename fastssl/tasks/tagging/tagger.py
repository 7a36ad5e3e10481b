"""Tagging: a class for each word of a sentence, such as its part of speech, and the names that tags spell."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert_tagger import BertForTokenClassification
from fastssl.tasks.fine_tuned import check_vocabulary, checked_length, load_fine_tuned, trained_length
from fastssl.tasks.labels import LabelSet
from fastssl.tasks.streaming import TEXTS_AT_ONCE, one_by_one, stream_windows
from fastssl.tasks.tagging.encoded_words import EncodedWords, encode_words
from fastssl.tasks.tagging.scores import number_tags, tag_logits, tag_scores
from fastssl.tasks.tagging.spans import are_span_tags, spans_of
from fastssl.tasks.tagging.tagged_sentences import TaggedSentences


@dataclass(frozen=True, kw_only=True)
class TaggedWord:
    """What a tagger makes of one word."""

    word: str
    """The word."""
    tag: str
    """The likeliest tag."""
    probabilities: Mapping[str, float]
    """Tag -> probability, likeliest first."""
    start: int | None
    """Where the word begins in the text, in characters; None where the sentence was given as words."""
    end: int | None
    """One behind its last character."""


@dataclass(frozen=True, kw_only=True)
class TaggedSpan:
    """Words that have a label together, such as the name of a person."""

    label: str
    """Their label."""
    text: str
    """The words as they stand in the text, or joined by blanks."""
    first: int
    """Number of the first word in the sentence, from 0."""
    last: int
    """Number of the last one."""


@dataclass(frozen=True, kw_only=True)
class TaggedSentence:
    """What a tagger makes of one sentence."""

    text: str | None
    """The sentence, where it was given as plain text."""
    words: tuple[TaggedWord, ...]
    """Its words; all of them, however long it is."""
    spans: tuple[TaggedSpan, ...] | None
    """What tags such as B-PER and I-PER spell; None where the model has other tags."""


class Tagger:
    """Tags the words of sentences with a fine-tuned model: packed, longest first, in the order given.

    A sentence longer than `max_seq_length` is read in overlapping windows, so every word gets a tag. May be called from
    several threads at once.

    Args:
        model: put into evaluation mode.
        tokenizer: of the model's vocabulary.
        max_seq_length: most tokens of a window; None: the model's positions.

    Raises:
        ValueError: where the tokenizer has ids that the model does not, or `max_seq_length` is beyond its positions.
    """

    def __init__(
        self, model: BertForTokenClassification, tokenizer: Tokenizer, *, max_seq_length: int | None = None
    ) -> None:
        check_vocabulary(model, tokenizer)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_seq_length = checked_length(max_seq_length, model.config.max_position_embeddings)
        self.label_set = LabelSet(names=model.config.label_names, problem_type="single_label_classification")

    @classmethod
    def load(
        cls, directory: str | Path, *, max_seq_length: int | None = None, dtype: str = "fp32", device: str = "auto"
    ) -> Tagger:
        """Read model and tokenizer from one directory; windows have the length that they had in training.

        Args:
            directory: of a fine-tuned model.
            max_seq_length: most tokens of a window instead.
            dtype: "fp32", "bf16" or "int8" (see `fastssl.quantize`), of the computation.
            device: "auto" (a GPU where there is one; "int8" always the CPU), "cpu", "cuda" or "cuda:1".

        Raises:
            FileNotFoundError: where a part is missing.
            ValueError: where the model is none for tagging, a part is damaged, or the model's positions do not reach to
                `max_seq_length`.
        """
        model, tokenizer = load_fine_tuned(BertForTokenClassification, directory, "tagging", dtype, device)
        if max_seq_length is None:
            max_seq_length = trained_length(directory, model.config.max_position_embeddings)
        return cls(model, tokenizer, max_seq_length=max_seq_length)

    def __call__(self, sentences: Iterable[str | Sequence[str]]) -> list[TaggedSentence]:
        """Return what the model makes of each sentence.

        Args:
            sentences: each a list of words, or a plain text, which is cut into words as the tokenizer sees them:
                "I saw it." has four.

        Raises:
            ValueError: for one string instead of several, or something that is no text.
        """
        return list(self.stream(sentences))

    def stream(
        self, sentences: Iterable[str | Sequence[str]], *, texts_at_once: int = TEXTS_AT_ONCE
    ) -> Iterator[TaggedSentence]:
        """Yield what the model makes of each sentence, in their order, as a call does.

        Memory does not grow with the number of sentences, which may be endless.

        Args:
            sentences: each a list of words, or a plain text.
            texts_at_once: sentences that go together; twice as many are read ahead.
        """
        if isinstance(sentences, str):
            raise ValueError("sentences must be several, got one string; put it into a list")
        parts = stream_windows(
            sentences, self._encode, self._tag, texts_at_once=texts_at_once, characters_of=_characters_of
        )
        return one_by_one(parts)

    def logits(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Return the head's numbers for the words of all sentences, (number of words, C) fp32."""
        return tag_logits(self.model, encode_words(self.tokenizer, sentences, max_seq_length=self.max_seq_length))

    def evaluate(self, sentences: TaggedSentences) -> dict[str, float]:
        """Return the loss and the figures of `tag_scores` on tagged sentences.

        Words with tags that the model does not know count as wrong, with a warning.

        Raises:
            ValueError: where the model does not know the tags of most words.
        """
        tags = number_tags(sentences, self.label_set)
        if tags.num_unknown:
            warnings.warn(f"{sentences.path}: {tags.num_unknown:,} {tags.remark}", stacklevel=2)
        return tag_scores(self.logits(sentences.words), tags.numbers, tags.names, [len(s) for s in sentences.words])

    def _encode(self, sentences: Sequence[str | Sequence[str]]) -> _Window:
        places = iter(self.tokenizer.find_words([one for one in sentences if isinstance(one, str)]))
        spans = [next(places) if isinstance(one, str) else None for one in sentences]
        words = [
            list(one) if found is None else [one[start:end] for start, end in found]
            for one, found in zip(sentences, spans, strict=True)
        ]
        encoded = encode_words(self.tokenizer, words, max_seq_length=self.max_seq_length)
        return _Window(sentences=sentences, words=words, places=spans, encoded=encoded)

    def _tag(self, window: _Window) -> list[TaggedSentence]:
        probabilities = tag_logits(self.model, window.encoded).softmax(-1)
        rows = probabilities.split([len(one) for one in window.words])
        return list(map(self._judge, window.sentences, window.words, window.places, rows))

    def _judge(
        self,
        sentence: str | Sequence[str],
        words: list[str],
        places: list[tuple[int, int]] | None,
        probabilities: Tensor,
    ) -> TaggedSentence:
        names, text = self.label_set.names, sentence if isinstance(sentence, str) else None
        best = probabilities.sort(descending=True, stable=True)
        found = []
        for number, (word, order, values) in enumerate(
            zip(words, best.indices.tolist(), best.values.tolist(), strict=True)
        ):
            ranked = {names[i]: p for i, p in zip(order, values, strict=True)}
            start, end = (None, None) if places is None else places[number]
            found.append(TaggedWord(word=word, tag=names[order[0]], probabilities=ranked, start=start, end=end))
        spans = _spans(text, found) if are_span_tags(names) else None
        return TaggedSentence(text=text, words=tuple(found), spans=spans)


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Sentences that go through the model together."""

    sentences: Sequence[str | Sequence[str]]
    words: list[list[str]]
    places: list[list[tuple[int, int]] | None]
    encoded: EncodedWords


def _characters_of(number: int, sentence: str | Sequence[str]) -> int:
    if not isinstance(sentence, Iterable):
        raise ValueError(f"sentences must be texts or lists of words, got {type(sentence).__name__} as number {number}")
    return sum(map(len, sentence)) if isinstance(sentence, str | list | tuple) and _are_strings(sentence) else 0


def _are_strings(values: Iterable) -> bool:
    return all(isinstance(value, str) for value in values)


def _spans(text: str | None, words: Sequence[TaggedWord]) -> tuple[TaggedSpan, ...]:
    found = []
    for label, first, last in spans_of([word.tag for word in words]):
        if text is None:
            covered = " ".join(word.word for word in words[first : last + 1])
        else:
            covered = text[words[first].start : words[last].end]
        found.append(TaggedSpan(label=label, text=covered, first=first, last=last))
    return tuple(found)
