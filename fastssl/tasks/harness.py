"""Our causal models in EleutherAI's lm-evaluation-harness: importing this module registers the model "fastssl" there.

The harness is an extra, ``pip install "fastssl[lm-eval]"``; nothing else imports this module.

    fastssl lm-eval --model fastssl --model_args pretrained=gpt2/ --tasks hellaswag,lambada_openai

or in Python, after ``import fastssl.tasks.harness``:

    lm_eval.simple_evaluate(model="fastssl", model_args={"pretrained": "gpt2/"}, tasks=["hellaswag"])

Source: Gao et al., "The Language Model Evaluation Harness", github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tqdm import tqdm

from fastssl.data.continuation import encode_continuations
from fastssl.models.likelihood import TOKENS_PER_BATCH, loglikelihoods, rolling_loglikelihoods
from fastssl.tasks.generation.text_generator import TextGenerator

_log = logging.getLogger(__name__)
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_DEVICE_UNSAID = "cuda:0"
"""What the harness's command line gives every model where no ``--device`` was said."""
_GENERATION = ("repetition_penalty", "num_beams", "length_penalty", "seed", *_SAMPLING)


@register_model("fastssl")
class FastsslLM(LM):
    """A directory of a causal language model, for the harness.

    Requests of one task that share a context, or its beginning, are read once; see `loglikelihoods`.

    Args:
        pretrained: the directory, with its tokenizer.
        dtype: "fp32", "bf16" or "int8", of the computation; the harness's "float32" and "bfloat16" too.
        tokens_per_batch: about how many tokens go through the model at once.
        max_length: longest text in tokens; None: the model's positions. Longer contexts are cut from the left.
        max_gen_toks: tokens to generate where a task does not say.
        add_bos_token: put the model's first token in front of texts; None: where its tokenizer does so.
        prefix_token_id: what stands in front of an empty context; None: the model's first token, or its end.
        batch_size, max_batch_size: given by the harness and not needed here.
        device: "cpu", "cuda", "cuda:1" and so on; None and "cuda:0", which the harness means where nothing was said: a
            GPU where there is one, and for "int8" the CPU.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        dtype: str = "fp32",
        tokens_per_batch: int = TOKENS_PER_BATCH,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        names = {"float32": "fp32", "auto": "fp32", "bfloat16": "bf16"}
        place = "auto" if device in (None, _DEVICE_UNSAID) else device
        self._generator = TextGenerator.load(pretrained, dtype=names.get(dtype, dtype), device=place)
        self._model, self._tokenizer = self._generator.model, self._generator.tokenizer
        config = self._model.config
        self._device = next(self._model.parameters()).device
        if device == _DEVICE_UNSAID and self._device.type != "cuda":
            _log.warning("computing on the %s, not on %s", self._device.type.upper(), device)
        self._directory = str(pretrained)
        self.tokens_per_batch, self.max_gen_toks = tokens_per_batch, max_gen_toks
        positions = config.max_position_embeddings
        self.max_length = positions if max_length is None else min(max_length, positions)
        self._bos = config.bos_token_id
        if prefix_token_id is not None:
            self.prefix_token_id = prefix_token_id
        elif self._bos is not None or config.end_tokens:
            self.prefix_token_id = config.end_tokens[0] if self._bos is None else self._bos
        else:
            raise ValueError(f"the model in {pretrained} has neither a first nor an end token; give prefix_token_id")
        adds_bos = self._tokenizer.adds_bos if add_bos_token is None else add_bos_token
        self._first = [self._bos] if adds_bos and self._bos is not None else []

    @property
    def tokenizer_name(self) -> str:
        """The directory, by which the harness tells tokenizers apart."""
        return self._directory

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-probability, whether it is greedy) of each continuation behind its context."""
        texts = [request.args for request in requests]
        pairs = [self._within_length(*pair) for pair in self._encode_pairs(texts)]
        with tqdm(total=len(pairs), desc="Likelihoods", disable=disable_tqdm) as bar:
            found = loglikelihoods(
                self._model, pairs, tokens_per_batch=self.tokens_per_batch, progress=lambda number: bar.update(number)
            )
        answers = [(one.log_probability, one.is_greedy) for one in found]
        for pair, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text of any length."""
        texts = [request.args[0] for request in requests]
        found = rolling_loglikelihoods(
            self._model,
            self._encode(texts),
            first_token=self.prefix_token_id,
            max_length=self.max_length,
            tokens_per_batch=self.tokens_per_batch,
        )
        for text, one in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), one.log_probability)
        return [one.log_probability for one in found]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes behind each context up to a stop string."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        written = [""] * len(requests)
        for numbers in tqdm(groups.values(), desc="Generation", disable=disable_tqdm):
            contexts, kwargs = [requests[n].args[0] for n in numbers], requests[numbers[0]].args[1]
            for number, text in zip(numbers, self._generate(contexts, kwargs), strict=True):
                written[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return written

    def _generate(self, contexts: Sequence[str], kwargs: dict[str, Any]) -> list[str]:
        options = dict(normalize_gen_kwargs(kwargs, self.max_gen_toks))
        end = self._tokenizer.decode([self.prefix_token_id, *self._model.config.end_tokens][-1:])
        stop = [text for text in handle_stop_sequences(options.pop("until"), eos=end) if text]
        new_tokens = options.pop("max_gen_toks")
        draws = options.pop("do_sample")
        if unknown := sorted(set(options) - set(_GENERATION)):
            raise ValueError(
                f"generation options {', '.join(unknown)} are not known; expected {', '.join(_GENERATION)}"
            )
        chosen = {name: value for name, value in options.items() if draws or name not in _SAMPLING}
        room = self.max_length - new_tokens
        if room < 1:
            raise ValueError(f"max_gen_toks={new_tokens} leaves no room for a context in max_length={self.max_length}")
        prompts = [(ids or [self.prefix_token_id])[-room:] for ids in self._encode(contexts)]
        return self._generator.write_on(prompts, stop=stop, max_new_tokens=new_tokens, **chosen)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_many(texts)
        # A text that spells its first token out does not get another.
        return [ids if ids[:1] == self._first else self._first + ids for ids in encoded]

    def _encode_pairs(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        pairs = []
        for (text, _), (context, continuation) in zip(texts, encode_continuations(self._tokenizer, texts), strict=True):
            if text:
                begins = self._first and context[:1] == self._first
                pairs.append((context if begins else self._first + context, continuation))
            elif continuation[0] == self.prefix_token_id:
                pairs.append((continuation[:1], continuation[1:]))
            else:
                pairs.append(([self.prefix_token_id], continuation))
        return pairs

    def _within_length(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, and the model reads at most {self.max_length}"
            )
        if len(context) > room:
            _log.warning("a context of %d tokens is cut to its last %d", len(context), room)
        return context[-room:], continuation
