"""``fastssl generate``: a causal model writes on from a prompt."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fastssl.cli.flags import parse_flags
from fastssl.cli.text_lines import STANDARD_INPUT, standard_text, text_lines
from fastssl.cli.threads import use_threads
from fastssl.models.generation.generated import GenerationConfig
from fastssl.models.generation.published import GENERATION_FILE, read_published_generation
from fastssl.tasks.generation.text_generator import GeneratedText, TextGenerator
from fastssl.tasks.generation.text_stream import StopStrings


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(GenerationConfig):
    """Write on from prompts with a causal language model.

    Without temperature, top-k, top-p and min-p the likeliest token is taken each time. Texts end at the end tokens that
    the model's generation_config.json or config.json names; how the former would have tokens drawn is told, not done.
    One text is shown as it is written; tokens per second go to standard error.

    Examples:
      fastssl generate --model runs/gpt --prompt "In the beginning"
      fastssl generate --model gpt2/ --prompt "The horse" --temperature 0.8 --top-p 0.95 --num-samples 3
      echo "Once upon a time" | fastssl generate --model gpt2/ --prompt - --stop "." --json
      fastssl generate --model gpt2/ --interactive
    """

    model: Path
    """Directory of a causal language model, and its tokenizer."""
    prompt: tuple[str, ...] = ()
    """Texts to write on from; - reads one from standard input, all of it; an empty one begins a text."""
    interactive: bool = False
    """Ask for prompts, one line each, until an empty line or the end of the input."""
    stop: tuple[str, ...] = ()
    """Strings at which a text ends; they are not shown. Some shells spell a line end $'\\n'."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in; int8 rounds its linear maps to 8 bits."""
    device: str = "auto"
    """Where: auto (a GPU where there is one; int8 always on the CPU), cpu, cuda or cuda:1."""
    num_threads: int | None = None
    """Threads of the computation; None: PyTorch's choice."""
    json: bool = False
    """Print JSON, one object a line for each text."""


def main(arguments: list[str]) -> int:
    """Print what the model writes on from each prompt."""
    flags = parse_flags(GenerateFlags, arguments, program="fastssl generate")
    if bool(flags.prompt) == flags.interactive:
        raise ValueError('expected either --prompt "..." (- reads standard input), or --interactive')
    if flags.prompt.count("-") > 1:
        raise ValueError("--prompt takes - once, as it reads standard input to its end; leave the others out")
    StopStrings(flags.stop)  # refuses an empty one before the model is read
    use_threads(flags.num_threads)
    generator = TextGenerator.load(flags.model, dtype=flags.dtype, device=flags.device)
    _tell_published_sampling(flags)
    if flags.interactive:
        return _interact(generator, flags)
    _write_on(generator, [standard_text() if prompt == "-" else prompt for prompt in flags.prompt], flags)
    return 0


def _interact(generator: TextGenerator, flags: GenerateFlags) -> int:
    lines = text_lines(STANDARD_INPUT)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        prompt = next(lines, "")
        if not prompt:
            return 0
        try:
            _write_on(generator, [prompt], flags)
        except UnicodeEncodeError:  # of the terminal, whatever is asked next
            raise
        except ValueError as error:
            print(f"fastssl: error: {error}", file=sys.stderr)


def _write_on(generator: TextGenerator, prompts: Sequence[str], flags: GenerateFlags) -> None:
    options = {field.name: getattr(flags, field.name) for field in dataclasses.fields(GenerationConfig)}
    begin = time.perf_counter()
    if len(prompts) == flags.num_samples == flags.num_beams == 1 and not flags.json:
        pieces = generator.write(prompts[0], stop=flags.stop, **options)
        texts = [_shown_as_written(prompts[0], pieces)]
    else:
        texts = generator(prompts, stop=flags.stop, **options)
        for number, text in enumerate(texts, start=1):
            whole = f"{text.prompt}{text.text}"
            shown = f"[{number}] {whole}\n" if len(texts) > 1 else whole
            print(json.dumps(asdict(text), ensure_ascii=False) if flags.json else shown)
    _tell_speed(texts, time.perf_counter() - begin)


def _shown_as_written(prompt: str, pieces: Generator[str, None, GeneratedText]) -> GeneratedText:
    print(prompt, end="", flush=True)
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as end:
            print()
            return end.value


def _tell_published_sampling(flags: GenerateFlags) -> None:
    """Tell what the model is meant to be sampled with, where nothing was said of sampling."""
    if flags.draws or flags.temperature == 0 or flags.repetition_penalty != 1.0 or flags.num_beams > 1:
        return
    meant = read_published_generation(flags.model).sampling
    if meant:
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in meant.items())
        print(
            f"{flags.model / GENERATION_FILE} means the model to be sampled, with {options}; without these flags the "
            "likeliest token is taken each time (--temperature 0 says so)",
            file=sys.stderr,
        )


def _tell_speed(texts: Sequence[GeneratedText], seconds: float) -> None:
    count = sum(text.num_tokens for text in texts)
    full = "; the model has no further position" if any(text.finish_reason == "context" for text in texts) else ""
    print(f"{count} tokens in {seconds:.2f} s: {count / seconds:,.1f} tokens/s{full}", file=sys.stderr)
