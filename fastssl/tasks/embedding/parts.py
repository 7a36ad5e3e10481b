"""The parts of fine-tuning for sentence embeddings: model, batches of pairs, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastssl.models.bert_embedder import BertForSentenceEmbedding
from fastssl.models.embedding_files import EmbeddingConfig, read_embedding_config
from fastssl.tasks.embedding.pairs import PairData, PairTexts, read_pair_texts, text_numbers
from fastssl.tasks.embedding.scores import RETRIEVAL_METRICS, SIMILARITY_METRICS, PairEvaluation, similarities
from fastssl.tasks.encoded_texts import EncodedTexts, encode_texts
from fastssl.tasks.fine_tuned import checked_length
from fastssl.tasks.finetuning_config import FinetuningConfig
from fastssl.tasks.labelled_texts import read_labelled_texts
from fastssl.tasks.task_parts import Start, TaskParts, check_metric, find_start


def embedding_parts(config: FinetuningConfig, say: Callable[[str], None]) -> TaskParts:
    """Read the examples, and return model and data of an embedding task; errors as in `prepare_finetuning`."""
    examples = config.examples
    _check_settings(config)
    train = read_pair_texts(examples.train_file, examples.columns, config.contrastive.negative_column)
    if len(train) < 2:
        raise ValueError(f"{examples.train_file} has one example, which nothing tells apart; expected at least two")
    held_out = None
    if examples.eval_file is not None:
        needs_labels = examples.columns.label_column is not None
        held_out = read_labelled_texts(examples.eval_file, examples.columns, needs_labels=needs_labels)
        scores = similarities(held_out)
    start, embedding = _find_start(config, [text for column in train.columns for text in column], say)
    wanted = embedding.max_length if examples.max_seq_length is None else examples.max_seq_length
    length = checked_length(wanted, start.config.max_position_embeddings)
    model = _make_model(start, replace(embedding, max_length=length), config.contrastive.temperature)
    if config.start.dropout is not None:
        model.set_dropout(config.start.dropout)
    _check_dropout(model, train)
    say(_remark(train, model))
    if train.has_labels and train.positives is not None:
        say(f"{train.table.path} has labels, which are not read: each of its pairs counts as one that belongs together")
    main_metric = SIMILARITY_METRICS[0]
    evaluation = None
    if held_out is not None:
        metrics = RETRIEVAL_METRICS if scores is None else SIMILARITY_METRICS
        main_metric = metrics[0]
        check_metric(config.training.metric_for_best_model, metrics)
        encoded = _encoded(model, start, held_out.texts + held_out.pairs, str(examples.eval_file), say)
        evaluation = PairEvaluation(examples=encoded, scores=scores)
    return TaskParts(
        model=model,
        tokenizer=start.tokenizer,
        max_seq_length=length,
        has_pairs=train.positives is not None,
        train_data=PairData(
            _encoded(model, start, [text for column in train.columns for text in column], str(train.table.path), say),
            text_numbers(train.columns),
            seed=config.training.seed,
            batch_size=config.tuning.per_device_train_batch_size,
        ),
        evaluation=evaluation,
        main_metric=main_metric,
    )


def _check_settings(config: FinetuningConfig) -> None:
    for name, value, unset in (
        ("class_weights", config.tuning.class_weights, "none"),
        ("problem_type", config.start.problem_type, None),
        ("fresh_head", config.start.fresh_head, False),
    ):
        if value != unset:
            raise ValueError(f"{name}={value!r} is for classification; the task 'embedding' has no classes")
    if config.tuning.per_device_train_batch_size < 2:
        raise ValueError(
            "per_device_train_batch_size must be at least 2 for the task 'embedding': a pair is told apart from the "
            f"others of its batch; got {config.tuning.per_device_train_batch_size}"
        )


def _find_start(
    config: FinetuningConfig, texts: list[str], say: Callable[[str], None]
) -> tuple[Start, EmbeddingConfig]:
    """Return the body, and how it embeds: as its directory says, unless asked for otherwise."""
    wanted, directory = config.start, Path(config.start.model)
    found = EmbeddingConfig()
    if directory.is_dir():
        model_directory, found = read_embedding_config(directory)
        wanted = replace(wanted, model=str(model_directory))
    start = find_start(wanted, texts, say)
    contrastive = config.contrastive
    return start, replace(
        found,
        pooling=contrastive.pooling or found.pooling,
        normalize=contrastive.normalize_embeddings or found.normalize,
        max_length=min(found.max_length, start.config.max_position_embeddings),
    )


def _make_model(start: Start, embedding: EmbeddingConfig, temperature: float) -> BertForSentenceEmbedding:
    if start.directory is None:
        return BertForSentenceEmbedding(start.config, embedding, temperature=temperature)
    return BertForSentenceEmbedding.from_pretrained(start.directory, embedding=embedding, temperature=temperature)


def _check_dropout(model: BertForSentenceEmbedding, train: PairTexts) -> None:
    config = model.config
    if train.positives is None and config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0:
        raise ValueError(
            f"{train.table.path} has single sentences, whose two copies differ by dropout alone, and the model has "
            "none; give --dropout 0.1, or pairs of texts"
        )


def _remark(train: PairTexts, model: BertForSentenceEmbedding) -> str:
    kind = "sentences, each its own partner under another dropout (SimCSE)"
    if train.positives is not None:
        kind = "pairs of texts" if train.negatives is None else "pairs of texts, each with a hard negative"
    left_out = f" ({train.num_empty:,} rows with an empty text left out)" if train.num_empty else ""
    pooling = " and ".join(model.embedding.pooling)
    return f"{len(train):,} {kind}{left_out}; one vector of {model.width} numbers by {pooling} pooling"


def _encoded(
    model: BertForSentenceEmbedding, start: Start, texts: list[str], source: str, say: Callable[[str], None]
) -> EncodedTexts:
    embedding = model.embedding
    prepared = [embedding.prepared(text) for text in texts]
    # As `SentenceEmbedder` and sentence-transformers read texts.
    encoded = encode_texts(start.tokenizer, prepared, max_seq_length=embedding.max_length, reads_special=True)
    cut = f", {encoded.num_truncated:,} of them cut to {embedding.max_length}" if encoded.num_truncated else ""
    say(f"{source}: {len(encoded):,} texts of {encoded.lengths.mean():.1f} tokens on average{cut}")
    return encoded
