"""Serving a causal model: prompts in, texts out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastssl.data.tokenizer import Tokenizer
from fastssl.models.generation.generate import checked_prompt, generate, stream
from fastssl.models.generation.generated import FinishReason, GeneratedTokens, GenerationConfig
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.tasks.generation.text_stream import StopStrings, TextStream
from fastssl.tasks.inference import dtype_of_parameters, ready
from fastssl.tasks.streaming import strings


@dataclass(frozen=True, kw_only=True)
class GeneratedText:
    """One text that a model has written."""

    prompt: str
    """What it was to go on from."""
    sample: int
    """Which of the prompt's texts."""
    text: str
    """What it wrote, without the prompt, the end token, and a stop string with what follows it."""
    num_tokens: int
    """New tokens, all of them counted."""
    finish_reason: FinishReason
    """Why it ended there; "stopped": at a stop string."""
    score: float | None = None
    """Of a beam search: sum of the tokens' log-probabilities / length ** length_penalty."""


class TextGenerator:
    """Writes on from texts with a causal language model.

    Prompts of any lengths go through the model together, packed. May be called from several threads at once.

    Args:
        model: put into eval mode.
        tokenizer: of the model's vocabulary.
        prompts_at_once: how many prompts are written on at the same time.

    Raises:
        ValueError: where the tokenizer has ids that the model does not.
    """

    def __init__(self, model: GPTForCausalLM, tokenizer: Tokenizer, *, prompts_at_once: int = 16) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}; "
                "give the tokenizer that the model was trained with, or call model.resize_token_embeddings first"
            )
        if prompts_at_once < 1:
            raise ValueError(f"prompts_at_once must be at least 1, got {prompts_at_once}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prompts_at_once = prompts_at_once

    @classmethod
    def load(
        cls, directory: str | Path, *, dtype: str = "fp32", device: str = "auto", prompts_at_once: int = 16
    ) -> TextGenerator:
        """Read model and tokenizer from one directory.

        Args:
            directory: of a causal language model.
            dtype: "fp32", "bf16" or "int8" (see `fastssl.quantize`), of the computation.
            device: "auto" (a GPU where there is one; "int8" always the CPU), "cpu", "cuda" or "cuda:1".
            prompts_at_once: how many prompts are written on at the same time.

        Raises:
            FileNotFoundError: where a part is missing.
            ValueError: where the model is of another kind, or a part is damaged.
        """
        model = GPTForCausalLM.from_pretrained(directory, dtype=dtype_of_parameters(dtype))
        return cls(ready(model, dtype, device), Tokenizer.load(directory), prompts_at_once=prompts_at_once)

    def __call__(self, prompts: Iterable[str], *, stop: Sequence[str] = (), **options) -> list[GeneratedText]:
        """Return what the model writes on from each prompt, prompt by prompt and sample by sample.

        Args:
            prompts: texts; an empty one begins with the model's first token.
            stop: strings at which a text ends, in front of them.
            options: fields of `GenerationConfig`: max_new_tokens, temperature, top_k, num_beams and so on.

        Raises:
            ValueError: for one string instead of several, a prompt that leaves no position free, or an option out of
                range.
        """
        return list(self.stream(strings("prompts", prompts), stop=stop, **options))

    def stream(
        self, texts: Iterable[str], *, stop: Sequence[str] = (), texts_at_once: int | None = None, **options
    ) -> Iterator[GeneratedText]:
        """Yield what a call returns, in order, in memory that does not grow with the number of prompts.

        Args:
            texts: prompts; may be endless.
            stop, options: as in a call.
            texts_at_once: prompts that are written on together; None: `prompts_at_once`.

        Raises:
            ValueError: as a call, of a prompt when its turn comes, and for a `texts_at_once` below 1.
        """
        if isinstance(texts, str):
            raise ValueError("texts must be several prompts, got one string; put it into a list")
        config, stops = GenerationConfig(**options), StopStrings(stop)
        at_once = self.prompts_at_once if texts_at_once is None else texts_at_once
        if at_once < 1:
            raise ValueError(f"texts_at_once must be at least 1, got {texts_at_once}")
        return self._stream(texts, config, stops, at_once)

    def write(self, prompt: str, *, stop: Sequence[str] = (), **options) -> Generator[str, None, GeneratedText]:
        """Yield the text that the model writes on from one prompt, as it is written; the whole is returned at the end.

        Args:
            prompt: a text.
            stop, options: as in a call; one sample, no beams.

        Returns:
            A generator of pieces, whose own value (of a ``yield from``) is what a call returns for the prompt.

        Raises:
            ValueError: as a call, and for several samples.
        """
        config, stops = GenerationConfig(**options), StopStrings(stop)
        if config.num_samples > 1:
            raise ValueError(f"one text is written at a time here, got num_samples={config.num_samples}; call instead")
        ids = self.encode(prompt)
        steps = stream(self.model, [ids], config, stop=self._stopper(stops, [ids]))
        return self._write(prompt, ids, steps, stops)

    def write_on(self, prompts: Sequence[Sequence[int]], *, stop: Sequence[str] = (), **options) -> list[str]:
        """Return the text that the model writes on from each prompt of token ids.

        Args:
            prompts: of any lengths; `prompts_at_once` of like length go together.
            stop, options: as in a call; one sample each.

        Raises:
            ValueError: as a call, and for several samples.
        """
        config, stops = GenerationConfig(**options), StopStrings(stop)
        if config.num_samples > 1:
            raise ValueError(f"each prompt gets one text here, got num_samples={config.num_samples}; call instead")
        prompts = [checked_prompt(number, prompt, self.model.config) for number, prompt in enumerate(prompts)]
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        texts = [""] * len(prompts)
        for begin in range(0, len(order), self.prompts_at_once):
            numbers = order[begin : begin + self.prompts_at_once]
            together = [prompts[n] for n in numbers]
            written = generate(self.model, together, config, stop=self._stopper(stops, together))
            for number, one in zip(numbers, written, strict=True):
                texts[number] = stops.cut(self._text(prompts[number], one))
        return texts

    def encode(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt, begun as its tokenizer begins texts; the first token alone of an empty one."""
        first, tokens = self.model.config.bos_token_id, self.tokenizer.encode(prompt)
        begins = first is not None and (self.tokenizer.adds_bos or not tokens)
        return [first, *tokens] if begins and tokens[:1] != [first] else tokens

    def _stream(
        self, texts: Iterable[str], config: GenerationConfig, stops: StopStrings, at_once: int
    ) -> Iterator[GeneratedText]:
        window: list[str] = []
        number = 0
        for number, text in enumerate(texts, start=1):
            window.append(text)
            if len(window) == at_once:
                yield from self._generate(window, number - len(window), config, stops)
                window = []
        yield from self._generate(window, number - len(window), config, stops)

    def _generate(
        self, prompts: list[str], first: int, config: GenerationConfig, stops: StopStrings
    ) -> list[GeneratedText]:
        """Return the texts of a window of prompts, the first of which has the number `first` among all."""
        ids = [checked_prompt(n, self.encode(text), self.model.config) for n, text in enumerate(prompts, start=first)]
        written = generate(self.model, ids, config, stop=self._stopper(stops, ids))
        return [_generated(prompts[one.prompt], one, stops.cut(self._text(ids[one.prompt], one))) for one in written]

    def _text(self, prompt: list[int], written: GeneratedTokens) -> str:
        whole = TextStream(self.tokenizer, prompt)
        return "".join(map(whole.add, self._shown(written))) + whole.finish()

    def _write(
        self, prompt: str, ids: list[int], steps: Iterator[list[GeneratedTokens]], stops: StopStrings
    ) -> Generator[str, None, GeneratedText]:
        whole, held, text = TextStream(self.tokenizer, ids), "", ""
        for (written,) in steps:
            shown = self._shown(written)
            held += whole.add(shown[-1]) if len(shown) == len(written.tokens) else ""
            if written.finish_reason is not None:
                held = stops.cut(held + whole.finish())
            safe = len(held) if written.finish_reason is not None else stops.safe_length(held)
            if safe:
                yield held[:safe]
                text, held = text + held[:safe], held[safe:]
        return _generated(prompt, written, text)

    def _shown(self, written: GeneratedTokens) -> list[int]:
        return written.tokens[:-1] if written.finish_reason == "end_token" else written.tokens

    def _stopper(self, stops: StopStrings, prompts: Sequence[list[int]]):
        if not stops.strings:
            return None
        return lambda written: stops.ends(self.tokenizer, written.tokens, prompts[written.prompt])


def _generated(prompt: str, written: GeneratedTokens, text: str) -> GeneratedText:
    return GeneratedText(
        prompt=prompt,
        sample=written.sample,
        text=text,
        num_tokens=len(written.tokens),
        finish_reason=written.finish_reason,
        score=written.score,
    )
