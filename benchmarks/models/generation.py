"""Text written by GPT-2, greedily and with a cache, and the reading of a long prompt, beside Hugging Face."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import Limit, LinearShape, forward_sgemm_of, read_of
from benchmarks.models.gpt_pretraining_step import block_shapes
from benchmarks.models.training_step import saved
from benchmarks.own_process import OwnProcess
from benchmarks.peers import hugging_face_gpt
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch, timed
from fastssl.data.batch import PackedBatch
from fastssl.models.generation.generate import stream
from fastssl.models.generation.generated import GenerationConfig
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.models.presets import preset
from fastssl.nn.quantized import QuantizedLinear, quantize
from tests.oracle import assert_within_budget

PEER = "HF generate"
EFFORT = Effort(seconds=30.0, min_rounds=4, max_rounds=10, warmup_rounds=1)
QUICK_EFFORT = Effort(seconds=3.0, min_rounds=3, max_rounds=10, warmup_rounds=1)
PROMPT, NEW_TOKENS, LONG_PROMPT = 128, 128, 1024
READ_BYTES = 1 << 28
"""What one launch of the limit reads: more than the caches hold."""
LEAST_COSINE = 0.99
"""Of the scores in 8 bits with those in fp32."""
PROMPTS_FILE = "prompts.pt"


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return decoding in fp32 and in 8 bits, one text and eight at a time, and a prompt of 1,024 tokens."""
    if run.quick:
        return {"gpt2-nano, 1 text": partial(decoding, "gpt2-nano", 1, 64, QUICK_EFFORT)}
    return {
        f"gpt2{', int8' if int8 else ''}, {texts} text{'s' if texts > 1 else ''} of 128 + 128 tokens": partial(
            decoding, "gpt2", texts, NEW_TOKENS, EFFORT, int8=int8
        )
        for int8 in (False, True)
        for texts in (1, 8)
    } | {f"gpt2, a prompt of {LONG_PROMPT:,} tokens": partial(prefill, "gpt2", LONG_PROMPT, EFFORT)}


def decoding(preset_name: str, num_texts: int, new_tokens: int, effort: Effort, *, int8: bool = False) -> Comparison:
    """Compare the time from the first new token to the last, which is what the memory's speed bounds.

    Both get the same random weights of the preset's shape, each in a process of its own. What must be read for a token
    is every weight once (of the embeddings the head's alone), and the keys and values of all texts so far.

    Args:
        preset_name: of the model.
        num_texts: B, written at a time.
        new_tokens: of each text, after a prompt of 128.
        effort: how long to measure.
        int8: ours has its linear maps and its head in 8 bits; the peer stays in fp32.
    """
    model, prompts = endless(preset_name), random_prompts(preset_name, num_texts, PROMPT)
    with saved(model) as directory:
        torch.save(prompts, directory / PROMPTS_FILE)
        contenders = {
            OURS: OwnProcess(partial(decoding_of_fastssl, directory, new_tokens, int8)),
            PEER: OwnProcess(partial(decoding_of_hugging_face, directory, new_tokens)),
        }

    def check() -> None:
        with saved(model) as directory:
            peer = hugging_face_gpt.load(directory).eval()
        if int8:
            assert_near(quantize(model), peer, prompts)
        else:
            theirs = hugging_face_gpt.greedy(peer, prompts, new_tokens)[0].tolist()
            ours = [text.tokens for text in model.generate(prompts.tolist(), max_new_tokens=new_tokens)]
            assert ours == theirs, f"fastssl writes {ours}, {PEER} {theirs}"

    work = decoded_bytes(quantize(model) if int8 else model, num_texts, PROMPT, new_tokens)
    return Comparison(contenders=contenders, check=check, work=work, unit="B", limit=read_of(READ_BYTES), effort=effort)


def prefill(preset_name: str, length: int, effort: Effort) -> Comparison:
    """Compare how long it takes to read a prompt into a cache and to score what follows.

    Args:
        preset_name: of the model.
        length: T, tokens of the prompt.
        effort: how long to measure.
    """
    model, prompts = endless(preset_name), random_prompts(preset_name, 1, length)
    with saved(model) as directory:
        torch.save(prompts, directory / PROMPTS_FILE)
        contenders = {
            name: OwnProcess(partial(prefill_by, build, directory))
            for name, build in {OURS: reader_of_fastssl, "HF": reader_of_hugging_face}.items()
        }

    def check() -> None:
        with saved(model) as directory:
            same, exact = (
                hugging_face_gpt.next_token_logits(hugging_face_gpt.load(directory, dtype).eval(), prompts)
                for dtype in (torch.float32, torch.float64)
            )
        assert_within_budget("scores", next_token_logits(model, prompts), same, exact)

    return Comparison(
        contenders=contenders,
        check=check,
        work=prefill_flops(model.config, length),
        unit="FLOP",
        limit=prefill_limit(model.config, length),
        effort=effort,
    )


def endless(preset_name: str) -> GPTForCausalLM:
    """Return a model of a preset's shape with random weights, in whose texts no token is the last."""
    torch.manual_seed(0)
    return GPTForCausalLM(replace(preset(preset_name), eos_token_id=None)).eval()


