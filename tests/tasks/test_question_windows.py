"""Windows over long documents, answers in them, and the best spans over all of them."""

import re

import numpy as np
import pytest
import torch

from fastssl import Tokenizer
from fastssl.data.squad import read_squad
from fastssl.tasks.question_answering.gold_answers import locate_answers
from fastssl.tasks.question_answering.spans import SpanConfig, find_answer, no_answer_score, span_scores
from fastssl.tasks.question_answering.windows import (
    QuestionWindows,
    WindowConfig,
    cut_windows,
    token_span,
    window_spans,
    window_starts,
)

LETTERS = "d1 d2 d3 d4 d5 d6 d7 d8 d9 q1 q2 q3 q4".split()
PRECIPITATION = (
    "In meteorology, precipitation is any product of the condensation of atmospheric water vapor that falls under "
    "gravity. The main forms of precipitation include drizzle, rain, sleet, snow, graupel and hail... Precipitation "
    "forms as smaller droplets coalesce via collision with other rain drops or ice crystals within a cloud. Short, "
    "intense periods of rain in scattered locations are called “showers”."
)
"""As the lecture shows it, from Rajpurkar et al. 2016 (1606.05250), figure 1: three points stand for words left out."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_wordpiece([" ".join(LETTERS)] * 3, vocab_size=100)


@pytest.fixture(scope="module")
def wide_tokenizer() -> Tokenizer:
    return Tokenizer.train_wordpiece([PRECIPITATION, "蘋果獲新專利，今天買了蘋果。"] * 2, vocab_size=300)


def cut(tokenizer: Tokenizer, questions, documents, length=30, *, no_answer=False, **config) -> QuestionWindows:
    return cut_windows(
        tokenizer,
        questions,
        documents,
        range(len(documents)),
        max_seq_length=length,
        config=WindowConfig(**config),
        allows_no_answer=no_answer,
    )


def answer(windows: QuestionWindows, logits, document: str, *, number: int = 0, threshold=None, **config):
    return find_answer(
        windows,
        number,
        np.asarray(logits, dtype=np.float32),
        question="?",
        document=document,
        config=SpanConfig(**config),
        threshold=threshold,
    )


def logits_of(windows: QuestionWindows, start: list[float], end: list[float], *, elsewhere: float = 50.0) -> np.ndarray:
    """Scores of one window's document; everything outside of it is made to look best."""
    logits = np.full((int(windows.examples.offsets[-1]), 2), elsewhere, dtype=np.float32)
    logits[windows.document_rows(0)] = np.log(np.stack((start, end), 1))
    return logits


def test_the_lectures_two_rows(tokenizer):
    windows = cut(tokenizer, ["q1 q2"], ["d1 d2 d3"])
    found = answer(windows, logits_of(windows, [0.3, 0.5, 0.2], [0.1, 0.2, 0.7]), "d1 d2 d3")
    assert found.text == "d2 d3" and (found.start, found.end) == (3, 8)
    assert token_span(windows.offsets[0], found.start, found.end) == (1, 2)  # s = 2, e = 3, counted from one
    # Of the spans with s <= e: .3(.1 + .2 + .7) + .5(.2 + .7) + .2 x .7.
    assert found.probability == pytest.approx(0.35 / 0.89) and found.no_answer_difference is None
    assert [span.text for span in found.candidates] == ["d2 d3", "d1 d2 d3", "d3"]


def test_an_answer_never_ends_before_it_begins_nor_is_too_long(tokenizer):
    windows = cut(tokenizer, ["q1"], ["d1 d2 d3"])
    crossed = logits_of(windows, [0.1, 0.1, 0.8], [0.8, 0.1, 0.1])
    assert answer(windows, crossed, "d1 d2 d3").text in ("d1", "d3")
    apart = logits_of(windows, [0.8, 0.1, 0.1], [0.1, 0.1, 0.8])
    assert answer(windows, apart, "d1 d2 d3").text == "d1 d2 d3"
    assert answer(windows, apart, "d1 d2 d3", max_answer_length=2).text != "d1 d2 d3"
    found = answer(windows, apart, "d1 d2 d3", max_answer_length=1, n_best=10)
    assert {span.text for span in found.candidates} == {"d1", "d2", "d3"}
    assert sum(span.probability for span in found.candidates) == pytest.approx(1.0)


