"""From scores to a token: repetition penalty, temperature, the cuts of the distribution, and the draw."""

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen; without any of the first four, the likeliest one is taken."""

    temperature: float | None = None
    """Scores are divided by it before the softmax: below 1 sharper, above 1 flatter; 0: take the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities add up to p (nucleus)."""
    min_p: float | None = None
    """Draw from tokens that are at least p times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative scores of tokens that the prompt or the text has already."""
    seed: int = 0
    """Of the draws: the same seed and sample number give the same text for a prompt, in fp32 alone or beside others."""

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn, and not the likeliest taken."""
        cuts = (self.temperature, self.top_k, self.top_p, self.min_p)
        return any(value is not None for value in cuts) and self.temperature != 0

    def __post_init__(self) -> None:
        if self.temperature is not None:
            expect_number("temperature", self.temperature, "a number, at least 0", lambda x: x >= 0)
        if self.top_k is not None:
            expect_number("top_k", self.top_k, "a whole number, at least 1", lambda x: x >= 1, whole=True)
        if self.top_p is not None:
            expect_number("top_p", self.top_p, "a number above 0 and at most 1", lambda x: 0 < x <= 1)
        if self.min_p is not None:
            expect_number("min_p", self.min_p, "a number, at least 0 and at most 1", lambda x: 0 <= x <= 1)
        expect_number("repetition_penalty", self.repetition_penalty, "a number above 0", lambda x: x > 0)
        expect_number("seed", self.seed, "a whole number", lambda x: True, whole=True)


class Draws:
    """The random numbers of one text: a function of the seed and the number of the sample alone.

    Args:
        seed: of the call.
        sample: which of several texts from one prompt.
    """

    def __init__(self, seed: int, sample: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, sample], dtype=np.uint64)))

    def choose(self, probabilities: np.ndarray) -> int:
        """Return an index, drawn in proportion to (V) probabilities, by one uniform number."""
        cumulative = probabilities.cumsum(dtype=np.float64)
        chosen = int(np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right"))
        # Rounding can carry the last step of the search beyond the last token that has any probability.
        return chosen if chosen < len(cumulative) and probabilities[chosen] > 0 else int(probabilities.argmax())


def penalize_repetition(logits: Tensor, texts: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Return scores (B, V) in which the tokens of each of B texts are less likely.

    Source: Keskar et al. 2019, "CTRL" (arXiv 1909.05858) §4.1.
    """
    if penalty == 1.0:
        return logits
    logits = logits.clone()
    for scores, text in zip(logits, texts, strict=True):
        seen = torch.tensor(sorted(set(text)), dtype=torch.int64, device=logits.device)
        old = scores[seen]
        scores[seen] = torch.where(old > 0, old / penalty, old * penalty)
    return logits


def next_token_probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Return what the next tokens are drawn from, (B, V) fp32 from scores (B, V); what is cut off has probability 0.

    The cuts come in the order temperature, top_k, top_p, min_p, each on what the one before it has left.

    Source: top-p: Holtzman et al. 2019 (arXiv 1904.09751) §3.1; top-k: Fan et al. 2018 (arXiv 1805.04833) §5; min-p:
    Nguyen et al. 2024 (arXiv 2407.01082) §3.
    """
    # From the largest score down, so that no temperature, however small, makes two of them infinite.
    logits = (logits.float() - logits.float().amax(-1, keepdim=True)) / (config.temperature or 1.0)
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if config.top_p is not None and config.top_p < 1:
        values, order = logits.sort(dim=-1)
        # From the unlikeliest up: what adds up to no more than 1 - p goes, but never the likeliest.
        surplus = values.softmax(-1).cumsum(-1) <= 1 - config.top_p
        surplus[:, -1] = False
        logits = logits.masked_fill(surplus.scatter(1, order, surplus), -torch.inf)
    probabilities = logits.softmax(-1)
    if config.min_p is not None:
        least = config.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities


def choose_tokens(
    logits: Tensor, texts: Sequence[Sequence[int]], draws: Sequence[Draws], config: SamplingConfig
) -> list[int]:
    """Return the next token of each of B texts.

    Args:
        logits: (B, V).
        texts: what stands in front, prompts included.
        draws: of each text.
        config: how to choose.
    """
    logits = penalize_repetition(logits, texts, config.repetition_penalty)
    if not config.draws:
        return logits.argmax(-1).tolist()
    probabilities = next_token_probabilities(logits, config).cpu().numpy()
    return [own.choose(row) for own, row in zip(draws, probabilities, strict=True)]


def expect_number(
    name: str, value: object, expected: str, holds: Callable[[float], bool], *, whole: bool = False
) -> None:
    """Raise ValueError unless an option is a number, or a whole one, of which something holds."""
    if not isinstance(value, numbers.Integral if whole else numbers.Real) or not holds(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
