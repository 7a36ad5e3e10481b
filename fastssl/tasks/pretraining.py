"""Pretraining, assembled: text files -> tokenizer -> shards -> batches -> model -> a Hugging Face directory."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from fastssl.data.corpus import Corpus, check_file
from fastssl.data.encode import changed_sources, encode_files
from fastssl.data.packing import check_batch_size
from fastssl.data.shard_format import INDEX_NAME, ShardError, ShardIndex
from fastssl.data.shards import TokenShards
from fastssl.data.tokenizer import Tokenizer
from fastssl.device import choose_device
from fastssl.ops.tile_search import expect_search_to_work
from fastssl.tasks.bert_pretraining import BertParts
from fastssl.tasks.gpt_pretraining import GptParts
from fastssl.tasks.gpt_pretraining_config import GptPretrainingConfig
from fastssl.tasks.pretraining_config import CorpusConfig, PretrainingConfig
from fastssl.tasks.pretraining_parts import PretrainingParts, Shards
from fastssl.tasks.task_parts import check_metric
from fastssl.training import BatchSource, Trainer, TrainingResult
from fastssl.training.checkpoint import list_checkpoints
from fastssl.training.distributed import World
from fastssl.training.graphs import expect_graphs_to_work
from fastssl.training.run_directory import RunDirectoryError, check_output_directory, claim_directory

AnyPretrainingConfig = PretrainingConfig | GptPretrainingConfig
_TOKENIZER_TRAINING_CHARACTERS = 200_000_000


def _say_nothing(_: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class PretrainingRun:
    """A run that is ready to start; `prepare_pretraining` makes it."""

    config: AnyPretrainingConfig
    """What was asked for."""
    parts: PretrainingParts
    """What is particular to the architecture."""
    tokenizer: Tokenizer
    """Of the shards and the model."""
    model: nn.Module
    """With its first weights."""
    train_data: BatchSource
    """Batches to train on."""
    eval_data: BatchSource | None
    """Batches to measure on."""
    held_out: Shards | None
    """The text that they are drawn from."""
    identity: dict[str, object]
    """What tells this run's data from other data."""
    is_main: bool
    """Whether this process writes and speaks; of several that train together one does."""

    @cached_property
    def trainer(self) -> Trainer:
        """Trains the model on the data; it measures at least as often as it saves."""
        training = self.config.training
        if training.eval_strategy != "epoch":
            training = replace(training, eval_steps=training.eval_steps or training.save_steps)
        check_metric(training.metric_for_best_model, ("loss", *self.parts.figures))
        return Trainer(
            self.model,
            training,
            self.train_data,
            evaluation=self.eval_data and self.parts.evaluation(self.eval_data, self.held_out, self.tokenizer),
            cost=self.parts.cost(self.model, self.train_data),
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
    config: AnyPretrainingConfig, *, say: Callable[[str], None] = _say_nothing, progress: bool = False
) -> PretrainingRun:
    """Encode the text, make the model, and return the run, not yet started.

    Shards and tokenizer are kept in `data/` of the output directory, where a resumed run finds them again.

    Args:
        config: what to do.
        say: takes remarks on the way.
        progress: show bars on standard error.

    Raises:
        ValueError: for settings that do not fit each other, the text, or the model.
        RunDirectoryError: when the output directory is in use, holds checkpoints and the run is not to be resumed, or
            those of other text.
    """
    output_dir = Path(config.training.output_dir)
    check_output_directory(config.training)
    _check_text_and_batches(config)
    device = choose_device(config.training.device)  # says at once that there is none
    if config.training.cuda_graphs:
        expect_graphs_to_work(device, 1)  # the trainer looks at the number of processes
    if config.training.search_tiles:
        expect_search_to_work(device)
    torch.manual_seed(config.training.seed)
    parts = GptParts(config=config) if isinstance(config, GptPretrainingConfig) else BertParts(config=config)
    model = parts.published_model()
    _check_lengths(config, model)
    world = World.join()
    if not world.is_main:
        world.barrier()  # the first process has written tokenizer and shards by then; the others find them complete
        say, progress = _say_nothing, False
    with ExitStack() as claim:
        if world.is_main:  # a run that is under way may need what lies there
            claim.callback(claim_directory(output_dir, say).release)
        tokenizer = _tokenizer(config, parts, model, output_dir / "data", say)
        if model is None:
            model = parts.new_model(tokenizer)
        else:
            parts.fit(model, tokenizer)
        shards = _shards(config, parts, tokenizer, output_dir / "data", say, progress)
    if world.is_main:
        world.barrier()
    if world.is_main and (remark := shards.corpus.remark_on_unknown(tokenizer)):
        say(remark)
    say(f"{shards.train.num_tokens:,} tokens of {shards.train.num_documents:,} documents to train on")
    return PretrainingRun(
        config=config,
        parts=parts,
        tokenizer=tokenizer,
        model=model,
        train_data=parts.data(shards.train, tokenizer, held_out=False),
        eval_data=shards.held_out and parts.data(shards.held_out, tokenizer, held_out=True),
        held_out=shards.held_out,
        identity=_identity(config, shards),
        is_main=world.is_main,
    )


