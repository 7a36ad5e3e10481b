"""Generation: a causal model writes on from prompts, one token at a time, from its cache of keys and values."""

from collections.abc import Callable, Iterator, Sequence
from operator import index

import torch

from fastssl.models.generation.beam_search import search_beams
from fastssl.models.generation.generated import FinishReason, GeneratedTokens, GenerationConfig
from fastssl.models.generation.reader import CausalConfig, CausalModel, Reader
from fastssl.models.generation.sampling import Draws, choose_tokens


def generate(
    model: CausalModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig | None = None,
    *,
    stop: Callable[[GeneratedTokens], bool] | None = None,
) -> list[GeneratedTokens]:
    """Write on from each prompt.

    Args:
        model: in eval mode or not: nothing is dropped out.
        prompts: B sequences of token ids, of any lengths; an empty one begins with the model's `bos_token_id`.
        config: how; None: the defaults, which take the likeliest token each time.
        stop: asked after each new token whether a text ends with it.

    Returns:
        B x num_samples texts, prompt by prompt.

    Raises:
        ValueError: for a prompt that is no sequence of ids, an id outside the vocabulary, a prompt that leaves no
            position free, or an empty one where the model has no token to begin with.
    """
    config = config or GenerationConfig()
    if config.num_beams > 1:
        checked = _checked_prompts(model, prompts)
        return search_beams(Reader(model, checked, config), checked, config, stop) if checked else []
    finished = [text for step in stream(model, prompts, config, stop=stop) for text in step if text.finish_reason]
    return sorted(finished, key=lambda text: (text.prompt, text.sample))


def stream(
    model: CausalModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    stop: Callable[[GeneratedTokens], bool] | None = None,
) -> Iterator[list[GeneratedTokens]]:
    """Yield, after each step, the texts that got a token in it; arguments and errors as in `generate`.

    A text is yielded for the last time with its `finish_reason`. Texts that have ended leave the batch.
    """
    if config.num_beams > 1:
        raise ValueError("a beam search knows its texts only at the end; leave num_beams out, or call generate")
    return _stream(model, _checked_prompts(model, prompts), config, stop)


def _stream(
    model: CausalModel,
    prompts: list[list[int]],
    config: GenerationConfig,
    stop: Callable[[GeneratedTokens], bool] | None,
) -> Iterator[list[GeneratedTokens]]:
    if not prompts:
        return
    texts = [GeneratedTokens(prompt=p, sample=s) for p in range(len(prompts)) for s in range(config.num_samples)]
    draws = [Draws(config.seed, text.sample) for text in texts]
    reader = Reader(model, prompts, config)
    logits = reader.read(prompts)
    rows = [text.prompt for text in texts]
    logits = logits[rows]
    reader.select(rows)
    end_tokens = model.config.end_tokens
    while texts:
        penalized = config.repetition_penalty != 1.0
        written = [prompts[text.prompt] + text.tokens if penalized else () for text in texts]
        if end_tokens and any(len(text.tokens) < config.min_new_tokens for text in texts):
            logits = _without_end(logits, texts, end_tokens, config.min_new_tokens)
        for text, token in zip(texts, choose_tokens(logits, written, draws, config), strict=True):
            text.tokens.append(token)
            text.finish_reason = _finish_reason(model, text, len(prompts[text.prompt]), config, stop)
        yield list(texts)
        going_on = [row for row, text in enumerate(texts) if text.finish_reason is None]
        texts, draws = [texts[row] for row in going_on], [draws[row] for row in going_on]
        if texts:
            reader.select(going_on)
            logits = reader.read([text.tokens[-1:] for text in texts])


def checked_prompt(number: int, prompt: Sequence[int], config: CausalConfig) -> list[int]:
    """Return a prompt as a list of ids that can be written on from; of an empty one the model's first token.

    Args:
        number: of the prompt, for errors.
        prompt: its tokens.
        config: of the model.

    Raises:
        ValueError: as in `generate`.
    """
    try:
        # Also of arrays and tensors; text and decimals have no index.
        prompt = [index(token) for token in prompt]
    except TypeError as error:
        raise ValueError(
            f"prompt {number} must be a sequence of token ids, got {prompt!r:.60}; give several of them, such as "
            "[[5, 7]], or texts to a TextGenerator"
        ) from error
    if not prompt:
        if config.bos_token_id is None:
            raise ValueError(f"prompt {number} is empty, and the model has no bos_token_id to begin with; give a text")
        return [config.bos_token_id]
    wrong = [token for token in prompt if not 0 <= token < config.vocab_size]
    if wrong:
        raise ValueError(
            f"prompt {number} has the token {wrong[0]}, and the model's vocabulary ends at {config.vocab_size}; encode "
            "it with the tokenizer that the model was trained with"
        )
    if len(prompt) >= config.max_position_embeddings:
        raise ValueError(
            f"prompt {number} has {len(prompt)} tokens, and the model has {config.max_position_embeddings} positions: "
            "none is left to write to; shorten it"
        )
    return prompt


def _checked_prompts(model: CausalModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    return [checked_prompt(number, prompt, model.config) for number, prompt in enumerate(prompts)]


def _finish_reason(
    model: CausalModel,
    text: GeneratedTokens,
    prompt_length: int,
    config: GenerationConfig,
    stop: Callable[[GeneratedTokens], bool] | None,
) -> FinishReason | None:
    if text.tokens[-1] in model.config.end_tokens:
        return "end_token"
    if stop is not None and stop(text):
        return "stopped"
    if len(text.tokens) >= config.max_new_tokens:
        return "max_new_tokens"
    # The last position may be written to, and its token need not be read.
    return "context" if prompt_length + len(text.tokens) > model.config.max_position_embeddings else None


def _without_end(
    logits: torch.Tensor, texts: Sequence[GeneratedTokens], end_tokens: tuple[int, ...], least: int
) -> torch.Tensor:
    logits = logits.clone()
    for row, text in enumerate(texts):
        if len(text.tokens) < least:
            logits[row, list(end_tokens)] = -torch.inf
    return logits
