"""Pretraining, assembled: text files -> tokenizer -> shards -> batches -> model -> a Hugging Face directory."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from fastssl.data.corpus import Corpus
from fastssl.data.dataset import PretrainingData
from fastssl.data.encode import encode_files
from fastssl.data.held_out import ShardsView, hold_out
from fastssl.data.shard_format import INDEX_NAME, ShardError
from fastssl.data.shards import TokenShards
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertForMaskedLM, BertForPreTraining
from fastssl.models.cost import flops_per_token, num_parameters, training_memory_bytes
from fastssl.models.presets import preset
from fastssl.tasks.pretraining_config import CorpusConfig, PretrainingConfig
from fastssl.training import ModelCost, Trainer, TrainingResult
from fastssl.training.distributed import World
from fastssl.training.run_directory import check_output_directory

BertForPretraining = BertForMaskedLM | BertForPreTraining
_TOKENIZER_TRAINING_CHARACTERS = 200_000_000


def _say_nothing(_: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class PretrainingRun:
    """A run that is ready to start; `prepare_pretraining` makes it."""

    config: PretrainingConfig
    """What was asked for."""
    tokenizer: Tokenizer
    """Of the shards and the model."""
    model: BertForPretraining
    """With its first weights."""
    train_data: PretrainingData
    """Batches to train on."""
    eval_data: PretrainingData | None
    """Batches to measure on."""
    identity: dict[str, object]
    """What tells this run's data from other data."""
    is_main: bool
    """Whether this process writes and speaks; of several that train together one does."""

    @cached_property
    def trainer(self) -> Trainer:
        """Trains the model on the data; it measures at least as often as it saves."""
        training = self.config.training
        return Trainer(
            self.model,
            replace(training, eval_steps=training.eval_steps or training.save_steps),
            self.train_data,
            eval_data=self.eval_data,
            cost=model_cost(self.model, self.train_data),
            data_identity=self.identity,
            write_companions=self._save_tokenizer,
        )

    def run(self) -> TrainingResult:
        """Train, and write model and tokenizer to the output directory unless a signal stopped the run."""
        result = self.trainer.train()
        if result.exit_code == 0 and self.is_main:
            self.model.save_pretrained(self.config.training.output_dir)
            self._save_tokenizer(Path(self.config.training.output_dir))
        return result

    def _save_tokenizer(self, directory: Path) -> None:
        self.tokenizer.save(directory, model_max_length=self.model.config.max_position_embeddings)


def prepare_pretraining(
    config: PretrainingConfig, *, say: Callable[[str], None] = _say_nothing, progress: bool = False
) -> PretrainingRun:
    """Encode the text, make the model, and return the run, not yet started.

    Shards and tokenizer are kept in `data/` of the output directory, where a resumed run finds them again.

    Args:
        config: what to do.
        say: takes remarks on the way.
        progress: show bars on standard error.

    Raises:
        ValueError: for settings that do not fit each other, the text, or the model.
        RunDirectoryError: when the output directory holds checkpoints and the run is not to be resumed.
    """
    output_dir = Path(config.training.output_dir)
    check_output_directory(config.training)
    torch.manual_seed(config.training.seed)
    model = _published_model(config)
    world = World.join()
    if not world.is_main:
        world.barrier()  # the first process has written tokenizer and shards by then; the others find them complete
        say, progress = _say_nothing, False
    tokenizer = _tokenizer(config, model, output_dir / "data", say)
    model = _fit_to(tokenizer, model) if model is not None else _new_model(config, tokenizer)
    _check_lengths(config, model)
    shards = _shards(config, tokenizer, output_dir / "data", say, progress)
    if world.is_main:
        world.barrier()
    say(f"{shards.train.num_tokens:,} tokens of {shards.train.num_documents:,} documents to train on")
    return PretrainingRun(
        config=config,
        tokenizer=tokenizer,
        model=model,
        train_data=_data(config, tokenizer, shards.train, config.training.seed),
        eval_data=shards.held_out and _data(config, tokenizer, shards.held_out, config.training.seed + 1),
        identity=_identity(config, shards),
        is_main=world.is_main,
    )


def model_cost(model: BertForPretraining, data: PretrainingData) -> ModelCost:
    """Return the numbers of a model on data, measured on the data's first batch."""
    batch = data.batch(0, 0)
    mean_length = batch.num_tokens / batch.num_sequences
    masked_fraction = batch.target_counts()["masked_lm"] / batch.num_tokens
    return ModelCost(
        parameters=num_parameters(model),
        flops_per_token=flops_per_token(model.config, seq_length=mean_length, masked_fraction=masked_fraction),
        memory_bytes=training_memory_bytes(
            model.config, num_tokens=batch.num_tokens, num_masked=batch.target_counts()["masked_lm"]
        ),
    )


def _model_class(config: PretrainingConfig) -> type[BertForPretraining]:
    return BertForMaskedLM if config.objective.sentence_objective == "none" else BertForPreTraining


def _published_model(config: PretrainingConfig) -> BertForPretraining | None:
    if config.model.model is None:
        return None
    model = _model_class(config).from_pretrained(config.model.model)
    if config.model.dropout is not None:
        model.set_dropout(config.model.dropout)
    return model


def _new_model(config: PretrainingConfig, tokenizer: Tokenizer) -> BertForPretraining:
    wanted = config.model
    changes: dict[str, object] = {
        "vocab_size": tokenizer.vocab_size,
        "pad_token_id": tokenizer.special.pad,
        "norm_position": wanted.norm_position,
    }
    if wanted.dropout is not None:
        changes |= {"hidden_dropout_prob": wanted.dropout, "attention_probs_dropout_prob": wanted.dropout}
    for name in ("initializer_range", "max_position_embeddings"):
        if getattr(wanted, name) is not None:
            changes[name] = getattr(wanted, name)
    return _model_class(config)(replace(preset(wanted.preset), **changes))


