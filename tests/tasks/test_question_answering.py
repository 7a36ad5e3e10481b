"""Question answering as a whole: from a file of questions to a model, its answers, its figures, its mistakes told."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastssl import BertConfig, BertForMaskedLM, BertForQuestionAnswering, QuestionAnswerer, Tokenizer
from fastssl.data.squad import read_squad
from fastssl.models.pretrained import read_config
from fastssl.tasks.finetuning import prepare_finetuning
from fastssl.tasks.finetuning_config import (
    ExamplesConfig,
    FinetuningConfig,
    FinetuningTrainingConfig,
    QuestionAnsweringConfig,
    StartConfig,
    TuningConfig,
)
from fastssl.tasks.labelled_texts import ColumnConfig
from fastssl.tasks.question_answering.evaluation import answer_logits, mean_loss
from fastssl.tasks.question_answering.figure import draw_probabilities, shown_tokens
from fastssl.tasks.question_answering.spans import SpanConfig
from fastssl.tasks.question_answering.windows import WindowConfig
from fastssl.training import trainer
from fastssl.training.log import read_metrics
from tests.tasks.question_files import WORDS, change, write_questions
from tests.training.stand_in import metrics_only_sinks

DOCUMENTS = ["the old house red n1 n2 .", "by river blue n3 n4 and near house .", "near white n5 n6 and old ."]
QUESTIONS = ["where is red ?", "where is blue ?", "where is white ?"]


@pytest.fixture(autouse=True)
def metrics_only(monkeypatch):
    monkeypatch.setattr(trainer, "default_sinks", metrics_only_sinks)


@pytest.fixture(scope="module")
def body(tmp_path_factory) -> Path:
    """A small body with a masked-LM head, as pretraining leaves it."""
    directory = tmp_path_factory.mktemp("pretrained")
    tokenizer = Tokenizer.train_wordpiece([" ".join(WORDS)] * 3, vocab_size=150)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        max_position_embeddings=40,
        initializer_range=0.1,
    )
    BertForMaskedLM(config).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


def make_config(model: Path, train: Path, output_dir: Path, eval_file: Path | None = None, **changes):
    training = {"num_train_epochs": 1, "learning_rate": 3e-3, "num_threads": 1} | changes.pop("training", {})
    options = changes.pop("options", {})
    tuning = {"per_device_train_batch_size": 8} | changes.pop("tuning", {})
    start = {"model": str(model), "dropout": 0.0} | changes.pop("start", {})
    return FinetuningConfig(
        task="question_answering",
        examples=ExamplesConfig(train_file=train, eval_file=eval_file, **changes),
        start=StartConfig(**start),
        tuning=TuningConfig(**tuning),
        question_answering=QuestionAnsweringConfig(**options),
        training=FinetuningTrainingConfig(output_dir=str(output_dir), **training),
    )


@pytest.fixture(scope="module")
def trained(body, tmp_path_factory) -> Path:
    """A model that was trained for a while, on questions of which some have no answer, with its files beside it."""
    folder = tmp_path_factory.mktemp("answers")
    train = write_questions(folder / "train.json", 600, unanswerable=0.3)
    dev = write_questions(folder / "dev.json", 100, seed=1, unanswerable=0.3)
    config = make_config(body, train, folder / "run", dev, training={"num_train_epochs": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "default_sinks", metrics_only_sinks)
        result = prepare_finetuning(config).run()
    assert result.evaluation["eval_f1"] > 0.9
    return folder / "run"


def untrained(body: Path, **options) -> QuestionAnswerer:
    torch.manual_seed(1)
    model = BertForQuestionAnswering(
        replace(BertForMaskedLM.from_pretrained(body).config, initializer_range=0.3, no_answer_threshold=0.0)
    )
    return QuestionAnswerer(model, Tokenizer.load(body), **options)


def test_learns_and_leaves_a_hugging_face_directory(trained):
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    answerer = QuestionAnswerer.load(trained)
    assert answerer.max_seq_length == 40 and answerer.threshold == 0.0
    answers = answerer(QUESTIONS, DOCUMENTS)
    assert [one.text for one in answers] == ["n1 n2", "n3 n4", "n5 n6"]
    for one, document in zip(answers, DOCUMENTS, strict=True):
        assert document[one.start : one.end] == one.text and one.probability > 0.5
    nothing = answerer(["where is black ?"], "the old house stands near by .")[0]
    assert nothing.text == "" and nothing.start is None and nothing.no_answer_difference > 0
    theirs = AutoModelForQuestionAnswering.from_pretrained(trained).eval()
    tokens = AutoTokenizer.from_pretrained(trained)(QUESTIONS[0], DOCUMENTS[0], return_tensors="pt")
    output = theirs(**tokens)
    places = [0, *np.flatnonzero(tokens["token_type_ids"][0])[:-1]]
    row = answerer.probabilities(QUESTIONS[0], DOCUMENTS[0])
    expected = output.start_logits[0, places].softmax(0), output.end_logits[0, places].softmax(0)
    torch.testing.assert_close((row.start, row.end), expected, rtol=1e-3, atol=1e-5)
    assert row.tokens == ("[CLS]", *DOCUMENTS[0].split()) and row.offsets[1] == (0, 3)
    rows = read_metrics(trained / "metrics.jsonl")
    assert {"eval_exact_match", "eval_has_answer_f1", "eval_best_f1", "eval_no_answer_accuracy"} <= rows[-1].keys()


def test_many_questions_at_once_are_answered_in_their_order_and_from_several_threads(body, monkeypatch):
    monkeypatch.setattr("fastssl.tasks.question_answering.evaluation.TOKENS_PER_BATCH", 50)
    answerer = untrained(body, windows=WindowConfig(doc_stride=3), max_seq_length=16)
    documents = [" ".join(DOCUMENTS[: 1 + number % 3]) for number in range(9)]
    questions = [QUESTIONS[number % 2] for number in range(9)]
    together = answerer(iter(questions), iter(documents))
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda pair: answerer([pair[0]], [pair[1]])[0], zip(questions, documents, strict=True)))
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text and one.start == other.start
        assert one.probability == pytest.approx(other.probability, rel=1e-3)
    assert [one.question for one in together] == questions
    assert answerer(["where is red ?", "where is ?"], DOCUMENTS[0])[0].question == "where is red ?"
    assert answerer([], []) == []


def test_the_figures_are_those_of_the_answers(trained):
    file = read_squad(trained.parent / "dev.json")
    figures = QuestionAnswerer.load(trained).evaluate(file)
    answers = QuestionAnswerer.load(trained)(
        [one.text for one in file.questions], [file.documents[one.document] for one in file.questions]
    )
    right = [
        one.text == (q.answers[0].text if q.answers else "") for one, q in zip(answers, file.questions, strict=True)
    ]
    assert figures["exact_match"] == pytest.approx(np.mean(right))
    silent = [not one.text for one, q in zip(answers, file.questions, strict=True) if q.unanswerable]
    assert figures["no_answer_accuracy"] == pytest.approx(np.mean(silent))
    always = QuestionAnswerer.load(trained, spans=SpanConfig(no_answer_threshold=1e9)).evaluate(file)
    assert always["no_answer_accuracy"] == 0.0 and always["best_f1"] == pytest.approx(figures["best_f1"])


def test_the_best_threshold_on_the_held_out_questions_is_kept(body, tmp_path):
    train, dev = (write_questions(tmp_path / f"{i}.json", 60, seed=i, unanswerable=0.5) for i in range(2))
    said = []
    run = prepare_finetuning(
        make_config(body, train, tmp_path / "run", dev, training={"max_steps": 2}), say=said.append
    )
    best = run.run().evaluation
    threshold = read_config(tmp_path / "run")["fastssl"]["no_answer_threshold"]
    assert threshold == pytest.approx(best["eval_best_f1_threshold"]) and threshold != 0
    assert f"from a difference of {threshold:.2f} on" in said[-1] and f"{best['eval_best_f1']:.4f}" in said[-1]
    answerer = QuestionAnswerer.load(tmp_path / "run")
    assert answerer.threshold == threshold
    assert answerer.evaluate(read_squad(dev))["f1"] == pytest.approx(best["eval_best_f1"])


def test_weights_are_chosen_by_the_score_of_the_threshold_that_they_are_to_have(body, tmp_path):
    train, dev = (write_questions(tmp_path / f"{i}.json", 60, seed=i, unanswerable=0.5) for i in range(2))
    config = make_config(body, train, tmp_path / "run", dev, training={"max_steps": 12, "eval_steps": 2})
    prepare_finetuning(config).run()
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_f1" in row]
    by_own, by_first = (max(rows, key=lambda row: row[name]) for name in ("eval_best_f1", "eval_f1"))
    assert by_first["eval_best_f1"] < by_own["eval_best_f1"]
    kept = QuestionAnswerer.load(tmp_path / "run").evaluate(read_squad(dev))["f1"]
    assert kept == pytest.approx(by_own["eval_best_f1"])
    one_kind = write_questions(tmp_path / "dev.json", 10, seed=1)
    for questions, options, metric in (
        (dev, {}, "best_f1"),
        (one_kind, {}, "f1"),
        (dev, {"options": {"no_answer": "never"}}, "f1"),
    ):
        config = make_config(body, train, tmp_path / "other", questions, **options)
        assert prepare_finetuning(config).parts.main_metric == metric


def test_questions_of_one_kind_settle_no_threshold(body, tmp_path):
    train = write_questions(tmp_path / "train.json", 30, unanswerable=0.5)
    for share in (0.0, 1.0):
        dev = write_questions(tmp_path / "dev.json", 10, seed=1, unanswerable=share)
        config = make_config(body, train, tmp_path / f"run-{share}", dev, training={"max_steps": 1})
        prepare_finetuning(config).run()
        assert QuestionAnswerer.load(tmp_path / f"run-{share}").threshold == 0.0


def test_the_loss_of_the_evaluation_is_that_of_training(body):
    answerer = untrained(body, windows=WindowConfig(doc_stride=3), max_seq_length=16)
    file = read_squad(write_questions(body / "some.json", 12, unanswerable=0.4, length=14))
    evaluation = answerer.evaluation(file)
    assert len(evaluation.windows) > 12
    logits = answer_logits(answerer.model, evaluation.windows)
    batch = evaluation.windows.batch(np.arange(len(evaluation.windows)), evaluation.spans)
    expected = answerer.model(batch).loss.item()
    assert mean_loss(evaluation.windows, evaluation.spans, logits) == pytest.approx(expected, rel=1e-5)
    assert answer_logits(answerer.model, evaluation.windows, cancelled=lambda: True) is None


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_fewer_bits(trained, dtype):
    answers = QuestionAnswerer.load(trained, dtype=dtype)(QUESTIONS, DOCUMENTS)
    assert [one.text for one in answers] == ["n1 n2", "n3 n4", "n5 n6"]


def test_the_two_rows_of_a_long_document_are_those_of_the_window_with_the_answer(trained):
    answerer = QuestionAnswerer.load(trained, max_seq_length=20, windows=WindowConfig(doc_stride=6))
    document = "the old house " * 5 + "red n1 n2 near by . " + "and the river " * 5
    found, row = answerer(["where is red ?"], document)[0], answerer.probabilities("where is red ?", document)
    assert found.text == "n1 n2" and len(row.tokens) <= 18
    start, end = row.start.argmax(), row.end.argmax()
    assert row.tokens[start] == "n1" and row.offsets[start][0] == found.start and row.offsets[end][1] == found.end
    assert row.start.sum() == pytest.approx(1.0, abs=1e-5) and row.end.sum() == pytest.approx(1.0, abs=1e-5)


def test_a_figure_shows_the_likely_part(trained, tmp_path):
    row = QuestionAnswerer.load(trained).probabilities(QUESTIONS[0], DOCUMENTS[0])
    draw_probabilities(row, tmp_path / "rows.png", title="where is $red ?")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    rows = np.full(300, 1e-6)
    rows[200:204] = 0.25
    shown = shown_tokens(rows)
    assert shown.stop - shown.start == 60 and shown.start < 180 and shown.stop > 220
    assert shown_tokens(rows[:50]) == slice(0, 50)


def test_windows_without_the_answer_are_left_out_or_have_none(body, tmp_path):
    long = write_questions(tmp_path / "train.json", 30, length=30)
    said = []
    parts = prepare_finetuning(
        make_config(body, long, tmp_path / "run", max_seq_length=20, options={"windows": WindowConfig(doc_stride=6)}),
        say=said.append,
    ).parts
    data = parts.train_data
    assert said[0] == "an answer in the document; a new head" and "other windows have no answer in them" in said[1]
    assert parts.model.config.no_answer_threshold is None and len(data.examples) >= 25
    batches = [data.batch(0, index) for index in range(data.num_batches(0))]
    assert all((batch.answer_mask[batch.answer_starts]).all() and (batch.answer_starts >= 0).all() for batch in batches)
    first = torch.cat([batch.input_ids[batch.answer_starts] for batch in batches])
    assert {parts.tokenizer.id_to_token(token) for token in first.tolist()} <= {f"n{number}" for number in range(12)}
    told = prepare_finetuning(
        make_config(
            body,
            long,
            tmp_path / "run",
            max_seq_length=20,
            options={"windows": WindowConfig(doc_stride=6), "no_answer": "always"},
        )
    ).parts
    assert told.model.config.no_answer_threshold == 0.0
    assert len(told.train_data.examples) > len(data.examples)
    nothing = told.train_data.labels[:, 0] == 0
    assert int(nothing.sum()) == len(told.train_data.examples) - len(data.examples)


def test_resumed_it_ends_in_the_same_weights(body, tmp_path):
    train = write_questions(tmp_path / "train.json", 64)
    training = {"num_train_epochs": 2, "save_steps": 4, "save_total_limit": None}
    whole = prepare_finetuning(make_config(body, train, tmp_path / "whole", training=training)).run()
    parts = make_config(body, train, tmp_path / "parts", training=training)
    prepare_finetuning(parts).run()
    for step in (12, 16):
        (tmp_path / "parts" / f"checkpoint-{step}").rename(tmp_path / f"aside-{step}")
    again = replace(parts, training=replace(parts.training, resume_from_checkpoint="last"))
    prepare_finetuning(again).run()
    one, other = (BertForQuestionAnswering.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert whole.step == 16 and all(torch.equal(one[name], other[name]) for name in one)


def test_a_head_goes_on_and_a_fresh_one_is_drawn(trained, tmp_path):
    train = trained.parent / "train.json"
    said = []
    on = prepare_finetuning(make_config(trained, train, tmp_path / "a"), say=said.append).parts
    assert said[0] == 'an answer in the document, or "no answer"; the model\'s own head goes on'
    own = BertForQuestionAnswering.from_pretrained(trained).qa_outputs.weight
    assert torch.equal(on.model.qa_outputs.weight, own)
    fresh = prepare_finetuning(make_config(trained, train, tmp_path / "b", start={"fresh_head": True})).parts
    assert not torch.equal(fresh.model.qa_outputs.weight, own)
    scratch = prepare_finetuning(make_config(trained, train, tmp_path / "c", start={"from_scratch": True})).parts
    assert not torch.equal(scratch.model.bert.embeddings.word.weight, on.model.bert.embeddings.word.weight)
    preset = prepare_finetuning(make_config("bert-tiny", train, tmp_path / "d")).parts
    assert preset.model.config.hidden_size == 128 and preset.max_seq_length == 384


def test_what_cannot_be_learnt_from_is_left_out_and_counted(body, tmp_path):
    train, dev = write_questions(tmp_path / "train.json", 20), write_questions(tmp_path / "dev.json", 10, seed=3)
    content = json.loads(train.read_text())["data"][0]["paragraphs"]
    moved = content[3]["qas"][0]["answers"][0]
    change(
        train,
        {"question": "  "},
        {"context": " "},
        {"answers": []},
        {"answers": [{**moved, "answer_start": 0}]},
        {"answers": [{"text": "nowhere", "answer_start": 2}]},
    )
    change(dev, {"question": ""}, {"answers": []})
    said = []
    run = prepare_finetuning(make_config(body, train, tmp_path / "run", dev), say=said.append)
    told = "\n".join(said)
    assert f"{train}: left out 1 of 20 questions: the question is empty" in told
    assert f"{train}: left out 1 of 20 questions: the document is empty" in told
    assert f"{train}: left out 1 of 20 questions: no answer is given" in told
    assert f"{train}: 1 answers do not stand at their answer_start; the nearest places where they do were taken" in told
    assert "left out 1 of 17 questions: their answers do not stand in their documents (such as q4)" in told
    assert (
        f"{dev}: left out 1 of 10 questions: the question is empty" in told and len(run.parts.evaluation.questions) == 8
    )
    assert len(run.parts.train_data.examples) == 16
    impossible = write_questions(tmp_path / "two.json", 20, unanswerable=0.5)
    never = make_config(body, impossible, tmp_path / "run", options={"no_answer": "never"})
    prepare_finetuning(never, say=said.append)
    assert any("the document does not answer it (is_impossible), and --no-answer never is given" in one for one in said)


def test_the_nearest_of_several_places_is_taken(body, tmp_path):
    train = write_questions(tmp_path / "train.json", 1)
    context = "red n1 n2 the red n1 n2 and near house red n1 n2"
    change(train, {"context": context, "answers": [{"text": "n1 n2", "answer_start": 20}]})
    parts = prepare_finetuning(make_config(body, train, tmp_path / "run")).parts
    batch = parts.train_data.batch(0, 0)
    before = batch.input_ids[: batch.answer_starts[0]].tolist()
    assert [parts.tokenizer.id_to_token(token) for token in before][-5:] == ["red", "n1", "n2", "the", "red"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 400}, "between 4 and the model's 40 positions, got 400"),
        ({"options": {"windows": WindowConfig(doc_stride=39)}}, "doc_stride=39 must be below 24"),
        ({"tuning": {"class_weights": "balanced"}}, "class_weights cannot be used with question_answering"),
        ({"start": {"problem_type": "regression"}}, "problem_type cannot be used with question_answering"),
        ({"columns": ColumnConfig(label_column="x")}, "label_column cannot be used with question_answering"),
        (
            {"training": {"metric_for_best_model": "accuracy"}},
            "not measured here; expected one of loss, exact_match, f1$",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told(body, tmp_path, changes, message):
    files = [write_questions(tmp_path / f"{name}.json", 5) for name in ("train", "dev")]
    with pytest.raises(ValueError, match=message):
        prepare_finetuning(make_config(body, files[0], tmp_path / "run", files[1], **changes))


def test_files_that_leave_nothing_are_told(body, tmp_path):
    train = change(write_questions(tmp_path / "train.json", 1), {"answers": [{"text": "nowhere", "answer_start": 0}]})
    with pytest.raises(ValueError, match="no question has its answer in its document; there is nothing to train on"):
        prepare_finetuning(make_config(body, train, tmp_path / "run"))
    change(train, {"answers": []})
    with pytest.raises(ValueError, match=r"none of its 1 questions can be used: no answer is given.* \(1\)"):
        prepare_finetuning(make_config(body, train, tmp_path / "run"))
    with pytest.raises(ValueError, match="max_answer_length must be at least 1, got 0"):
        QuestionAnsweringConfig(max_answer_length=0)


def test_what_cannot_be_asked_is_told(body):
    answerer = untrained(body)
    for questions, documents, message in (
        ("where?", ["a"], "questions must be several strings, got one"),
        (["where?", "what?"], ["a"], "one text for each of the 2 questions, got 1"),
        (["where?", None], "a", "questions must be strings, got NoneType as number 1"),
        (["where?", " "], "a", "questions must not be empty, but number 1 is"),
        (["where?"], [""], "documents must not be empty, but number 0 is"),
    ):
        with pytest.raises(ValueError, match=message):
            answerer(questions, documents)
    with pytest.raises(ValueError, match="between 4 and the model's 40 positions, got 41"):
        untrained(body, max_seq_length=41)


def test_models_of_other_tasks_are_refused(body):
    with pytest.raises(ValueError, match="was not fine-tuned for question_answering"):
        QuestionAnswerer.load(body)
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        QuestionAnswerer.load("nowhere")
    with pytest.raises(ValueError, match="dtype must be one of"):
        QuestionAnswerer.load(body, dtype="fp8")


def test_a_model_that_always_answers_gives_no_difference(body, tmp_path):
    train = write_questions(tmp_path / "train.json", 8)
    prepare_finetuning(make_config(body, train, tmp_path / "run", training={"max_steps": 1})).run()
    answerer = QuestionAnswerer.load(tmp_path / "run")
    found = answerer(["where is red ?"], DOCUMENTS[0])[0]
    assert answerer.threshold is None and found.no_answer_difference is None and found.text
    assert answerer.probabilities("where is red ?", DOCUMENTS[0]).tokens == tuple(DOCUMENTS[0].split())
    asked = QuestionAnswerer.load(tmp_path / "run", spans=SpanConfig(no_answer_threshold=-math.inf))
    assert asked(["where is red ?"], DOCUMENTS[0])[0].text == ""
