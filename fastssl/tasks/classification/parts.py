"""The parts of fine-tuning for classification: model, batches, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastssl.models.bert_classifier import BertForSequenceClassification
from fastssl.models.pretrained import read_config
from fastssl.tasks.classification.classifier import (
    MAIN_METRIC,
    ClassificationEvaluation,
    metric_names,
)
from fastssl.tasks.encoded_texts import EncodedTexts, encode_texts
from fastssl.tasks.example_batches import ExampleBatches
from fastssl.tasks.fine_tuned import checked_length
from fastssl.tasks.finetuning_config import FinetuningConfig
from fastssl.tasks.labelled_texts import LabelledTexts, read_labelled_texts
from fastssl.tasks.labels import LabelSet, listed, num_positions, spelled
from fastssl.tasks.task_parts import Start, TaskParts, check_metric, find_start, make_model


def classification_parts(config: FinetuningConfig, say: Callable[[str], None]) -> TaskParts:
    """Read the examples, and return model and data of a classification task; errors as in `prepare_finetuning`."""
    examples, wanted = config.examples, config.start
    train = _without_empty(read_labelled_texts(examples.train_file, examples.columns), say)
    held_out = None if examples.eval_file is None else read_labelled_texts(examples.eval_file, examples.columns)
    if held_out is not None and (held_out.pairs is None) != (train.pairs is None):
        raise ValueError(
            f"{examples.train_file} and {examples.eval_file} do not agree: one has pairs of texts and one has not; "
            "name the columns with --text-column and --text-pair-column"
        )
    if held_out is not None and held_out.num_empty:
        say(f"{held_out.remark_on_empty}; they are measured all the same")
    start = find_start(wanted, train.texts + (train.pairs or []), say)
    label_set, keeps_head = _label_set(train, config, start)
    model = make_model(start, BertForSequenceClassification, label_set.names, problem_type=label_set.problem_type)
    model.bert.config = replace(model.config, trained_on_pairs=train.pairs is not None)
    if wanted.dropout is not None:
        model.set_dropout(wanted.dropout)
    say(_remark(label_set, keeps_head))
    if held_out is not None:
        check_metric(config.training.metric_for_best_model, metric_names(label_set))
    length = checked_length(config.examples.max_seq_length, start.config.max_position_embeddings)
    labels = label_set.encode(train.labels, train.table.place)
    if config.tuning.class_weights == "balanced":
        if label_set.problem_type != "single_label_classification":
            raise ValueError(f"class_weights='balanced' needs one class a text, but this is {label_set.problem_type}")
        model.set_class_weights(label_set.balanced_weights(labels))
    evaluation = None
    if held_out is not None:
        # Encoded first: a label that training does not know is told before minutes are spent on anything else.
        held_out_labels = label_set.encode(held_out.labels, held_out.table.place)
        evaluation = ClassificationEvaluation(
            examples=_encoded(held_out, start, length, say),
            labels=held_out_labels,
            problem_type=label_set.problem_type,
        )
    return TaskParts(
        model=model,
        tokenizer=start.tokenizer,
        max_seq_length=length,
        has_pairs=train.pairs is not None,
        train_data=ExampleBatches(
            _encoded(train, start, length, say),
            labels,
            seed=config.training.seed,
            batch_size=config.tuning.per_device_train_batch_size,
        ),
        evaluation=evaluation,
        main_metric=MAIN_METRIC[label_set.problem_type],
    )


def _without_empty(train: LabelledTexts, say: Callable[[str], None]) -> LabelledTexts:
    """Leave out examples without any text: there is nothing to learn from them."""
    if train.num_empty == len(train):
        raise ValueError(f"{train.table.path}: every text is empty")
    if not train.num_empty:
        return train
    say(f"{train.remark_on_empty}: left out")
    return train.select([row for row in range(len(train)) if not train.is_empty(row)])


def _label_set(train: LabelledTexts, config: FinetuningConfig, start: Start) -> tuple[LabelSet, bool]:
    """Return the labels of the run, and whether the head of the directory knows them already."""
    place = train.table.place
    found = LabelSet.of(train.labels, place, config.start.problem_type)
    architectures = () if start.directory is None else read_config(start.directory).get("architectures") or ()
    if BertForSequenceClassification.__name__ not in architectures or config.start.fresh_head:
        return found, False
    own = LabelSet(names=start.config.label_names, problem_type=found.problem_type)
    regression = found.problem_type == "regression"
    by_position = found.problem_type == "multi_label_classification" and num_positions(train.labels, place)
    spellings = set(own.names) | set(map(spelled, own.names)) | _numbers_of(own)
    known = regression or by_position == len(own.names) or set(found.names) <= spellings
    if known and regression == (len(own.names) == 1):
        return own, True
    if len(own.names) == 1 and not regression:
        raise ValueError(
            f"the head of {start.directory} gives one value, but the labels of {train.table.path} are read as classes: "
            f"{listed(found.names)}; give --problem-type regression if they are values, or --fresh-head to start a new "
            "head"
        )
    raise ValueError(
        f"the head of {start.directory} tells {', '.join(own.names)} apart, but {train.table.path} has the labels "
        f"{listed(found.names)}; give --fresh-head to start a new one"
    )


def _numbers_of(label_set: LabelSet) -> set[str]:
    nameless = all(name == f"LABEL_{number}" for number, name in enumerate(label_set.names))
    return {str(number) for number in range(len(label_set.names))} if nameless else set()


def _remark(label_set: LabelSet, keeps_head: bool) -> str:
    head = "the model's own head goes on" if keeps_head else "a new head"
    if label_set.problem_type == "regression":
        return f"regression, {head}"
    kind = "several of" if label_set.problem_type == "multi_label_classification" else "one of"
    return f"{kind} {len(label_set.names)} classes ({listed(label_set.names)}), {head}"


def _encoded(examples: LabelledTexts, start: Start, length: int, say: Callable[[str], None]) -> EncodedTexts:
    encoded = encode_texts(start.tokenizer, examples.texts, examples.pairs, max_seq_length=length)
    cut = f", {encoded.num_truncated:,} of them cut to {length}" if encoded.num_truncated else ""
    say(f"{examples.table.path}: {len(encoded):,} examples of {encoded.lengths.mean():.1f} tokens on average{cut}")
    return encoded
