"""What generation is asked for, and what it gives."""

import math
from dataclasses import dataclass, field
from typing import Literal

from fastssl.models.generation.sampling import SamplingConfig, expect_number

FinishReason = Literal["end_token", "stopped", "max_new_tokens", "context"]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(SamplingConfig):
    """What is written on from each prompt."""

    max_new_tokens: int = 128
    """Most tokens to write; fewer where an end token comes first or the context is full."""
    min_new_tokens: int = 0
    """No end token before so many."""
    num_samples: int = 1
    """Texts from each prompt."""
    num_beams: int = 1
    """Running candidates of a beam search; 1: no beams."""
    length_penalty: float = 1.0
    """A finished beam's score is divided by its length to this power: above 0 longer texts, below 0 shorter ones."""
    early_stopping: bool = False
    """End a beam search as soon as `num_beams` texts are finished, and not when none can become better."""
    use_cache: bool = True
    """Whether keys and values of what was read are kept; else a step reads all again: slow, and in fp32 the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("max_new_tokens", 1), ("min_new_tokens", 0), ("num_samples", 1), ("num_beams", 1)):
            expected = f"a whole number, at least {least}"
            expect_number(name, getattr(self, name), expected, lambda x, least=least: x >= least, whole=True)
        expect_number("length_penalty", self.length_penalty, "a finite number", math.isfinite)
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be at most max_new_tokens={self.max_new_tokens}, got {self.min_new_tokens}"
            )
        if self.num_beams > 1:
            self._check_beams()
        elif self.length_penalty != 1.0 or self.early_stopping:
            raise ValueError(
                "length_penalty and early_stopping are of a beam search; leave them out, or give num_beams above 1"
            )
        elif self.num_samples > 1 and not self.draws:
            raise ValueError(
                f"num_samples={self.num_samples} texts would all be the same, as the likeliest token is taken each "
                "time; draw them (temperature, top_k, top_p or min_p), or give num_beams"
            )

    def _check_beams(self) -> None:
        if self.draws or self.min_new_tokens:
            raise ValueError(
                "num_beams above 1 takes the likeliest texts; leave temperature, top_k, top_p, min_p and "
                "min_new_tokens out, or num_beams"
            )
        if self.num_samples > self.num_beams:
            raise ValueError(f"num_samples must be at most num_beams={self.num_beams}, got {self.num_samples}")


@dataclass(kw_only=True)
class GeneratedTokens:
    """One text from one prompt."""

    prompt: int
    """Number of the prompt."""
    sample: int
    """Which of its texts."""
    tokens: list[int] = field(default_factory=list)
    """The new tokens, the end token included."""
    finish_reason: FinishReason | None = None
    """Why it ended; None while it goes on. "context": the model has no further position."""
    score: float | None = None
    """Of a beam search: sum of the tokens' log-probabilities / length ** length_penalty."""