def test_no_answer_competes_with_the_best_span(tokenizer):
    windows = cut(tokenizer, ["q1"], ["d1 d2"], no_answer=True)
    logits = np.zeros((int(windows.examples.offsets[-1]), 2))
    logits[windows.document_rows(0)] = [[2.0, 0.0], [0.0, 1.0]]
    logits[0] = [2.0, 2.0]
    spans = np.exp([2.0, 3.0, 1.0]).sum()
    silent = answer(windows, logits, "d1 d2", threshold=0.0)
    assert silent.text == "" and silent.start is None and silent.no_answer_difference == pytest.approx(1.0)
    assert silent.probability == pytest.approx(np.exp(4.0) / (np.exp(4.0) + spans))
    assert silent.candidates[0].text == "d1 d2"
    given = answer(windows, logits, "d1 d2", threshold=1.5)
    assert given.text == "d1 d2" and given.probability == pytest.approx(np.exp(3.0) / (np.exp(4.0) + spans))


def test_windows_cover_the_document_and_share_what_was_asked_for():
    assert window_starts(10, 10, 3) == window_starts(0, 10, 3) == [0]
    assert window_starts(11, 10, 3) == [0, 7] and window_starts(24, 10, 3) == [0, 7, 14]
    assert window_starts(12, 4, 0) == [0, 4, 8]


