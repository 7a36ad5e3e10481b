"""Beam search: the texts whose tokens are likeliest together, as far as a few running candidates find them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastssl.models.generation.generated import FinishReason, GeneratedTokens, GenerationConfig
from fastssl.models.generation.reader import Reader
from fastssl.models.generation.sampling import penalize_repetition

Stop = Callable[[GeneratedTokens], bool]


@dataclass(frozen=True, kw_only=True)
class _Beam:
    score: float
    """Sum of the log-probabilities of its tokens; of a finished one, divided by length ** length_penalty."""
    tokens: list[int] = field(default_factory=list)
    row: int = 0
    """Row of the reader that it goes on from."""
    finish_reason: FinishReason | None = None


class BeamSearch:
    """The search from one prompt.

    Args:
        number: of the prompt.
        prompt: its tokens.
        config: with `num_beams`, `length_penalty` and `early_stopping`.
        max_new_tokens: as far as the model's positions allow.
        end_tokens: of the model.
        stop: asked of each new text whether it ends.

    Source: Wu et al. 2016 (arXiv 1609.08144) §7 for the length penalty's place; the rules of stopping are those of
    Hugging Face's `generate`, so that the texts are the same.
    """

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        config: GenerationConfig,
        *,
        max_new_tokens: int,
        end_tokens: tuple[int, ...],
        stop: Stop | None,
    ) -> None:
        self.number, self.prompt, self.config = number, list(prompt), config
        self._max_new_tokens, self._end_tokens, self._stop = max_new_tokens, end_tokens, stop
        self.running = [_Beam(score=0.0)]
        """At most `num_beams`, likeliest first."""
        self._finished: list[_Beam] = []

    def step(self, log_probs: Tensor, rows: range) -> bool:
        """Take one more token of each running beam and return whether the search goes on.

        Args:
            log_probs: (R, V) of what follows each running beam.
            rows: of the reader, one for each running beam.
        """
        num_beams, vocabulary = self.config.num_beams, log_probs.shape[-1]
        scores = log_probs + torch.tensor([beam.score for beam in self.running], device=log_probs.device)[:, None]
        # An end token of each beam may be among the best, and as many as there are beams must be left to go on.
        count = min(max(2, 1 + len(self._end_tokens)) * num_beams, scores.numel())
        best = scores.flatten().topk(count)
        candidates = [
            self._extended(score, *divmod(index, vocabulary), rows)
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        self._finish([beam for beam in candidates[:num_beams] if beam.finish_reason is not None])
        self.running = [beam for beam in candidates if beam.finish_reason is None][:num_beams]
        return bool(self.running) and not self._done()

    def results(self) -> list[GeneratedTokens]:
        """Return the best `num_samples` finished texts, best first."""
        return [
            GeneratedTokens(
                prompt=self.number, sample=n, tokens=beam.tokens, finish_reason=beam.finish_reason, score=beam.score
            )
            for n, beam in enumerate(self._finished[: self.config.num_samples])
        ]

    def _extended(self, score: float, parent: int, token: int, rows: range) -> _Beam:
        tokens = [*self.running[parent].tokens, token]
        return _Beam(score=score, tokens=tokens, row=rows[parent], finish_reason=self._finish_reason(tokens))

    def _finish_reason(self, tokens: list[int]) -> FinishReason | None:
        if tokens[-1] in self._end_tokens:
            return "end_token"
        if self._stop is not None and self._stop(GeneratedTokens(prompt=self.number, sample=0, tokens=tokens)):
            return "stopped"
        if len(tokens) >= self._max_new_tokens:
            return "max_new_tokens" if len(tokens) >= self.config.max_new_tokens else "context"
        return None

    def _finish(self, beams: list[_Beam]) -> None:
        penalty = self.config.length_penalty
        scored = [replace(beam, score=beam.score / len(beam.tokens) ** penalty) for beam in beams]
        self._finished = sorted([*self._finished, *scored], key=lambda beam: -beam.score)[: self.config.num_beams]

    def _done(self) -> bool:
        if len(self._finished) < self.config.num_beams:
            return False
        best_possible = self.running[0].score / len(self.running[0].tokens) ** self.config.length_penalty
        return self.config.early_stopping or best_possible <= self._finished[-1].score


def search_beams(
    reader: Reader, prompts: Sequence[Sequence[int]], config: GenerationConfig, stop: Stop | None
) -> list[GeneratedTokens]:
    """Return the best texts from each prompt; arguments as in `fastssl.models.generation.generate.generate`."""
    model_config = reader.model.config
    searches = [
        BeamSearch(
            number,
            prompt,
            config,
            max_new_tokens=min(config.max_new_tokens, model_config.max_position_embeddings - len(prompt) + 1),
            end_tokens=model_config.end_tokens,
            stop=stop,
        )
        for number, prompt in enumerate(prompts)
    ]
    logits, active = reader.read(prompts), list(searches)
    while active:
        texts = [[*search.prompt, *beam.tokens] for search in active for beam in search.running]
        log_probs = penalize_repetition(logits.float().log_softmax(-1), texts, config.repetition_penalty)
        going_on, first = [], 0
        for search in active:
            rows = range(first, first + len(search.running))
            first = rows.stop
            if search.step(log_probs[rows.start : rows.stop], rows):
                going_on.append(search)
        active = going_on
        if active:
            beams = [beam for search in active for beam in search.running]
            reader.select([beam.row for beam in beams])
            logits = reader.read([beam.tokens[-1:] for beam in beams])
    return [result for search in searches for result in search.results()]
