"""What a model answers: the likeliest of the choices, or what it writes up to the end of the line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.likelihood import loglikelihoods
from fastssl.tasks.generation.text_generator import TextGenerator
from fastssl.tasks.in_context.prompts import Prompt, PromptMaker


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What became of one prompt."""

    prompt: Prompt
    """As it was asked."""
    answer: str
    """The model's."""
    is_right: bool
    """Whether it is the one in the file."""
    is_right_per_token: bool | None = None
    """The same where the mean log-probability of a choice's tokens decides; None where there are no choices."""
    log_probabilities: tuple[float, ...] = ()
    """Of the choices."""


class Asker(Protocol):
    """Puts prompts to a model."""

    def room_for_answers(self, maker: PromptMaker, rows: Sequence[int]) -> list[int]:
        """Return how many tokens to leave free behind each prompt."""

    def ask(self, maker: PromptMaker, prompts: Sequence[Prompt]) -> list[Answered]:
        """Return the answers, in order."""


class LikelihoodAsker:
    """Takes the choice whose tokens have the largest log-probability behind the prompt, the first of equals.

    Args:
        model: of the probabilities.
        tokens_per_batch: see `loglikelihoods`.

    Source: Brown et al. 2020 (arXiv 2005.14165) section 2.4, also for the mean over tokens.
    """

    def __init__(self, model: GPTForCausalLM, *, tokens_per_batch: int) -> None:
        self._model, self._tokens_per_batch = model, tokens_per_batch

    def room_for_answers(self, maker: PromptMaker, rows: Sequence[int]) -> list[int]:
        """Return the length of each row's longest choice, whose last token need not be read."""
        lengths: dict[tuple[str, ...], int] = {}
        for row in rows:
            choices = maker.task.choices[row]
            if choices not in lengths:
                lengths[choices] = maker.longest_answer(choices) - 1
        return [lengths[maker.task.choices[row]] for row in rows]

    def ask(self, maker: PromptMaker, prompts: Sequence[Prompt]) -> list[Answered]:
        """Return the answers, in order."""
        choices = [maker.task.choices[prompt.row] for prompt in prompts]
        requests = maker.continuations(prompts, choices)
        found = iter(loglikelihoods(self._model, requests, tokens_per_batch=self._tokens_per_batch))
        answered = []
        for prompt, own in zip(prompts, choices, strict=True):
            scores = [next(found) for _ in own]
            sums = np.array([score.log_probability for score in scores])
            means = sums / [score.num_tokens for score in scores]
            right = own.index(maker.task.examples[prompt.row].completion)
            answered.append(
                Answered(
                    prompt=prompt,
                    answer=own[sums.argmax()],
                    is_right=bool(sums.argmax() == right),
                    is_right_per_token=bool(means.argmax() == right),
                    log_probabilities=tuple(sums.tolist()),
                )
            )
        return answered


class GenerationAsker:
    """Takes what the model writes, token by token the likeliest, up to a line end; spaces around it do not count.

    Args:
        generator: writes.
        max_new_tokens: longest answer; None: four tokens more than the longest right one.
    """

    def __init__(self, generator: TextGenerator, *, max_new_tokens: int | None) -> None:
        self._generator, self._max_new_tokens = generator, max_new_tokens

    def room_for_answers(self, maker: PromptMaker, rows: Sequence[int]) -> list[int]:
        """Return the length of the longest answer for each row."""
        return [self._longest(maker)] * len(rows)

    def ask(self, maker: PromptMaker, prompts: Sequence[Prompt]) -> list[Answered]:
        """Return the answers, in order."""
        written = self._generator.write_on(
            [list(prompt.tokens) for prompt in prompts], stop=("\n",), max_new_tokens=self._longest(maker)
        )
        rights = [maker.task.examples[prompt.row].completion.strip() for prompt in prompts]
        return [
            Answered(prompt=prompt, answer=text.strip(), is_right=text.strip() == right)
            for prompt, text, right in zip(prompts, written, rights, strict=True)
        ]

    def _longest(self, maker: PromptMaker) -> int:
        if self._max_new_tokens is not None:
            return self._max_new_tokens
        return maker.longest_answer([example.completion for example in maker.task.examples]) + 3