def test_windows_equal_those_of_hugging_face(wide_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    wide_tokenizer.save(tmp_path)
    questions, documents = ["rain drops or ice?", "within a cloud"], [PRECIPITATION, "snow"]
    theirs = AutoTokenizer.from_pretrained(tmp_path)(
        questions,
        documents,
        truncation="only_second",
        max_length=40,
        stride=9,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = cut(wide_tokenizer, questions, documents, 40, doc_stride=9)
    assert windows.question_of.tolist() == theirs["overflow_to_sample_mapping"] and len(windows) > 3
    for number, ids in enumerate(theirs["input_ids"]):
        batch = windows.batch(np.array([number]))
        assert batch.input_ids.tolist() == ids
        assert batch.token_type_ids.tolist() == theirs["token_type_ids"][number]
        inside = [place for place, kind in enumerate(theirs.sequence_ids(number)) if kind == 1]
        assert batch.answer_mask.nonzero().flatten().tolist() == inside
        rows = windows.offsets[windows.question_of[number]][windows.first_tokens[number] :][: len(inside)]
        assert rows.tolist() == [list(theirs["offset_mapping"][number][place]) for place in inside]


def test_batches_of_windows(tokenizer):
    documents = ["d1 d2 d3 d4 d5 d6 d7 d8 d9", "d5 d6"]
    windows = cut(tokenizer, ["q1 q2", "q3"], documents, 9, no_answer=True, doc_stride=1, max_query_length=3)
    assert windows.first_tokens.tolist() == [0, 3, 6, 0] and windows.document_lengths.tolist() == [4, 4, 3, 2]
    assert [list(windows.windows_of(number)) for number in (0, 1)] == [[0, 1, 2], [3]]
    spans = window_spans(windows, [(3, 4), None], np.array([True, True]))
    # d4 d5 is in the second window alone, behind [CLS] q1 q2 [SEP]; elsewhere [CLS] is right.
    assert spans.tolist() == [[0, 0], [4, 5], [0, 0], [0, 0]]
    batch = windows.batch(np.array([3, 1]), spans)
    decoded = [tokenizer.id_to_token(token) for token in batch.input_ids.tolist()]
    assert decoded[:6] == ["[CLS]", "q3", "[SEP]", "d5", "d6", "[SEP]"]
    masked = [token for token, chosen in zip(decoded, batch.answer_mask.tolist(), strict=True) if chosen]
    assert masked == ["[CLS]", "d5", "d6", "[CLS]", "d4", "d5", "d6", "d7"]
    assert decoded[batch.answer_starts[1]] == "d4" and decoded[batch.answer_ends[1]] == "d5"
    assert batch.answer_starts[0] == batch.answer_ends[0] == 0
    without = cut(tokenizer, ["q1 q2", "q3"], documents, 9, doc_stride=1, max_query_length=3)
    assert window_spans(without, [(3, 4), None], np.array([True, True]))[:, 0].tolist() == [-100, 4, -100, -100]
    unknown = window_spans(windows, [(3, 4), None], np.array([False, True]))
    assert unknown[:, 0].tolist() == [-100, -100, -100, 0]
    assert windows.batch(np.array([0]), unknown).target_counts() == {"answer": 0}
    some = windows.select(np.array([1, 3]))
    again = some.batch(np.array([1, 0]), spans[[1, 3]])
    for name, value in vars(batch).items():
        assert torch.equal(value, vars(again)[name]) if isinstance(value, torch.Tensor) else value == vars(again)[name]
    assert list(some.windows_of(0)) == [0] and some.offsets is windows.offsets


def test_a_long_question_is_cut_and_counted(tokenizer):
    windows = cut(tokenizer, ["q1 q2 q3 q4", "q1"], ["d1", "d2"], 12, max_query_length=2)
    assert windows.examples.first_lengths.tolist() == [4, 3] and windows.examples.num_truncated == 1


def test_the_best_span_over_windows_is_in_the_window_that_scores_it_highest(tokenizer):
    document = " ".join(LETTERS[:9])
    windows = cut(tokenizer, ["q1 q2"], [document], 9, no_answer=True, doc_stride=2, max_query_length=2)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(int(windows.examples.offsets[-1]), 2))
    expected, nothing = {}, []
    for window in windows.windows_of(0):
        rows, first = logits[windows.document_rows(window)], windows.first_tokens[window]
        nothing.append(logits[windows.examples.offsets[window]].sum())
        for s in range(len(rows)):
            for e in range(s, min(len(rows), s + 3)):
                key, score = (first + s, first + e), rows[s, 0] + rows[e, 1]
                expected[key] = max(score, expected.get(key, -np.inf))
    scores = span_scores(windows, 0, logits, 3)
    found = {(s, s + k): scores[s, k] for s, k in np.argwhere(np.isfinite(scores))}
    assert found == pytest.approx(expected) and no_answer_score(windows, 0, logits) == pytest.approx(min(nothing))
    best = answer(windows, logits, document, max_answer_length=3, n_best=1000)
    (s, e), score = max(expected.items(), key=lambda pair: pair[1])
    assert best.text == " ".join(LETTERS[s : e + 1])
    assert len(best.candidates) == len(expected) and best.no_answer_difference == pytest.approx(
        min(nothing) - score, 1e-5
    )
    total = np.exp([*expected.values(), min(nothing)]).sum()
    assert best.probability == pytest.approx(np.exp(score) / total, rel=1e-5)


def test_gravity_and_within_a_cloud_as_words_of_the_passage():
    """The lecture's (17, 17) and (77, 79), words counted from one; as many stand for the points as were left out."""
    missing = 77 - 1 - len(PRECIPITATION[: PRECIPITATION.index("within a cloud")].split())
    passage = PRECIPITATION.replace("hail...", "hail." + " more" * missing)
    words = np.array([match.span() for match in re.finditer(r"\S+", passage)])
    for text, first, last in (("gravity", 17, 17), ("within a cloud", 77, 79)):
        start = passage.index(text)
        assert token_span(words, start, start + len(text)) == (first - 1, last - 1)
        assert passage[words[first - 1, 0] : words[last - 1, 1]].rstrip(".") == text


@pytest.mark.parametrize("text", ["gravity", "within a cloud", "“showers”", "In", ".", "graupel and hail..."])
def test_spans_of_the_passage_to_tokens_and_back(wide_tokenizer, text):
    (_, offsets), start = wide_tokenizer.encode_with_offsets([PRECIPITATION])[0], PRECIPITATION.index(text)
    first, last = token_span(offsets, start, start + len(text))
    assert PRECIPITATION[offsets[first, 0] : offsets[last, 1]] == text


def test_chinese_is_cut_per_character(wide_tokenizer):
    text = "今天買了蘋果手機，蘋果獲新Face ID專利。"
    ids, offsets = wide_tokenizer.encode_with_offsets([text])[0]
    start = text.rindex("蘋果")
    first, last = token_span(offsets, start, start + 2)
    assert last == first + 1 and [text[a:b] for a, b in offsets[first : last + 1]] == ["蘋", "果"]
    assert len(ids) == len(offsets) and token_span(offsets, text.index(" "), text.index(" ") + 1) is None


@pytest.mark.parametrize(
    ("name", "most_widened"), [("xquad/xquad.en.json", 1), ("xquad/xquad.zh.json", 0), ("drcd/DRCD_dev.json", 3)]
)
def test_real_answers_are_found_as_tokens_and_come_back_as_text(test_data, name, most_widened):
    """Only answers that begin or end inside a token, such as "8" of "80", come back wider."""
    file = read_squad(test_data / name)
    tokenizer = Tokenizer.load(test_data / "tokenizers" / "bert-base-uncased")
    windows = cut_windows(
        tokenizer,
        [one.text for one in file.questions],
        file.documents,
        [one.document for one in file.questions],
        max_seq_length=384,
        config=WindowConfig(),
        allows_no_answer=False,
    )
    located = locate_answers(windows, file.questions, file.documents)
    assert located.num_lost == located.num_moved == 0
    widened = 0
    for question, (first, last), offsets in zip(file.questions, located.spans, windows.offsets, strict=True):
        found = file.documents[question.document][offsets[first, 0] : offsets[last, 1]]
        assert question.answers[0].text in found
        widened += found != question.answers[0].text
    assert widened == most_widened


def test_documents_that_have_no_tokens_are_not_answered_from(tokenizer):
    windows = cut(tokenizer, ["q1"], ["\u0007"])
    found = answer(windows, np.zeros((int(windows.examples.offsets[-1]), 2)), "\u0007")
    assert found.text == "" and found.candidates == () and found.probability == 0.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"doc_stride": -1}, "doc_stride must be at least 0, got -1"),
        ({"max_query_length": 0}, "max_query_length must be at least 1, got 0"),
        ({"doc_stride": 20}, "doc_stride=20 must be below 17, which max_seq_length=30 leaves .* max_query_length=10"),
        ({"max_query_length": 28}, "must be below 0"),
    ],
)
def test_sizes_that_do_not_fit_are_told(tokenizer, config, message):
    with pytest.raises(ValueError, match=message):
        cut(tokenizer, ["q1"], ["d1"], **config)


def test_lengths_of_answers_are_checked():
    with pytest.raises(ValueError, match="max_answer_length must be at least 1, got 0"):
        SpanConfig(max_answer_length=0)
    with pytest.raises(ValueError, match="n_best must be at least 1, got 0"):
        SpanConfig(n_best=0)


def test_the_rows_of_a_batch_are_those_of_the_model(tokenizer):
    """The mask reaches the model's loss: a token of the question can never be the answer."""
    windows = cut(tokenizer, ["q1 q2"], ["d1 d2 d3"])
    spans = window_spans(windows, [(1, 2)], np.array([True]))
    batch = windows.batch(np.array([0]), spans)
    assert batch.answer_mask.sum() == 3 and torch.equal(batch.answer_mask[batch.answer_starts], torch.tensor([True]))
