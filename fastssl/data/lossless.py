"""Tokenizers that give a text back as it was: byte-level BPE, bytes, characters; assembled and trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from fastssl.data.text_pieces import text_pieces

END_OF_TEXT = "<|endoftext|>"
"""Begins and ends a document, as GPT-2 spells it."""
UNKNOWN = "<unk>"
"""Stands for a character that the text of a character tokenizer lacked."""
_NUM_BYTES = 256
_QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What Qwen2's tokenizer takes as one piece of text, within which bytes are joined."""


def byte_pair_tokenizer(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    add_prefix_space: bool = False,
    cuts_as_qwen2: bool = False,
) -> tokenizers.Tokenizer:
    """Assemble GPT-2's tokenizer, or Qwen2's, around a vocabulary of byte pairs.

    Args:
        vocabulary: token, spelt in GPT-2's characters for bytes, -> id.
        merges: pairs of tokens, first the ones to be joined first.
        special_tokens: of the vocabulary; those that it lacks are put behind it.
        add_prefix_space: Put a space before a text that begins with none, which decoding keeps.
        cuts_as_qwen2: Compose characters (NFC), and cut text into pieces by Qwen2's pattern: each digit is one.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and its encoder.py;
    Qwen2's pattern is that of its published tokenizer.json.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE(dict(vocabulary), list(merges)))
    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=not cuts_as_qwen2)
    tokenizer.pre_tokenizer = level
    if cuts_as_qwen2:
        tokenizer.normalizer = normalizers.NFC()
        pieces = pre_tokenizers.Split(Regex(_QWEN2_PIECES), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, level])
    return _byte_level(tokenizer, special_tokens)


def train_byte_pairs(texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2) -> tokenizers.Tokenizer:
    """Train byte-level BPE; the same texts give the same tokenizer.

    Args:
        texts: Read once.
        vocab_size: Largest number of tokens: end of text, 256 bytes, and joined pairs.
        min_frequency: Pairs seen less often are left apart.

    Raises:
        ValueError: No text, or a ``vocab_size`` that cannot hold the bytes.
    """
    if vocab_size < _NUM_BYTES + 1:
        raise ValueError(
            f"vocab_size must hold {_NUM_BYTES} bytes and the end of text, at least {_NUM_BYTES + 1} tokens, but is "
            f"{vocab_size}; ask for more, or take bytes or characters themselves as tokens"
        )
    tokenizer = byte_pair_tokenizer({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    count = Counter[str]()
    tokenizer.train_from_iterator(_pieces(texts, count), trainer)
    _expect_text(count)
    return _beginning_with_end_of_text(tokenizer)


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Return the tokenizer whose tokens are the 256 bytes of UTF-8, with their values as ids; 256 ends a text."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _beginning_with_end_of_text(_byte_level(tokenizer, [END_OF_TEXT]))


def train_characters(texts: Iterable[str], *, vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """Make a tokenizer of the characters that texts hold, in the order of their code points.

    A character that they lack becomes the unknown token, which is the one loss.

    Args:
        texts: Read once.
        vocab_size: Largest number of tokens, end of text and unknown included: the most frequent characters are kept.
            None keeps all.

    Raises:
        ValueError: No text.
    """
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    _expect_text(counts)
    names = [END_OF_TEXT, UNKNOWN]
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    kept = sorted(ranked if vocab_size is None else ranked[: max(0, vocab_size - len(names))])
    if not kept:
        raise ValueError(f"vocab_size must be at least {len(names) + 1}, but is {vocab_size}; ask for more characters")
    vocabulary = {token: i for i, token in enumerate([*names, *kept])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(names)
    return _beginning_with_end_of_text(tokenizer)


def byte_characters() -> list[str]:
    """Return the 256 characters by which GPT-2 spells bytes, in the order of the bytes.

    Printable bytes of Latin-1 are themselves; the others, in order, are the characters from 256 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    rest = iter(range(_NUM_BYTES, 2 * _NUM_BYTES))
    return [chr(byte if byte in printable else next(rest)) for byte in range(_NUM_BYTES)]


def _byte_level(tokenizer: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> tokenizers.Tokenizer:
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(list(special_tokens))
    return tokenizer


def _beginning_with_end_of_text(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Make a tokenizer say, to whoever loads it, that texts begin as documents did in training."""
    template = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT}:1 $B:1",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    present = [] if tokenizer.post_processor is None else [tokenizer.post_processor]
    tokenizer.post_processor = processors.Sequence([*present, template])
    return tokenizer


def _pieces(texts: Iterable[str], count: Counter[str]) -> Iterable[str]:
    for text in texts:
        count["characters"] += len(text)
        yield from text_pieces(text)


def _expect_text(counts: Counter[str]) -> None:
    if not counts.total():
        raise ValueError("there is no text to train a tokenizer on; give text")
