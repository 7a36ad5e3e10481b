"""WordPiece vocabularies: trained by the ``tokenizers`` library, made reproducible here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"


def bert_tokenizer(
    vocabulary: dict[str, int],
    *,
    lowercase: bool,
    strip_accents: bool | None = None,
    split_chinese: bool = True,
    special_tokens: tuple[str, str, str, str, str] = BERT_SPECIAL_TOKENS,
) -> tokenizers.Tokenizer:
    """Assemble BERT's tokenizer around a WordPiece vocabulary.

    Args:
        vocabulary: token -> id; must hold the special tokens.
        lowercase: Fold upper case to lower case before splitting.
        strip_accents: Remove accents; None does so exactly when ``lowercase`` is set, as BERT did.
        split_chinese: Make every CJK ideograph a word of its own.
        special_tokens: The names of the padding, unknown, class, separator and mask tokens.

    Returns:
        A tokenizer whose post-processor writes ``[CLS] A [SEP]`` and ``[CLS] A [SEP] B [SEP]``.

    Source: Devlin et al. 2018, arXiv:1810.04805, section 3, and its published tokenization.py.
    """
    _, unknown, start, separator, _ = special_tokens
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {separator}:0",
        pair=f"{start}:0 $A:0 {separator}:0 $B:1 {separator}:1",
        special_tokens=[(name, vocabulary[name]) for name in (start, separator)],
    )
    tokenizer.add_special_tokens(list(special_tokens))
    return tokenizer


def numbered(tokens: Iterable[str]) -> dict[str, int]:
    """Return token -> id for tokens in the order of their ids."""
    return {token: i for i, token in enumerate(tokens)}


def train_vocabulary(
    texts: Iterable[str],
    *,
    vocab_size: int,
    normalizer: normalizers.Normalizer,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    min_frequency: int,
    limit_alphabet: int,
    special_tokens: tuple[str, ...] = BERT_SPECIAL_TOKENS,
) -> list[str]:
    """Train a WordPiece vocabulary: special tokens, characters, ``##`` characters, then merged pieces by rank.

    The library numbers the ``##`` characters in the order of a randomly seeded hash table and breaks ties between
    equally frequent merges by number, so two runs on one text differ. A first pass finds the characters here, and the
    second hands them over in sorted order: the same text then gives the same vocabulary.

    Args:
        texts: Read twice; a one-shot iterator is kept in memory.
        vocab_size: Largest number of tokens to make, special tokens included.
        normalizer, pre_tokenizer: How a text becomes words.
        min_frequency: Pairs and characters seen less often are left out.
        limit_alphabet: Largest number of distinct characters; the most frequent are kept.
        special_tokens: Put first, in this order.

    Returns:
        The tokens in the order of their ids; at most ``vocab_size``.

    Raises:
        ValueError: No text, or ``vocab_size`` cannot even hold the characters.
    """
    if iter(texts) is texts:
        texts = list(texts)
    words = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizer, pre_tokenizer
    counts: Counter[str] = Counter()
    pieces = _trained(words, _counting(texts, normalizer, counts), vocab_size=0, min_frequency=2)
    characters = _frequent_characters(counts, set(pieces), min_frequency, limit_alphabet)
    if not characters:
        raise ValueError(
            "there is no text to train a tokenizer on: expected words, with characters that occur at least "
            f"{min_frequency} times; give more text"
        )
    kept = set(characters)
    continuations = sorted(p for p in pieces if p.startswith(CONTINUATION) and p[len(CONTINUATION) :] in kept)
    fixed = [*special_tokens, *characters, *continuations]
    if len(fixed) > vocab_size:
        raise ValueError(
            f"vocab_size must hold the {len(special_tokens)} special tokens and the {len(fixed) - len(special_tokens)} "
            f"characters of the text, at least {len(fixed)} tokens, but is {vocab_size}; ask for more tokens, or set "
            f"limit_alphabet below {limit_alphabet}"
        )
    merged = _trained(
        words,
        texts,
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=fixed,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
    )
    return [*fixed, *(piece for piece in merged if piece not in set(fixed))]


def _counting(texts: Iterable[str], normalizer: normalizers.Normalizer, counts: Counter[str]) -> Iterator[str]:
    for text in texts:
        counts.update(normalizer.normalize_str(text))
        yield text


def _trained(tokenizer: tokenizers.Tokenizer, texts: Iterable[str], **options) -> list[str]:
    trainer = trainers.WordPieceTrainer(show_progress=False, continuing_subword_prefix=CONTINUATION, **options)
    fresh = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fresh.normalizer, fresh.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    fresh.train_from_iterator(texts, trainer)
    vocabulary = fresh.get_vocab(with_added_tokens=False)
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _frequent_characters(counts: Counter[str], pieces: set[str], min_frequency: int, limit: int) -> list[str]:
    """Choose the alphabet: by falling frequency, ties by code point, then sorted."""
    ranked = sorted(
        (c for c, n in counts.items() if n >= min_frequency and (c in pieces or CONTINUATION + c in pieces)),
        key=lambda c: (-counts[c], c),
    )
    return sorted(ranked[:limit])
