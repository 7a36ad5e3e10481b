"""The parts of fine-tuning for question answering: model, batches, evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from fastssl.data.squad import Question, QuestionFile, read_squad
from fastssl.models.bert_question_answering import BertForQuestionAnswering
from fastssl.tasks.example_batches import ExampleBatches
from fastssl.tasks.finetuning_config import FinetuningConfig
from fastssl.tasks.labelled_texts import ColumnConfig
from fastssl.tasks.question_answering.answerer import window_length
from fastssl.tasks.question_answering.evaluation import (
    AnswerEvaluation,
    answer_logits,
    can_settle_threshold,
    make_evaluation,
)
from fastssl.tasks.question_answering.gold_answers import locate_answers, usable_questions
from fastssl.tasks.question_answering.spans import SpanConfig
from fastssl.tasks.question_answering.windows import QuestionWindows, cut_windows, window_spans
from fastssl.tasks.task_parts import Start, TaskParts, check_metric, find_start


def question_answering_parts(config: FinetuningConfig, say: Callable[[str], None]) -> TaskParts:
    """Read the questions, and return model and data of the task; errors as in `prepare_finetuning`."""
    _refuse_settings_of_other_tasks(config)
    examples, options = config.examples, config.question_answering
    train = read_squad(examples.train_file)
    held_out = None if examples.eval_file is None else read_squad(examples.eval_file)
    allows_no_answer = _allows_no_answer(train, options.no_answer)
    questions = usable_questions(train, say, allows_no_answer=allows_no_answer)
    start = find_start(config.start, [*train.documents, *(question.text for question in questions)], say)
    length = window_length(examples.max_seq_length, start.config.max_position_embeddings)
    options.windows.sizes(length)
    model = _make_model(start, config, allows_no_answer, say)
    evaluation, main_metric, settle = None, "f1", None
    if held_out is not None:
        evaluation = make_evaluation(
            held_out,
            tokenizer=start.tokenizer,
            max_seq_length=length,
            windows=options.windows,
            spans=SpanConfig(max_answer_length=options.max_answer_length),
            threshold=model.config.no_answer_threshold,
            say=say,
        )
        metrics = evaluation.metric_names()
        check_metric(config.training.metric_for_best_model, metrics)
        if can_settle_threshold(metrics):
            # Of the weights whose own threshold makes them the best, not of those that the first one suits.
            main_metric, settle = "best_f1", partial(_settle_threshold, model, evaluation, say)
    windows = cut_windows(
        start.tokenizer,
        [question.text for question in questions],
        train.documents,
        [question.document for question in questions],
        max_seq_length=length,
        config=options.windows,
        allows_no_answer=allows_no_answer,
    )
    spans = _answers(windows, questions, train, say)
    with_answer = (spans[:, 0] >= 0).nonzero().flatten()
    _report(train, windows, with_answer.numpy(), say)
    return TaskParts(
        model=model,
        tokenizer=start.tokenizer,
        max_seq_length=length,
        has_pairs=False,
        train_data=ExampleBatches(
            windows.select(with_answer.numpy()),
            spans[with_answer],
            seed=config.training.seed,
            batch_size=config.tuning.per_device_train_batch_size,
        ),
        evaluation=evaluation,
        main_metric=main_metric,
        settle=settle,
    )


def _refuse_settings_of_other_tasks(config: FinetuningConfig) -> None:
    for name, given in (
        ("class_weights", config.tuning.class_weights != "none"),
        ("problem_type", config.start.problem_type is not None),
        ("text_column, text_pair_column and label_column", config.examples.columns != ColumnConfig()),
    ):
        if given:
            raise ValueError(f"{name} cannot be used with question_answering, which has no classes or columns")


def _allows_no_answer(train: QuestionFile, wanted: str) -> bool:
    found = any(question.unanswerable for question in train.questions)
    return {"auto": found, "always": True, "never": False}[wanted]


def _make_model(
    start: Start, config: FinetuningConfig, allows_no_answer: bool, say: Callable[[str], None]
) -> BertForQuestionAnswering:
    if start.directory is None:
        model, kept = BertForQuestionAnswering(start.config), False
    else:
        with warnings.catch_warnings():
            # A head that starts fresh is what fine-tuning is about; it is said below in other words.
            warnings.simplefilter("ignore", UserWarning)
            model = BertForQuestionAnswering.from_pretrained(start.directory, fresh_head=config.start.fresh_head)
        kept = not model.load_report.fresh
    threshold = None
    if allows_no_answer:
        threshold = (model.config.no_answer_threshold if kept else None) or 0.0
    model.bert.config = replace(model.config, no_answer_threshold=threshold)
    if config.start.dropout is not None:
        model.set_dropout(config.start.dropout)
    outcome = 'an answer in the document, or "no answer"' if allows_no_answer else "an answer in the document"
    head = "the model's own head goes on" if kept else "a new head"
    say(f"{outcome}; {head}")
    return model


def _settle_threshold(
    model: BertForQuestionAnswering, evaluation: AnswerEvaluation, say: Callable[[str], None]
) -> None:
    """Have the model say "no answer" from where that gives the best F1 on the held-out questions, if it gains by it."""
    figures = evaluation.figures(answer_logits(model, evaluation.windows))
    if figures["best_f1"] > figures["f1"]:
        threshold = figures["best_f1_threshold"]
        model.bert.config = replace(model.config, no_answer_threshold=threshold)
        say(
            f'"no answer" is given from a difference of {threshold:.2f} on, which config.json notes: F1 '
            f"{figures['best_f1']:.4f} on the held-out questions, against {figures['f1']:.4f} from "
            f"{evaluation.threshold:.2f} on"
        )


def _answers(
    windows: QuestionWindows, questions: Sequence[Question], train: QuestionFile, say: Callable[[str], None]
) -> Tensor:
    """Return the answers in the windows to train on; what is not where it should be is told."""
    located = locate_answers(windows, questions, train.documents)
    if located.num_moved:
        say(
            f"{train.path}: {located.num_moved:,} answers do not stand at their answer_start; the nearest places where "
            "they do were taken"
        )
    if located.num_lost:
        lost = [question.id for question, known in zip(questions, located.known, strict=True) if not known]
        say(
            f"{train.path}: left out {located.num_lost:,} of {len(questions):,} questions: their answers do not stand "
            f"in their documents (such as {', '.join(lost[:3])})"
        )
    return window_spans(windows, located.spans, located.known)


def _report(train: QuestionFile, windows: QuestionWindows, with_answer: np.ndarray, say: Callable[[str], None]) -> None:
    if not len(with_answer):
        raise ValueError(f"{train.path}: no question has its answer in its document; there is nothing to train on")
    cut = windows.examples.num_truncated
    without, mean_length = len(windows) - len(with_answer), windows.examples.lengths[with_answer].mean()
    say(
        f"{train.path}: {len(with_answer):,} windows to train on, of {mean_length:.1f} tokens on average"
        + (f"; {without:,} other windows have no answer in them and are left out" if without else "")
        + (f"; {cut:,} questions were cut" if cut else "")
    )