def random_prompts(preset_name: str, count: int, length: int) -> Tensor:
    """Return (count, length) tokens."""
    return torch.randint(preset(preset_name).vocab_size, (count, length), generator=torch.Generator().manual_seed(1))


def decoding_of_fastssl(directory: Path, new_tokens: int, int8: bool) -> Launch:
    """Return our decoding of a directory's prompts; its time begins with the first new token."""
    model = GPTForCausalLM.from_pretrained(directory)
    model = quantize(model) if int8 else model
    prompts = torch.load(directory / PROMPTS_FILE).tolist()
    config = GenerationConfig(max_new_tokens=new_tokens)

    def launch() -> float:
        readings = [time.perf_counter() for _ in stream(model, prompts, config)]
        return readings[-1] - readings[0]

    return launch


def decoding_of_hugging_face(directory: Path, new_tokens: int) -> Launch:
    """Return Hugging Face's decoding of a directory's prompts; its time begins with the first new token."""
    model, prompts = hugging_face_gpt.load(directory).eval(), torch.load(directory / PROMPTS_FILE)

    def launch() -> float:
        _, readings = hugging_face_gpt.greedy(model, prompts, new_tokens)
        return readings[-1] - readings[0]

    return launch


def prefill_by(reader: Callable[[Path], Callable[[Tensor], Tensor]], directory: Path) -> Launch:
    """Return a reading of a directory's prompts."""
    read, prompts = reader(directory), torch.load(directory / PROMPTS_FILE)
    return timed(lambda: read(prompts))


def reader_of_fastssl(directory: Path) -> Callable[[Tensor], Tensor]:
    """Return our model as a function from prompts to scores."""
    return partial(next_token_logits, GPTForCausalLM.from_pretrained(directory))


def reader_of_hugging_face(directory: Path) -> Callable[[Tensor], Tensor]:
    """Return Hugging Face's model as a function from prompts to scores."""
    return partial(hugging_face_gpt.next_token_logits, hugging_face_gpt.load(directory).eval())


@torch.inference_mode()
def next_token_logits(model: GPTForCausalLM, prompts: Tensor) -> Tensor:
    """Return the scores (B, V) of what follows prompts (B, T), which are read into a cache."""
    cache = model.new_cache(*prompts.shape)
    return model.next_token_logits(PackedBatch.from_sequences(prompts.tolist()), cache)


def assert_near(model: GPTForCausalLM, peer: torch.nn.Module, prompts: Tensor) -> None:
    """Raise AssertionError unless the scores of a model point where those of the peer in fp32 do."""
    ours, theirs = next_token_logits(model, prompts), hugging_face_gpt.next_token_logits(peer, prompts)
    cosine = float(torch.cosine_similarity(ours, theirs).min())
    assert cosine >= LEAST_COSINE, f"a cosine of {cosine:.3f} with the scores in fp32"


def decoded_bytes(model: GPTForCausalLM, num_texts: int, prompt_length: int, new_tokens: int) -> float:
    """Return the bytes that must be read between the first new token and the last."""
    config, steps = model.config, new_tokens - 1
    row_bytes = 2 * 4 * config.num_hidden_layers * config.key_value_heads * config.head_width
    cached = num_texts * row_bytes * sum(range(prompt_length, prompt_length + steps))
    return steps * weight_bytes(model) + cached


def weight_bytes(model: GPTForCausalLM) -> int:
    """Return the bytes of all that a token's way through the model reads: blocks, last norm, head."""
    head = model.gpt.word if model.head is None else model.head
    parts = [model.gpt.blocks, model.gpt.final_norm, head]
    quantized = [part for whole in parts for part in whole.modules() if isinstance(part, QuantizedLinear)]
    tensors = [tensor for part in parts for tensor in part.parameters()]
    tensors += [tensor for part in quantized for tensor in part.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


def prefill_flops(config: GPTConfig, length: int) -> float:
    """Return the FLOPs that one prompt needs: of the last block, keys and values of all and the rest of the last."""
    heads = config.num_attention_heads * config.head_width
    whole = config.num_hidden_layers - 1
    attention = 4 * heads * (whole * length * (length + 1) / 2 + length)
    return sum(shape.forward_flops for shape in prefill_shapes(config, length)) + attention


def prefill_limit(config: GPTConfig, length: int) -> Limit:
    """Return the products of a prompt."""
    return forward_sgemm_of(prefill_shapes(config, length))


def prefill_shapes(config: GPTConfig, length: int) -> list[LinearShape]:
    """Return the linear maps of a prompt."""
    width, one = config.hidden_size, replace(config, num_hidden_layers=1)
    return [
        *block_shapes(replace(config, num_hidden_layers=config.num_hidden_layers - 1), length),
        LinearShape(rows=length, inputs=width, outputs=2 * width),
        LinearShape(rows=1, inputs=width, outputs=width),
        *block_shapes(one, 1)[1:],
        LinearShape(rows=1, inputs=width, outputs=config.vocab_size),
    ]