def _check_text_and_batches(config: AnyPretrainingConfig) -> None:
    """Tell before anything is encoded what would be told after it."""
    corpus = config.corpus
    for path in (*(() if _is_encoded(corpus) else corpus.train_files), *corpus.eval_files):
        check_file(path)
    check_batch_size(**config.batches.sizes, max_seq_length=config.objective.max_seq_length)


def _check_lengths(config: AnyPretrainingConfig, published: nn.Module | None) -> None:
    length = config.objective.max_seq_length
    positions = config.model.positions(length) if published is None else published.config.max_position_embeddings
    if length > positions:
        raise ValueError(
            f"max_seq_length={length} is above the {positions} positions of the model; lower it, or give a new model "
            f"more of them (--max-position-embeddings {length})"
        )


def _tokenizer(
    config: AnyPretrainingConfig,
    parts: PretrainingParts,
    model: nn.Module | None,
    data_dir: Path,
    say: Callable[[str], None],
) -> Tokenizer:
    """Return the tokenizer asked for: given, the published model's (extended or not), kept from before, or trained."""
    wanted, corpus = config.vocabulary, config.corpus
    given = wanted.tokenizer or config.model.model or (corpus.train_files[0] if _is_encoded(corpus) else None)
    kept = data_dir / "train"
    if list_checkpoints(Path(config.training.output_dir)) and (kept / "tokenizer.json").is_file():
        _check_kept(Tokenizer.load(kept), wanted.tokenizer)
        given = kept
    else:
        if given is not None:
            wanted.check_unused(given)
        if given is None or parts.extends_vocabulary:
            return parts.learn_tokenizer(given, _tokenizer_text(corpus, parts), say)
    tokenizer = Tokenizer.load(given)
    parts.check_tokenizer(tokenizer)
    if model is not None and not parts.extends_vocabulary and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer of {given} has {tokenizer.vocab_size} tokens, but the model of {config.model.model} has "
            f"vocab_size={model.config.vocab_size}; give the model's own tokenizer"
        )
    return tokenizer


def _check_kept(kept: Tokenizer, given: Path | None) -> None:
    if given is not None and Tokenizer.load(given).fingerprint != kept.fingerprint:
        raise ValueError(
            f"tokenizer={given} is another than the run began with; leave it out to go on, or choose another output_dir"
        )


def _tokenizer_text(corpus: CorpusConfig, parts: PretrainingParts) -> Corpus:
    """Return the text that a tokenizer learns from."""
    return Corpus(
        paths=corpus.train_files,
        text_field=corpus.text_field,
        encoding_errors=corpus.encoding_errors,
        form=parts.form,
        max_characters=_TOKENIZER_TRAINING_CHARACTERS,
    )


def _is_encoded(corpus: CorpusConfig) -> bool:
    return len(corpus.train_files) == 1 and (corpus.train_files[0] / INDEX_NAME).is_file()


