"""Exact match and F1 against cases worked out by hand."""

import math

import pytest

from fastssl.tasks.question_answering.scores import ScoredAnswer, answer_scores, exact_match, f1_score, is_per_character


def answer(text: str, *gold: str, difference: float = -math.inf) -> ScoredAnswer:
    return ScoredAnswer(text=text, gold=gold, no_answer_difference=difference)


@pytest.mark.parametrize(
    ("text", "gold", "same", "f1"),
    [
        ("gravity", "Gravity.", True, 1.0),
        ("the cloud", "a  cloud", True, 1.0),
        ("within a cloud", "cloud", False, 2 / 3),
        ("rain rain snow", "rain snow snow", False, 2 / 3),  # rain and snow are common once each
        ("cloud", "gravity", False, 0.0),
        ("", "gravity", False, 0.0),
        ("the", "a", True, 1.0),  # nothing is left of either
        ("U.S.", "us", True, 1.0),
        ("another", "other", False, 0.0),  # "an" inside a word is no article
        ("10–15", "1015", False, 0.0),  # only ASCII punctuation is dropped, as in SQuAD's script
    ],
)
def test_words(text, gold, same, f1):
    assert exact_match(text, gold) is same
    assert f1_score(text, gold) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "gold", "same", "f1"),
    [
        ("台灣大學", "台灣大學", True, 1.0),
        ("台灣大學", "大學", False, 2 * 2 / 6),
        ("「大學」。", "大 學", True, 1.0),
        ("308分", "308", False, 2 / 3),  # 308 stays one word
        ("the 大學", "大學", False, 2 * 2 / 5),
    ],
)
def test_characters(text, gold, same, f1):
    assert exact_match(text, gold, per_character=True) is same
    assert f1_score(text, gold, per_character=True) == pytest.approx(f1)


def test_the_language_is_told_by_most_letters_of_the_answers():
    assert is_per_character(["台灣", "308", "NBA 球員是誰"])
    assert is_per_character(["とうきょう"])
    assert not is_per_character(["308", "gravity", "the 道 (way)"])
    assert not is_per_character([])
    assert answer_scores([answer("大學", "台灣大學")], math.inf)["f1"] == pytest.approx(2 / 3)
    assert answer_scores([answer("大學", "台灣大學")], math.inf, per_character=False)["f1"] == 0.0


def test_the_best_of_several_right_answers_counts():
    found = answer_scores(
        [answer("cloud", "a big cloud", "clouds", "the cloud"), answer("rain drops", "rain", "ice")], math.inf
    )
    assert found == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}


def test_questions_without_an_answer():
    answers = [
        answer("cloud", "cloud", difference=-3.0),  # answered, right
        answer("rain drops", "rain", difference=-1.0),  # answered, half right
        answer("ice", "ice", difference=1.0),  # nothing is said, wrong
        answer("snow", difference=2.0),  # nothing is said, right
        answer("hail", difference=-2.0),  # answered, wrong
    ]
    found = answer_scores(answers, 0.0)
    assert found["exact_match"] == pytest.approx(2 / 5) and found["f1"] == pytest.approx((1 + 2 / 3 + 1) / 5)
    assert found["has_answer_exact_match"] == pytest.approx(1 / 3)
    assert found["has_answer_f1"] == pytest.approx((1 + 2 / 3) / 3)
    assert found["no_answer_accuracy"] == 0.5
    # In order of the difference: 2 points for silence, +1 at -3, -1 at -2, +2/3 at -1, +1 at 1, -1 at 2.
    assert found["best_f1"] == pytest.approx((2 + 1 - 1 + 2 / 3 + 1) / 5) and found["best_f1_threshold"] == 1.5
    assert answer_scores(answers, found["best_f1_threshold"])["f1"] == pytest.approx(found["best_f1"])


def test_questions_of_one_difference_are_answered_together():
    answers = [answer("cloud", "cloud", difference=1.0), answer("snow", difference=1.0), answer("ice", difference=2.0)]
    found = answer_scores(answers, 0.0)
    assert found["best_f1"] == pytest.approx(2 / 3) and found["best_f1_threshold"] == 0.0
    assert answer_scores(answers, 1.0)["f1"] == pytest.approx(2 / 3)


def test_the_best_threshold_may_be_silence():
    answers = [answer("cloud", "rain", difference=-1.0), answer("snow", difference=0.0)]
    found = answer_scores(answers, 5.0)
    assert found["f1"] == 0.0 and found["best_f1"] == 0.5
    assert answer_scores(answers, found["best_f1_threshold"])["f1"] == 0.5


def test_a_model_that_always_answers_has_no_threshold():
    found = answer_scores([answer("cloud", "cloud"), answer("snow")], math.inf)
    assert found["f1"] == 0.5 and found["no_answer_accuracy"] == 0.0 and "best_f1" not in found