def _fit_to(tokenizer: Tokenizer, model: BertForPretraining) -> BertForPretraining:
    """Grow a published model's vocabulary to an extended tokenizer; refuse one that does not belong to it."""
    if tokenizer.vocab_size > model.config.vocab_size:
        model.resize_token_embeddings(tokenizer.vocab_size)
    return model


def _check_lengths(config: PretrainingConfig, model: BertForPretraining) -> None:
    positions, length = model.config.max_position_embeddings, config.objective.max_seq_length
    if length > positions:
        raise ValueError(
            f"max_seq_length={length} is above the {positions} positions of the model; lower it, or give a new model "
            f"more of them (--max-position-embeddings {length})"
        )


def _tokenizer(
    config: PretrainingConfig, model: BertForPretraining | None, data_dir: Path, say: Callable[[str], None]
) -> Tokenizer:
    """Return the tokenizer asked for: given, the published model's (extended or not), kept from before, or trained."""
    wanted, corpus = config.vocabulary, config.corpus
    given = wanted.tokenizer or config.model.model or (corpus.train_files[0] if _is_encoded(corpus) else None)
    kept = data_dir / "train"
    if config.training.resume_from_checkpoint is not None and (kept / "tokenizer.json").is_file():
        given = kept
    elif given is None or wanted.new_tokens:
        return _learnt_tokenizer(config, given, say)
    tokenizer = Tokenizer.load(given)
    if model is not None and not wanted.new_tokens and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer of {given} has {tokenizer.vocab_size} tokens, but the model of {config.model.model} has "
            f"vocab_size={model.config.vocab_size}; give the model's own tokenizer, or extend it with --new-tokens"
        )
    return tokenizer


def _learnt_tokenizer(config: PretrainingConfig, given: Path | None, say: Callable[[str], None]) -> Tokenizer:
    """Train a tokenizer on the training files, or extend the given one."""
    wanted = config.vocabulary
    texts = Corpus(
        paths=config.corpus.train_files,
        text_field=config.corpus.text_field,
        encoding_errors=config.corpus.encoding_errors,
        max_characters=_TOKENIZER_TRAINING_CHARACTERS,
    )
    if given is not None:
        say(f"extending the vocabulary of {given} by up to {wanted.new_tokens} tokens")
        return Tokenizer.load(given).extend(texts, wanted.new_tokens)
    say(f"training a tokenizer of up to {wanted.vocab_size:,} tokens")
    return Tokenizer.train_wordpiece(texts, vocab_size=wanted.vocab_size, lowercase=not wanted.cased)


def _is_encoded(corpus: CorpusConfig) -> bool:
    return len(corpus.train_files) == 1 and (corpus.train_files[0] / INDEX_NAME).is_file()


@dataclass(frozen=True, kw_only=True)
class _Shards:
    corpus: TokenShards
    train: TokenShards | ShardsView
    held_out: TokenShards | ShardsView | None


def _shards(
    config: PretrainingConfig, tokenizer: Tokenizer, data_dir: Path, say: Callable[[str], None], progress: bool
) -> _Shards:
    """Return the encoded corpus, checked to the last byte, and its split."""
    corpus = config.corpus
    if _is_encoded(corpus):
        shards = TokenShards.open(corpus.train_files[0], tokenizer=tokenizer)
    else:
        shards = _encode(config, corpus.train_files, tokenizer, data_dir / "train", progress)
    shards.verify()
    if corpus.eval_files:
        held_out = _encode(config, corpus.eval_files, tokenizer, data_dir / "eval", progress)
        held_out.verify()
        return _Shards(corpus=shards, train=shards, held_out=held_out)
    if corpus.eval_fraction > 0 and shards.num_documents > 1:
        train, rest = hold_out(shards, corpus.eval_fraction, seed=config.training.seed)
        return _Shards(corpus=shards, train=train, held_out=rest)
    if corpus.eval_fraction > 0:
        say("the corpus is one document: nothing is held out, nothing is measured; give --eval-files to measure")
    return _Shards(corpus=shards, train=shards, held_out=None)


def _data(
    config: PretrainingConfig, tokenizer: Tokenizer, shards: TokenShards | ShardsView, seed: int
) -> PretrainingData:
    return PretrainingData(shards, tokenizer.special, config.objective, seed=seed, **config.batches.sizes)


def _encode(
    config: PretrainingConfig, files: tuple[Path, ...], tokenizer: Tokenizer, directory: Path, progress: bool
) -> TokenShards:
    options = {
        "text_field": config.corpus.text_field,
        "encoding_errors": config.corpus.encoding_errors,
        "progress": progress,
    }
    try:
        return encode_files(files, tokenizer, directory, **options)
    except ShardError:
        if config.training.resume_from_checkpoint is not None:
            raise
        # Left by a run of other settings that never came to a checkpoint: nothing of worth is lost.
        return encode_files(files, tokenizer, directory, overwrite=True, **options)


def _identity(config: PretrainingConfig, shards: _Shards) -> dict[str, object]:
    return {
        "corpus": shards.corpus.fingerprint,
        "eval_fraction": None if config.corpus.eval_files else config.corpus.eval_fraction,
        "vocab_size": shards.corpus.vocab_size,
        "start_from": str(config.model.model or config.model.preset),
        **asdict(config.objective),
        **config.batches.sizes,
    }
