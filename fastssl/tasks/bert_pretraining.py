"""What is particular to pretraining BERT: masked tokens, sentence pairs, a WordPiece vocabulary that may grow."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fastssl.data.corpus import SENTENCES
from fastssl.data.dataset import PretrainingData
from fastssl.data.held_out import hold_out
from fastssl.data.shards import TokenShards
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertForMaskedLM, BertForPreTraining
from fastssl.models.cost import flops_per_token, num_parameters, training_memory_bytes
from fastssl.models.presets import bert_preset
from fastssl.tasks.pretraining_config import PretrainingConfig
from fastssl.tasks.pretraining_parts import Shards
from fastssl.training import ModelCost, evaluate
from fastssl.training.evaluation import Evaluation

BertForPretraining = BertForMaskedLM | BertForPreTraining
_SENTENCE_FIGURES = ("sentence_loss", "sentence_accuracy")


@dataclass(frozen=True, kw_only=True)
class BertParts:
    """Parts of a run that pretrains BERT; see `PretrainingParts` for what each is."""

    config: PretrainingConfig
    """What was asked for."""
    form = SENTENCES

    @property
    def extends_vocabulary(self) -> bool:
        """Whether new tokens were asked for."""
        return self.config.vocabulary.new_tokens > 0

    @property
    def model_class(self) -> type[BertForPretraining]:
        """With a head for sentence pairs where there is an objective for them."""
        return BertForMaskedLM if self.config.objective.sentence_objective == "none" else BertForPreTraining

    def published_model(self) -> BertForPretraining | None:
        """Read the model of --model, with the dropout asked for."""
        wanted = self.config.model
        if wanted.model is None:
            return None
        model = self.model_class.from_pretrained(wanted.model)
        if wanted.dropout is not None:
            model.set_dropout(wanted.dropout)
        return model

    def fit(self, model: BertForPretraining, tokenizer: Tokenizer) -> None:
        """Grow its vocabulary to an extended tokenizer."""
        if tokenizer.vocab_size > model.config.vocab_size:
            model.resize_token_embeddings(tokenizer.vocab_size)

    def new_model(self, tokenizer: Tokenizer) -> BertForPretraining:
        """Make a model of the preset, with what was asked for besides."""
        wanted = self.config.model
        needed = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.special.pad}
        return self.model_class(replace(bert_preset(wanted.size), **(needed | wanted.changes)))

    @property
    def figures(self) -> tuple[str, ...]:
        """Of masked tokens, and of the judgement of segment pairs where there is one."""
        masked = ("masked_lm_loss", "masked_lm_accuracy", "masked_lm_perplexity")
        return masked if self.config.objective.sentence_objective == "none" else (*masked, *_SENTENCE_FIGURES)

    def learn_tokenizer(self, given: Path | None, texts: Iterable[str], say: Callable[[str], None]) -> Tokenizer:
        """Train WordPiece, or append the tokens that the text would use most."""
        wanted = self.config.vocabulary
        if given is not None:
            say(f"extending the vocabulary of {given} by up to {wanted.new_tokens} tokens")
            return Tokenizer.load(given).extend(texts, wanted.new_tokens)
        say(f"training a tokenizer of up to {wanted.largest:,} tokens")
        return Tokenizer.train_wordpiece(texts, vocab_size=wanted.largest, lowercase=not wanted.cased)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Look for the five special tokens."""
        _ = tokenizer.special

    def hold_out(
        self, shards: TokenShards, fraction: float, *, seed: int, say: Callable[[str], None]
    ) -> tuple[Shards, Shards] | None:
        """Hold out whole documents, two at least where half of the second segments come from another one."""
        least = 2 if self.config.objective.sentence_objective == "nsp" else 1
        if shards.num_documents >= 2 * least:
            return hold_out(shards, fraction, seed=seed, least_documents=least)
        documents = "one document" if shards.num_documents == 1 else f"{shards.num_documents} documents"
        say(f"the corpus is {documents}: nothing is held out, nothing is measured; give --eval-files to measure")
        return None

    def data(self, shards: Shards, tokenizer: Tokenizer, *, held_out: bool) -> PretrainingData:
        """Mask tokens; held-out text by a seed of its own."""
        seed = self.config.training.seed + held_out
        return PretrainingData(shards, tokenizer.special, self.config.objective, seed=seed, **self.config.batches.sizes)

    def evaluation(self, data: PretrainingData, shards: Shards, tokenizer: Tokenizer) -> Evaluation:
        """Measure the loss of each kind."""
        return partial(evaluate, source=data)

    def cost(self, model: BertForPretraining, data: PretrainingData) -> ModelCost:
        """Count what a masked token costs, by the share of them."""
        batch = data.batch(0, 0)
        num_masked = batch.target_counts()["masked_lm"]
        flops = flops_per_token(
            model.config,
            seq_length=batch.num_tokens / batch.num_sequences,
            predicted_fraction=num_masked / batch.num_tokens,
        )
        memory = training_memory_bytes(model.config, num_tokens=batch.num_tokens, num_predicted=num_masked)
        return ModelCost(parameters=num_parameters(model), flops_per_token=flops, memory_bytes=memory)

    def next_commands(self, directory: Path, tokenizer: Tokenizer) -> list[list[str]]:
        """Fill masks, look at the model, go on."""
        model, masked = ["--model", f"{directory}"], f"A text with a {tokenizer.special_names['mask']} in it."
        return [
            ["fastssl", "fill-mask", *model, masked],
            ["fastssl", "info", f"{directory}"],
            ["fastssl", "pretrain", *model, "--train-files", "MORE.txt", "--output-dir", f"{directory}-more"],
        ]
