"""Tokens of a text and of what follows it, cut where the two meet."""

from __future__ import annotations

from collections.abc import Sequence

from fastssl.data.tokenizer import Tokenizer


def encode_continuations(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Return (context tokens, continuation tokens) of pairs of texts.

    Spaces at the end of a context belong to the continuation, as tokenizers join them to the word behind. The two are
    encoded as one text, and the context's own number of tokens is cut off its front.

    Args:
        tokenizer: of the model.
        pairs: (context, continuation); where the context is empty, so are its tokens.

    Raises:
        ValueError: for a continuation without a token of its own.

    Source: EleutherAI's lm-evaluation-harness, `TemplateLM._encode_pair`.
    """
    moved = []
    for context, continuation in pairs:
        kept = context.rstrip()
        moved.append((kept, context[len(kept) :] + continuation))
    # Many questions have the same choices behind one context: each different text is encoded once.
    contexts = list(dict.fromkeys(context for context, _ in moved))
    ids_of = dict(zip(contexts, tokenizer.encode_many(contexts), strict=True))
    wholes = tokenizer.encode_many([context + continuation for context, continuation in moved])
    encoded = []
    for (context, continuation), whole in zip(moved, wholes, strict=True):
        cut = len(ids_of[context])
        if len(whole) <= cut:
            raise ValueError(
                f"the continuation {continuation!r} has no token of its own behind {context[-40:]!r}; let it begin "
                "with another character"
            )
        encoded.append((whole[:cut], whole[cut:]))
    return encoded