@dataclass(frozen=True, kw_only=True)
class _Shards:
    corpus: TokenShards
    train: Shards
    held_out: Shards | None


def _shards(
    config: AnyPretrainingConfig,
    parts: PretrainingParts,
    tokenizer: Tokenizer,
    data_dir: Path,
    say: Callable[[str], None],
    progress: bool,
) -> _Shards:
    """Return the encoded corpus, checked to the last byte, and its split."""
    corpus = config.corpus
    if _is_encoded(corpus):
        shards = TokenShards.open(corpus.train_files[0], tokenizer=tokenizer)
        _check_form(shards, parts)
    else:
        shards = _encode(config, parts, corpus.train_files, tokenizer, data_dir / "train", progress)
    shards.verify()
    if corpus.eval_files:
        held_out = _encode(config, parts, corpus.eval_files, tokenizer, data_dir / "eval", progress)
        held_out.verify()
        return _Shards(corpus=shards, train=shards, held_out=held_out)
    if corpus.eval_fraction > 0:
        split = parts.hold_out(shards, corpus.eval_fraction, seed=config.training.seed, say=say)
        if split is not None:
            return _Shards(corpus=shards, train=split[0], held_out=split[1])
    return _Shards(corpus=shards, train=shards, held_out=None)


def _check_form(shards: TokenShards, parts: PretrainingParts) -> None:
    """Refuse shards of text that was cut otherwise than the objective needs it."""
    if shards.is_exact != parts.form.exact:
        names = {True: "as it is (--text-form exact)", False: "in sentences (--text-form sentences)"}
        raise ValueError(
            f"the token shards in {shards.directory} hold text {names[shards.is_exact]}; expected text "
            f"{names[parts.form.exact]}, as this architecture learns from it: encode again with that flag"
        )


def _encode(
    config: AnyPretrainingConfig,
    parts: PretrainingParts,
    files: tuple[Path, ...],
    tokenizer: Tokenizer,
    directory: Path,
    progress: bool,
) -> TokenShards:
    options = {
        "text_field": config.corpus.text_field,
        "encoding_errors": config.corpus.encoding_errors,
        "form": parts.form,
        "progress": progress,
    }
    if list_checkpoints(Path(config.training.output_dir)):
        _expect_same_text(directory, files)
        return encode_files(files, tokenizer, directory, **options)
    try:
        return encode_files(files, tokenizer, directory, **options)
    except ShardError:  # left by a run of other settings that never came to a checkpoint: nothing of worth is lost
        return encode_files(files, tokenizer, directory, overwrite=True, **options)


def _expect_same_text(directory: Path, files: tuple[Path, ...]) -> None:
    """Refuse other text than a run began with, before anything is written to its shards."""
    remedy = "a run goes on with the text that it began with; choose another output_dir for other text"
    if not (directory / INDEX_NAME).is_file():
        if (directory.parent / "train" / INDEX_NAME).is_file():
            raise RunDirectoryError(f"{directory.parent} holds the text of a run without eval_files: {remedy}")
        return  # somebody has deleted it
    there = [source.path for source in ShardIndex.read(directory).sources]
    here = [str(path.resolve()) for path in files]
    if there != here:
        raise RunDirectoryError(
            f"{directory} holds the text of the run, from {', '.join(there)}; got {', '.join(here)}: {remedy}"
        )
    if changed := changed_sources(directory):
        raise RunDirectoryError(
            f"{directory} holds the text of the run, and {', '.join(changed)} was changed since: {remedy}"
        )


def _identity(config: AnyPretrainingConfig, shards: _Shards) -> dict[str, object]:
    return {
        "corpus": shards.corpus.fingerprint,
        "eval_fraction": None if config.corpus.eval_files else config.corpus.eval_fraction,
        "eval_corpus": shards.held_out.fingerprint if config.corpus.eval_files else None,
        "vocab_size": shards.corpus.vocab_size,
        "vocabulary": config.vocabulary.asked,
        "start_from": str(config.model.model or config.model.size),
        **asdict(config.objective),
        **config.batches.sizes,
    }
