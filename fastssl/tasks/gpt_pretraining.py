"""What is particular to pretraining GPT: the next token, text as it is, tokenizers that lose nothing."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fastssl.data.causal import CausalData
from fastssl.data.corpus import TextForm
from fastssl.data.held_out import hold_out, hold_out_end
from fastssl.data.shards import TokenShards
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.cost import flops_per_token, num_parameters, training_memory_bytes
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.presets import gpt_preset
from fastssl.tasks.gpt_pretraining_config import GptPretrainingConfig
from fastssl.tasks.pretraining_parts import Shards
from fastssl.training import ModelCost, evaluate
from fastssl.training.distributed import World
from fastssl.training.evaluation import Evaluation

_TOKENS_AT_ONCE = 4096
"""Of a held-out batch: small ones would spend their time on overheads."""


@dataclass(frozen=True, kw_only=True)
class GptParts:
    """Parts of a run that pretrains GPT; see `PretrainingParts` for what each is."""

    config: GptPretrainingConfig
    """What was asked for."""
    extends_vocabulary = False

    @property
    def form(self) -> TextForm:
        """The text as it is."""
        return self.config.corpus.form

    def published_model(self) -> GPTForCausalLM | None:
        """Read the model of --model, with the dropout asked for."""
        wanted = self.config.model
        if wanted.model is None:
            return None
        model = GPTForCausalLM.from_pretrained(wanted.model)
        if wanted.dropout is not None:
            model.set_dropout(wanted.dropout)
        return model

    def fit(self, model: GPTForCausalLM, tokenizer: Tokenizer) -> None:
        """Let its texts begin and end with the tokens that training puts around documents."""
        bounds, ends = tokenizer.bounds, model.config.end_tokens
        changes = {} if bounds.eos in ends else {"eos_token_id": (*ends, bounds.eos) if ends else bounds.eos}
        model.gpt.config = replace(model.config, bos_token_id=bounds.bos, **changes)

    def new_model(self, tokenizer: Tokenizer) -> GPTForCausalLM:
        """Make a model of the preset, with what was asked for besides, as long as the sequences of training."""
        bounds = tokenizer.bounds
        needed = {
            "vocab_size": tokenizer.vocab_size,
            "bos_token_id": bounds.bos,
            "eos_token_id": bounds.eos,
            "max_position_embeddings": self.config.objective.max_seq_length,
        }
        wanted = self.config.model
        return GPTForCausalLM(replace(gpt_preset(wanted.size), **(needed | wanted.changes)))

    @property
    def figures(self) -> tuple[str, ...]:
        """Of each next token, and of the text's bytes."""
        return "causal_lm_loss", "causal_lm_accuracy", "causal_lm_perplexity", "bits_per_byte"

    def learn_tokenizer(self, given: Path | None, texts: Iterable[str], say: Callable[[str], None]) -> Tokenizer:
        """Train byte-level BPE, or take characters or bytes."""
        wanted = self.config.vocabulary
        match wanted.tokenizer_type:
            case "characters":
                tokenizer = Tokenizer.train_characters(texts, vocab_size=wanted.largest)
            case "bytes":
                tokenizer = Tokenizer.of_bytes()
            case _:
                say(f"training byte-level BPE of up to {wanted.largest:,} tokens")
                tokenizer = Tokenizer.train_byte_pairs(texts, vocab_size=wanted.largest)
        say(f"the tokenizer has {tokenizer.vocab_size:,} tokens")
        return tokenizer

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Look for the tokens around a document."""
        _ = tokenizer.bounds

    def hold_out(
        self, shards: TokenShards, fraction: float, *, seed: int, say: Callable[[str], None]
    ) -> tuple[Shards, Shards] | None:
        """Hold out whole documents, or, where one is more than the share wanted, the end of the text."""
        if shards.num_documents * fraction >= 1:
            return hold_out(shards, fraction, seed=seed)
        say(f"held out to measure on: the last {fraction:.0%} of the text, as its documents are few")
        return hold_out_end(shards, fraction)

    def data(self, shards: Shards, tokenizer: Tokenizer, *, held_out: bool) -> CausalData:
        """Cut documents into sequences, at other places in each epoch of training; measure on larger batches."""
        objective, sizes = self.config.objective, self.config.batches.sizes
        if held_out:
            tokens = sizes["tokens_per_batch"] or sizes["batch_size"] * objective.max_seq_length
            sizes = {"tokens_per_batch": max(tokens, _TOKENS_AT_ONCE, objective.max_seq_length)}
        seed = self.config.training.seed
        return CausalData(shards, tokenizer.bounds, objective, seed=seed, moving_cuts=not held_out, **sizes)

    def evaluation(self, data: CausalData, shards: Shards, tokenizer: Tokenizer) -> Evaluation:
        """Measure the loss, and what it is per byte of the text."""
        return CausalEvaluation(data=data, num_bytes=count_bytes(shards, tokenizer))

    def cost(self, model: GPTForCausalLM, data: CausalData) -> ModelCost:
        """Count what a token costs, of which each is predicted."""
        batch = data.batch(0, 0)
        flops = flops_per_token(model.config, seq_length=batch.num_tokens / batch.num_sequences, predicted_fraction=1.0)
        memory = training_memory_bytes(model.config, num_tokens=batch.num_tokens, num_predicted=batch.num_tokens)
        return ModelCost(parameters=num_parameters(model), flops_per_token=flops, memory_bytes=memory)

    def next_commands(self, directory: Path, tokenizer: Tokenizer) -> list[list[str]]:
        """Write text, look at the model, go on."""
        model, length = ["--model", f"{directory}"], ["--max-seq-length", f"{self.config.objective.max_seq_length}"]
        return [
            ["fastssl", "generate", *model, "--prompt", "The beginning of a text"],
            ["fastssl", "info", f"{directory}"],
            ["fastssl", "pretrain", *model, *length, "--train-files", "MORE.txt", "--output-dir", f"{directory}-more"],
        ]


@dataclass(frozen=True, kw_only=True)
class CausalEvaluation:
    """Held-out loss, accuracy, perplexity, and bits per byte, which compares models with different tokenizers.

    Bits per byte is the loss in nats summed over all predictions, the end of each document among them, divided by
    ln 2 and by the bytes of the text in UTF-8, as the tokenizer gives it back. They flatter a tokenizer that does not
    know all characters, or that folds case or accents: what these were need not be predicted.
    """

    data: CausalData
    """The held-out batches."""
    num_bytes: int
    """Of the text that they hold, in UTF-8."""

    def __call__(
        self, model: nn.Module, *, dtype: torch.dtype, world: World, cancelled: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Return the figures, the same in all processes; None once it is cancelled."""
        found = evaluate(model, self.data, dtype=dtype, world=world, cancelled=cancelled)
        if found is None:
            return None
        nats = found["eval_causal_lm_loss"] * self.data.plan(0).num_tokens
        return {**found, "eval_bits_per_byte": nats / (math.log(2) * self.num_bytes)}


def count_bytes(shards: Shards, tokenizer: Tokenizer) -> int:
    """Return the bytes of a corpus's text in UTF-8, from its tokens; an unknown character counts as one.

    What a tokenizer puts in front of every text, as a space by GPT-2's ``add_prefix_space``, does not count.
    """
    unknown, count = tokenizer.token_to_id(tokenizer.special_names.get("unk", "")), 0
    letter = tokenizer.decode(tokenizer.encode("a"))
    put_in_front = letter[:-1] if letter.endswith("a") else ""
    for part in shards.parts:
        bounds = part.sentence_offsets[part.document_offsets]
        for begin, end in itertools.pairwise(bounds):
            tokens = part.tokens[begin:end].tolist()
            known = [token for token in tokens if token != unknown]
            text = tokenizer.decode(known).removeprefix(put_in_front)
            count += len(text.encode()) + len(tokens) - len(known)
    return count
