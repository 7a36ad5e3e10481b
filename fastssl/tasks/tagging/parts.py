"""The parts of fine-tuning for tagging: model, batches, evaluation."""

from __future__ import annotations

from collections.abc import Callable

from fastssl.data.batch import IGNORED_LABEL
from fastssl.models.bert_tagger import BertForTokenClassification
from fastssl.models.pretrained import read_config
from fastssl.tasks.example_batches import ExampleBatches
from fastssl.tasks.fine_tuned import checked_length
from fastssl.tasks.finetuning_config import FinetuningConfig
from fastssl.tasks.labels import LabelSet, listed
from fastssl.tasks.tagging.encoded_words import EncodedWords, encode_words
from fastssl.tasks.tagging.scores import NumberedTags, TaggingEvaluation, number_tags, tag_metric_names
from fastssl.tasks.tagging.spans import are_span_tags
from fastssl.tasks.tagging.tagged_sentences import TaggedSentences, read_tagged_sentences
from fastssl.tasks.task_parts import Start, TaskParts, check_metric, find_start, make_model


def tagging_parts(config: FinetuningConfig, say: Callable[[str], None]) -> TaskParts:
    """Read the sentences, and return model and data of a tagging task; errors as in `prepare_finetuning`."""
    examples, wanted = config.examples, config.start
    if wanted.problem_type is not None:
        raise ValueError(f"--problem-type {wanted.problem_type} is for classification; tagging has one tag a word")
    train = read_tagged_sentences(examples.train_file, examples.columns)
    held_out = None if examples.eval_file is None else read_tagged_sentences(examples.eval_file, examples.columns)
    start = find_start(wanted, [" ".join(words) for words in train.words], say)
    label_set, keeps_head = _label_set(train, config, start)
    model = make_model(start, BertForTokenClassification, label_set.names)
    if wanted.dropout is not None:
        model.set_dropout(wanted.dropout)
    say(_remark(label_set, keeps_head))
    if held_out is not None:
        check_metric(config.training.metric_for_best_model, tag_metric_names(label_set.names))
    length = checked_length(examples.max_seq_length, start.config.max_position_embeddings)
    tags = number_tags(train, label_set)
    if config.tuning.class_weights == "balanced":
        model.set_class_weights(label_set.balanced_weights(tags.numbers[tags.numbers != IGNORED_LABEL]))
    # Numbered first: tags that training does not know are told before minutes are spent on anything else.
    held_out_tags = None if held_out is None else number_tags(held_out, label_set)
    evaluation = None
    if held_out is not None:
        evaluation = TaggingEvaluation(
            sentences=_encoded(held_out, held_out_tags, start, length, say),
            tags=held_out_tags,
            sentence_lengths=[len(words) for words in held_out.words],
        )
    return TaskParts(
        model=model,
        tokenizer=start.tokenizer,
        max_seq_length=length,
        has_pairs=False,
        train_data=ExampleBatches(
            _encoded(train, tags, start, length, say),
            tags.numbers,
            seed=config.training.seed,
            batch_size=config.tuning.per_device_train_batch_size,
        ),
        evaluation=evaluation,
        main_metric="span_f1" if are_span_tags(label_set.names) else "accuracy",
    )


def _label_set(train: TaggedSentences, config: FinetuningConfig, start: Start) -> tuple[LabelSet, bool]:
    """Return the tags of the run, and whether the head of the directory knows them already."""
    kind = "single_label_classification"
    found = sorted({tag for tags in train.tags for tag in tags if tag is not None})
    if len(found) < 2:
        raise ValueError(
            f"{train.path}: every tag in column {train.tag_column!r} is {found[0]}; a tagger needs at least two to "
            "tell apart: name another column with --label-column"
        )
    label_set = LabelSet.of(found, lambda _: str(train.path), kind)
    architectures = () if start.directory is None else read_config(start.directory).get("architectures") or ()
    if BertForTokenClassification.__name__ not in architectures or config.start.fresh_head:
        return label_set, False
    own = LabelSet(names=start.config.label_names, problem_type=kind)
    if set(found) <= set(own.numbers()):
        return own, True
    raise ValueError(
        f"the head of {start.directory} tells {listed(own.names)} apart, but {train.path} has the tags "
        f"{listed(label_set.names)}; give --fresh-head to start a new one"
    )


def _remark(label_set: LabelSet, keeps_head: bool) -> str:
    head = "the model's own head goes on" if keeps_head else "a new head"
    return f"one of {len(label_set.names)} tags a word ({listed(label_set.names)}), {head}"


def _encoded(
    sentences: TaggedSentences,
    tags: NumberedTags,
    start: Start,
    length: int,
    say: Callable[[str], None],
) -> EncodedWords:
    encoded = encode_words(start.tokenizer, sentences.words, max_seq_length=length)
    say(
        f"{sentences.path}: {len(sentences):,} sentences, {sentences.num_words:,} words with tags from column "
        f"{sentences.tag_column!r}, {encoded.windows.lengths.mean():.1f} tokens a sentence"
    )
    untagged = int((tags.numbers == IGNORED_LABEL).sum())
    for number, what in (
        (encoded.num_split, f"sentences longer than {length} tokens are read in overlapping windows"),
        (encoded.num_cut, f"words are longer than {length} tokens by themselves: their ends are cut off"),
        (encoded.num_unspelled, "words have no character that the tokenizer knows: [UNK] stands for them"),
        (untagged, "words have no tag: they are read, but neither learnt nor counted"),
        (tags.num_unknown, tags.remark),
    ):
        if number:
            say(f"{sentences.path}: {number:,} {what}")
    return encoded
