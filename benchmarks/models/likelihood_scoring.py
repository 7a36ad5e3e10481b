"""Four choices behind a shared prompt of 400 tokens, as harnesses ask for them, beside Hugging Face's model."""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import Limit, LinearShape, forward_sgemm_of
from benchmarks.models.generation import endless
from benchmarks.models.gpt_pretraining_step import block_shapes
from benchmarks.models.training_step import saved
from benchmarks.own_process import OwnProcess
from benchmarks.peers import hugging_face_gpt, language_model_harness
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch, timed
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.models.likelihood import loglikelihoods

Requests = list[tuple[list[int], list[int]]]

PROMPT, CHOICES, LONGEST_CHOICE = 400, 4, 6
BATCH_SIZE = 8
"""Of the peers, in rows: two questions."""
TOLERANCE = 2e-3
"""Of a log-probability near -60, a sum over six tokens."""
EFFORT = Effort(seconds=40.0, min_rounds=3, max_rounds=8, warmup_rounds=1)
QUICK_EFFORT = Effort(seconds=3.0, min_rounds=3, max_rounds=10, warmup_rounds=1)
REQUESTS_FILE = "requests.pt"


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return questions with prompts of their own, and questions behind the same demonstrations."""
    if run.quick:
        return {"gpt2-nano, 4 choices": partial(comparison, "gpt2-nano", 2, 0, QUICK_EFFORT, prompt=200)}
    return {
        "gpt2, 4 questions of 400 tokens, 4 choices each": partial(comparison, "gpt2", 4, 0, EFFORT),
        "gpt2, 4 questions behind the same 350 tokens": partial(comparison, "gpt2", 4, 350, EFFORT),
    }


def comparison(preset_name: str, questions: int, shared: int, effort: Effort, *, prompt: int = PROMPT) -> Comparison:
    """Compare the time to score all choices, each contender in a process of its own.

    Args:
        preset_name: of the model, with random weights.
        questions: how many prompts.
        shared: tokens that all prompts begin with.
        effort: how long to measure.
        prompt: tokens of each.
    """
    model = endless(preset_name)
    requests = random_requests(model.config.vocab_size, questions, shared, prompt)
    builds = {OURS: scoring_of_fastssl, "HF padded": scoring_of_hugging_face}
    if importlib.util.find_spec("lm_eval") is not None:
        builds["lm-eval HF"] = scoring_of_harness
    with saved(model) as directory:
        Tokenizer.of_bytes().save(directory)
        torch.save(requests, directory / REQUESTS_FILE)
        contenders = {name: OwnProcess(partial(build, directory)) for name, build in builds.items()}

    def check() -> None:
        with saved(model) as directory:
            Tokenizer.of_bytes().save(directory)
            theirs = hugging_face_gpt.loglikelihoods(hugging_face_gpt.load(directory).eval(), requests, BATCH_SIZE)
            for name, answers in {
                OURS: [(one.log_probability, one.is_greedy) for one in loglikelihoods(model, requests)],
                **({"lm-eval HF": harness(directory)(requests)} if "lm-eval HF" in builds else {}),
            }.items():
                for ours, other in zip(answers, theirs, strict=True):
                    assert abs(ours[0] - other[0]) <= TOLERANCE, f"{name}: {ours[0]}, HF padded {other[0]}"
                    assert ours[1] == other[1], f"{name} takes another token to be the likeliest"

    return Comparison(
        contenders=contenders,
        check=check,
        work=useful_flops(model.config, requests, shared),
        unit="FLOP",
        limit=products_of(model.config, requests, shared),
        effort=effort,
    )


def random_requests(vocab_size: int, questions: int, shared: int, prompt: int) -> Requests:
    """Return four choices of two to six tokens behind each prompt."""
    generator = torch.Generator().manual_seed(2)

    def tokens(number: int) -> list[int]:
        return torch.randint(vocab_size, (number,), generator=generator).tolist()

    head = tokens(shared)
    requests = []
    for _ in range(questions):
        context = head + tokens(prompt - shared)
        requests += [(context, tokens(2 + choice % (LONGEST_CHOICE - 1))) for choice in range(CHOICES)]
    return requests


def scoring_of_fastssl(directory: Path) -> Launch:
    """Return our scoring of a directory's requests."""
    model, requests = GPTForCausalLM.from_pretrained(directory).eval(), torch.load(directory / REQUESTS_FILE)
    return timed(lambda: loglikelihoods(model, requests))


def scoring_of_hugging_face(directory: Path) -> Launch:
    """Return Hugging Face's model on padded batches."""
    model, requests = hugging_face_gpt.load(directory).eval(), torch.load(directory / REQUESTS_FILE)
    return timed(lambda: hugging_face_gpt.loglikelihoods(model, requests, BATCH_SIZE))


def scoring_of_harness(directory: Path) -> Launch:
    """Return lm-eval's own model for Hugging Face's directories."""
    score, requests = harness(directory), torch.load(directory / REQUESTS_FILE)
    return timed(lambda: score(requests))


def harness(directory: Path) -> Callable[[Requests], list[tuple[float, bool]]]:
    """Return lm-eval's scoring with a directory's model."""
    return language_model_harness.scorer(directory, BATCH_SIZE)


def read_tokens(requests: Requests, shared: int) -> int:
    """Return how many tokens must be read at least: what is shared once, what follows once for each."""
    contexts = {tuple(context) for context, _ in requests}
    return (
        shared
        + sum(len(context) - shared for context in contexts)
        + sum(len(continuation) - 1 for _, continuation in requests)
    )


def useful_flops(config: GPTConfig, requests: Requests, shared: int) -> float:
    """Return the FLOPs of the linear maps on those tokens, of the scores that are asked for, and of attention."""
    longest = max(len(context) for context, _ in requests)
    heads = config.num_attention_heads * config.head_width
    attention = 4 * config.num_hidden_layers * heads * read_tokens(requests, shared) * longest / 2
    return sum(shape.forward_flops for shape in shapes(config, requests, shared)) + attention


def products_of(config: GPTConfig, requests: Requests, shared: int) -> Limit:
    """Return the products of one scoring."""
    return forward_sgemm_of(shapes(config, requests, shared))


def shapes(config: GPTConfig, requests: Requests, shared: int) -> list[LinearShape]:
    """Return the linear maps of one scoring."""
    contexts = {tuple(context) for context, _ in requests}
    scored = len(contexts) + sum(len(continuation) - 1 for _, continuation in requests)
    head = LinearShape(rows=scored, inputs=config.hidden_size, outputs=config.vocab_size)
    return [*block_shapes(config, read_tokens(requests, shared)), head]
