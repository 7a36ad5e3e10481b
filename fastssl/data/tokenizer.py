"""Text to token ids and back: a thin, reproducible wrapper around the ``tokenizers`` library."""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import models

from fastssl.data import lossless, tokenizer_files, wordpiece
from fastssl.data.tokenizer_files import KNOWN_NAMES

_TEXTS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids of the tokens that are no words, of a tokenizer for masked language models."""

    pad: int
    """Fills the rest of a padded row."""
    unk: int
    """Stands for a word that the vocabulary cannot spell."""
    cls: int
    """Starts every sequence."""
    sep: int
    """Ends every segment."""
    mask: int
    """Hides a token that is to be predicted."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The five ids, ascending."""
        return tuple(sorted(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True, kw_only=True)
class TextBounds:
    """Ids of the tokens around a document, of a tokenizer for causal language models; GPT-2 has one for both."""

    bos: int
    """Begins a document: what the first token is predicted from."""
    eos: int
    """Ends it."""


class Tokenizer:
    """Turns text into token ids with word boundaries, and ids into text.

    Attributes:
        special_names: Spelling of those special tokens that it has, by the names of the fields of ``SpecialTokens`` and
            ``TextBounds``.
        vocab_size: One more than the largest id.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, special_names: Mapping[str, str] | None = None):
        """Wrap a tokenizer of the ``tokenizers`` library.

        Args:
            backend: Copied; its padding and truncation are switched off in the copy.
            special_names: Spelling of "pad", "unk", "cls", "sep", "mask", "bos" and "eos"; what is left out is looked
                for under BERT's, RoBERTa's and GPT-2's names. Which of them there must be depends on what the tokenizer
                is for: ``special`` and ``bounds`` say so, also of one that is named and not there.
        """
        self._backend = tokenizers.Tokenizer.from_str(backend.to_str())
        # Published tokenizer files often carry the padding of some application, which would end up in the corpus.
        self._backend.no_padding()
        self._backend.no_truncation()
        self._named = dict(special_names or {})
        found = {kind: self._find_special(kind, self._named) for kind in KNOWN_NAMES}
        self.special_names = {kind: name for kind, name in found.items() if name is not None}
        self.vocab_size: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a tokenizer from a Hugging Face directory, a ``tokenizer.json`` or a BERT ``vocab.txt``.

        A directory is read from its ``tokenizer.json``, else from its ``vocab.txt``, else from GPT-2's two files
        (``vocab.json`` and ``merges.txt``, or ``encoder.json`` and ``vocab.bpe``), with the options of its
        ``tokenizer_config.json``, and the tokens that this or ``added_tokens.json`` adds to such a vocabulary. A
        ``vocab.txt`` without options folds case exactly if no token has an upper-case letter.

        Raises:
            FileNotFoundError: There is no such file, or the directory holds none of these files.
            ValueError: A file is damaged, a ``vocab.txt`` lacks a special token, added tokens leave a gap behind the
                vocabulary, or GPT-2's two files are of a tokenizer that cuts text in its own way.
        """
        backend, special_names = tokenizer_files.read(Path(path))
        return cls(backend, special_names=special_names)

    @classmethod
    def train_wordpiece(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        split_chinese: bool = True,
        min_frequency: int = 2,
        limit_alphabet: int | None = None,
    ) -> Tokenizer:
        """Train BERT's WordPiece on texts; the same texts give the same tokenizer.

        Args:
            texts: Read twice; a one-shot iterator is kept in memory.
            vocab_size: Largest number of tokens, special tokens included; a small text may give fewer.
            lowercase: Fold upper case to lower case.
            strip_accents: Remove accents; None does so exactly when ``lowercase`` is set.
            split_chinese: Make every CJK ideograph a word of its own.
            min_frequency: Pieces and characters seen less often are left out.
            limit_alphabet: Largest number of distinct characters; None means a third of ``vocab_size``.

        Raises:
            ValueError: No text, or a ``vocab_size`` that cannot hold the characters.
        """
        options: dict[str, Any] = {
            "lowercase": lowercase,
            "strip_accents": strip_accents,
            "split_chinese": split_chinese,
        }
        blank = wordpiece.bert_tokenizer(wordpiece.numbered(wordpiece.BERT_SPECIAL_TOKENS), **options)
        vocabulary = wordpiece.train_vocabulary(
            texts,
            vocab_size=vocab_size,
            normalizer=blank.normalizer,
            pre_tokenizer=blank.pre_tokenizer,
            min_frequency=min_frequency,
            limit_alphabet=max(1, vocab_size // 3) if limit_alphabet is None else limit_alphabet,
        )
        return cls(wordpiece.bert_tokenizer(wordpiece.numbered(vocabulary), **options))

    @classmethod
    def train_byte_pairs(cls, texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2) -> Tokenizer:
        """Train byte-level BPE, GPT-2's kind, which spells every text and gives it back; `lossless` says how."""
        return cls(lossless.train_byte_pairs(texts, vocab_size=vocab_size, min_frequency=min_frequency))

    @classmethod
    def train_characters(cls, texts: Iterable[str], *, vocab_size: int | None = None) -> Tokenizer:
        """Take the characters of texts as tokens, for small corpora; `lossless` says how."""
        return cls(lossless.train_characters(texts, vocab_size=vocab_size))

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """Take the 256 bytes of UTF-8 as tokens."""
        return cls(lossless.byte_tokenizer())

    @cached_property
    def special(self) -> SpecialTokens:
        """Ids of the special tokens of a masked language model.

        Raises:
            ValueError: One of the five is not in the vocabulary, as in GPT-2's.
        """
        ids = self._ids_of(SpecialTokens, "choose a tokenizer made for masked language models, such as BERT's")
        return SpecialTokens(**ids)

    @cached_property
    def bounds(self) -> TextBounds:
        """Ids of the tokens around a document, of a causal language model.

        Raises:
            ValueError: One of the two is not in the vocabulary, as in BERT's.
        """
        ids = self._ids_of(TextBounds, "choose a tokenizer made for causal language models, such as GPT-2's")
        return TextBounds(**ids)

    def extend(self, texts: Iterable[str], new_tokens: int) -> Tokenizer:
        """Return a tokenizer with tokens learnt from new text behind the old ones, whose ids stay.

        A WordPiece vocabulary is trained on ``texts`` alone. Of its tokens, the new ones are added: first the
        characters that the old vocabulary cannot spell, then the pieces by how often the text would use them if it
        had them all. Give the model as many rows with ``resize_token_embeddings``.

        Args:
            texts: The new text; read three times, a one-shot iterator is kept in memory.
            new_tokens: Largest number of tokens to add.

        Raises:
            ValueError: This is not a WordPiece tokenizer (byte-pair merges cannot be appended), or there is no text.
        """
        if not isinstance(self._backend.model, models.WordPiece):
            raise ValueError(
                f"only a WordPiece vocabulary can be extended, and this one is a {type(self._backend.model).__name__}; "
                "keep it as it is, or train a WordPiece tokenizer on the new text"
            )
        texts = list(texts) if iter(texts) is texts else texts
        learnt = wordpiece.train_vocabulary(
            texts,
            vocab_size=self.vocab_size + new_tokens,
            normalizer=self._backend.normalizer,
            pre_tokenizer=self._backend.pre_tokenizer,
            min_frequency=2,
            limit_alphabet=(self.vocab_size + new_tokens) // 3,
        )
        known = {*self._backend.get_vocab(with_added_tokens=True), *wordpiece.BERT_SPECIAL_TOKENS}
        candidates = [token for token in learnt if token not in known]
        uses = self._with_tokens(candidates)._count_uses(texts)[self.vocab_size :]
        useful = [i for i in np.argsort(-uses, kind="stable") if uses[i] > 0]
        useful.sort(key=lambda i: len(candidates[i].removeprefix(wordpiece.CONTINUATION)) > 1)
        return self._with_tokens([candidates[i] for i in useful[:new_tokens]])

    def _with_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        state = json.loads(self._backend.to_str())
        state["model"]["vocab"].update({token: self.vocab_size + i for i, token in enumerate(tokens)})
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)), special_names=self.special_names)

    def _count_uses(self, texts: Iterable[str]) -> np.ndarray:
        """Return how often each id occurs in texts, ``(vocab_size)`` int64."""
        uses, iterator = np.zeros(self.vocab_size, dtype=np.int64), iter(texts)
        while batch := list(itertools.islice(iterator, _TEXTS_AT_ONCE)):
            for ids, _ in self.encode_batch(batch):
                uses += np.bincount(ids, minlength=self.vocab_size)
        return uses

    def save(self, directory: str | Path, *, model_max_length: int | None = None) -> None:
        """Write the files from which ``transformers.AutoTokenizer`` gives the same ids.

        Args:
            directory: Made where missing. Gets ``tokenizer.json``, ``tokenizer_config.json``,
                ``special_tokens_map.json`` and, for WordPiece, ``vocab.txt``.
            model_max_length: Longest sequence of the model in tokens; Hugging Face warns of longer ones.
        """
        tokenizer_files.write(
            self._backend, Path(directory), special_names=self.special_names, model_max_length=model_max_length
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in which special tokens may be spelt out ("a [MASK] b"); none are added."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return what `encode` returns for each text, with the library's threads, one per CPU."""
        texts = _several(texts)
        try:
            return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:
            raise _why_no_texts(texts) from error

    def encode_batch(self, texts: Sequence[str], *, parallel: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
        """Encode plain texts, such as the sentences of a corpus.

        No special tokens are added, and what looks like one ("[SEP]" in a manual) is read as ordinary characters.

        Args:
            texts: Any number of texts.
            parallel: Let the library use its threads, one per CPU.

        Returns:
            For each text ``ids (length) int32`` and ``word_starts (length) bool``, True at the first token of a word as
            the tokenizer's own pre-tokenizer sees words.

        Raises:
            ValueError: One string instead of several, or something that is no text.
        """
        texts = _several(texts)
        try:
            if parallel:
                encodings = self._plain.encode_batch(texts, add_special_tokens=False)
            else:
                encodings = (self._plain.encode(text, add_special_tokens=False) for text in texts)
            return [(np.array(e.ids, dtype=np.int32), _word_starts(e.word_ids)) for e in encodings]
        except TypeError as error:
            raise _why_no_texts(texts) from error

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Encode plain texts as `encode_batch` does, with the place of each token in its text.

        Returns:
            For each text ``ids (length) int32`` and ``offsets (length, 2) int64``: the characters of the text that each
            token stands for, the first one and one behind the last.

        Raises:
            ValueError: One string instead of several, or something that is no text.
        """
        texts = _several(texts)
        try:
            encodings = self._plain.encode_batch(texts, add_special_tokens=False)
        except TypeError as error:
            raise _why_no_texts(texts) from error
        return [
            (np.array(e.ids, dtype=np.int32), np.array(e.offsets, dtype=np.int64).reshape(-1, 2)) for e in encodings
        ]

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Encode sentences that are cut into words already, each word for itself.

        No special tokens are added, and what looks like one is read as ordinary characters.

        Args:
            sentences: Any number of lists of words.

        Returns:
            For each sentence ``ids (length) int32`` and ``pieces (words) int64``, how many of them each word has: none,
            where nothing is left of a word, such as one of control characters.

        Raises:
            ValueError: A string instead of a list of words, or a word that is no text.
        """
        sentences = [_several(words, "a sentence", "words") for words in sentences]
        try:
            encodings = self._plain.encode_batch(sentences, is_pretokenized=True, add_special_tokens=False)
        except TypeError as error:
            raise _why_no_texts([word for words in sentences for word in words], "words") from error
        return [
            (np.array(e.ids, dtype=np.int32), np.bincount(np.array(e.word_ids, dtype=np.int64), minlength=len(words)))
            for e, words in zip(encodings, sentences, strict=True)
        ]

    def find_words(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return where the words of plain texts begin and end, in characters, as the tokenizer itself sees words.

        BERT's tokenizer cuts at spaces and around punctuation, so "don't" is three words; "I saw." has the words
        (0, 1), (2, 5) and (5, 6).

        Raises:
            ValueError: One string instead of several, or something that is no text.
        """
        texts = _several(texts)
        try:
            encodings = self._plain.encode_batch(texts, add_special_tokens=False)
        except TypeError as error:
            raise _why_no_texts(texts) from error
        return [_word_spans(e.word_ids, e.offsets) for e in encodings]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids, special tokens spelt out unless skipped."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the spelling of an id, or None if no token has it."""
        return self._backend.id_to_token(int(token_id))

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None if the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    @cached_property
    def put_in_front(self) -> Literal["nothing", "space", "other"]:
        """What the tokenizer puts in front of every text: a "space" (also where it drops spaces), as Llama 2's."""
        texts = ("a b", "a", "b", " b")
        both, first, second, spaced = (self._plain.encode(text, add_special_tokens=False).ids for text in texts)
        if both == first + second:
            return "space"
        return "nothing" if both == first + spaced else "other"

    @cached_property
    def named_bytes(self) -> dict[int, int]:
        """The byte that each token stands for whose name spells one, as Llama's ``<0xE6>``; mostly there are none."""
        ids = {self._backend.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        # Names alone do not tell: a decoder may leave them as they are.
        letter = self._backend.token_to_id("<0x41>")
        if letter is None or self._backend.decode([letter]) != "A":
            return {}
        return {token: byte for token, byte in ids.items() if token is not None}

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself, as others use it, puts a first token in front of a text, as Llama's does."""
        bos = self.special_names.get("bos")
        ids = self._backend.encode("a", add_special_tokens=True).ids
        return bos is not None and ids[0] == self._backend.token_to_id(bos)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the tokenizer's definition as canonical JSON: equal exactly for equal tokenizers."""
        canonical = json.dumps(json.loads(self._backend.to_str()), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain

    def __getstate__(self) -> dict[str, Any]:
        return {"definition": self._backend.to_str(), "special_names": {**self.special_names, **self._named}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state["definition"]), special_names=state["special_names"])

    def _find_special(self, kind: str, names: Mapping[str, str]) -> str | None:
        candidates = (names[kind],) if kind in names else KNOWN_NAMES[kind]
        return next((name for name in candidates if self._backend.token_to_id(name) is not None), None)

    def _ids_of(self, tokens: type, otherwise: str) -> dict[str, int]:
        kinds = [field.name for field in fields(tokens)]
        if missing := next((kind for kind in kinds if kind not in self.special_names), None):
            if missing in self._named:
                raise ValueError(
                    f"the {missing} token is said to be {self._named[missing]!r}, which the vocabulary lacks; add it "
                    f'there, or name another as "{missing}_token" in tokenizer_config.json'
                )
            raise ValueError(
                f"the tokenizer has no {missing} token: expected one of {', '.join(KNOWN_NAMES[missing])} in its "
                f'vocabulary; name it as "{missing}_token" in tokenizer_config.json, or {otherwise}'
            )
        return {kind: self._backend.token_to_id(self.special_names[kind]) for kind in kinds}


def _several(texts: Sequence[str], name: str = "texts", kind: str = "strings") -> list[str]:
    if isinstance(texts, str):
        raise ValueError(f"{name} must be several {kind}, got one; put it into a list")
    return list(texts)


def _why_no_texts(texts: Sequence[object], name: str = "texts") -> ValueError:
    """Return the error that names what the library could not read among texts."""
    for text in texts:
        if not isinstance(text, str):
            return ValueError(f"{name} must be strings, got {type(text).__name__}: {text!r:.60}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return ValueError(
                f"the {name.removesuffix('s')} {text[:40]!r} holds half a character, {text[error.start]!r} at "
                f"{error.start}, which UTF-8 cannot spell; mend it, as with "
                'text.encode(errors="replace").decode()'
            )
    return ValueError(f"{name} must be strings")


def _word_starts(word_ids: list[int | None]) -> np.ndarray:
    changes = map(operator.ne, word_ids, itertools.chain((-1,), word_ids))
    return np.fromiter(changes, dtype=bool, count=len(word_ids))


def _word_spans(word_ids: list[int | None], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join the pieces of each word."""
    spans: dict[int | None, tuple[int, int]] = {}
    for word, (start, end) in zip(word_ids, offsets, strict=True):
        spans[word] = (spans.get(word, (start,))[0], end)
    return list(spans.values())
