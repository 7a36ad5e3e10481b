"""``fastssl generate``: a causal model writes on from a prompt."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from fastssl.cli.flags import parse_flags
from fastssl.models.generated import GenerationConfig
from fastssl.tasks.generation.text_generator import GeneratedText, TextGenerator


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(GenerationConfig):
    """Write on from prompts with a causal language model.

    Without temperature, top-k, top-p and min-p the likeliest token is taken each time. One text is shown as it is
    written; tokens per second go to standard error.

    Examples:
      fastssl generate --model runs/gpt --prompt "In the beginning"
      fastssl generate --model gpt2/ --prompt "The horse" --temperature 0.8 --top-p 0.95 --num-samples 3
      echo "Once upon a time" | fastssl generate --model gpt2/ --prompt - --stop "." --json
      fastssl generate --model gpt2/ --interactive
    """

    model: Path
    """Directory of a causal language model, and its tokenizer."""
    prompt: tuple[str, ...] = ()
    """Texts to write on from; - reads one from standard input; an empty one begins a text."""
    interactive: bool = False
    """Ask for prompts, one line each, until an empty line or the end of the input."""
    stop: tuple[str, ...] = ()
    """Strings at which a text ends; they are not shown."""
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
    if flags.num_threads is not None:
        torch.set_num_threads(flags.num_threads)
    generator = TextGenerator.load(flags.model, dtype=flags.dtype, device=flags.device)
    if flags.interactive:
        return _interact(generator, flags)
    prompts = [sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt for prompt in flags.prompt]
    if len(prompts) == 1 and _is_one_text(flags) and not flags.json:
        _write(generator, prompts[0], flags)
        return 0
    begin = time.perf_counter()
    texts = generator(prompts, stop=flags.stop, **_options(flags))
    seconds = time.perf_counter() - begin
    for text in texts:
        print(json.dumps(asdict(text), ensure_ascii=False) if flags.json else _shown(text, len(texts) > 1))
    _tell_speed(sum(text.num_tokens for text in texts), seconds)
    return 0


def _is_one_text(flags: GenerateFlags) -> bool:
    return flags.num_samples == 1 and flags.num_beams == 1


def _options(flags: GenerateFlags) -> dict[str, object]:
    return {field.name: getattr(flags, field.name) for field in dataclasses.fields(GenerationConfig)}


def _write(generator: TextGenerator, prompt: str, flags: GenerateFlags) -> None:
    begin, text = time.perf_counter(), ""
    print(prompt, end="", flush=True)
    for piece in generator.write(prompt, stop=flags.stop, **_options(flags)):
        print(piece, end="", flush=True)
        text += piece
    print()
    _tell_speed(len(generator.tokenizer.encode(text)), time.perf_counter() - begin)


def _interact(generator: TextGenerator, flags: GenerateFlags) -> int:
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        prompt = sys.stdin.readline().removesuffix("\n")
        if not prompt:
            return 0
        if _is_one_text(flags):
            _write(generator, prompt, flags)
        else:
            for text in generator([prompt], stop=flags.stop, **_options(flags)):
                print(_shown(text, True))


def _shown(text: GeneratedText, several: bool) -> str:
    return f"[{text.sample + 1}] {text.prompt}{text.text}\n" if several else f"{text.prompt}{text.text}"


def _tell_speed(num_tokens: int, seconds: float) -> None:
    print(f"{num_tokens} tokens in {seconds:.2f} s: {num_tokens / seconds:,.1f} tokens/s", file=sys.stderr)
