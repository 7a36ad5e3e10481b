"""How good answers are: exact match and F1, as SQuAD measures them, in Chinese and Japanese per character.

Source: Rajpurkar, Zhang, Lopyrev and Liang 2016 (1606.05250) §6.1; with questions that have no answer: Rajpurkar, Jia
and Liang 2018 (1806.03822) §5; characters as tokens: Shao et al. 2018 (1806.00920) §4.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_IDEOGRAPH = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"  # kana, and ideographs of all blocks
)


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """The best span for a question, to be scored."""

    text: str
    """The best span, whether or not it is what is answered."""
    gold: tuple[str, ...]
    """What is right; empty where the document does not answer the question."""
    no_answer_difference: float
    """Score of no answer less that of the best span; -inf where no answer is not allowed."""


def answer_scores(
    answers: Sequence[ScoredAnswer], threshold: float, *, per_character: bool | None = None
) -> dict[str, float]:
    """Return "exact_match" and "f1", means over the questions between 0 and 1.

    Where some questions have no answer, also "has_answer_exact_match" and "has_answer_f1" over those that have one,
    "no_answer_accuracy" over the others, and, if the model may say that there is none, the F1 that the best threshold
    would give ("best_f1", "best_f1_threshold", chosen on these very questions).

    Args:
        answers: at least one.
        threshold: no answer is given where `no_answer_difference` is above it.
        per_character: whether F1 counts characters; None: as `is_per_character` tells from the gold answers.
    """
    if per_character is None:
        per_character = is_per_character(gold for one in answers for gold in one.gold)
    of_spans = np.array([_best_scores(one.text, one.gold, per_character) for one in answers])
    differences = np.array([one.no_answer_difference for one in answers])
    answered, answerable = differences <= threshold, np.array([bool(one.gold) for one in answers])
    # Saying nothing is right where there is no answer, and wrong elsewhere.
    given = np.where(answered[:, None], of_spans, ~answerable[:, None])
    exact, f1 = given.mean(0).tolist()
    found = {"exact_match": exact, "f1": f1}
    if answerable.all():
        return found
    if answerable.any():
        exact, f1 = given[answerable].mean(0).tolist()
        found |= {"has_answer_exact_match": exact, "has_answer_f1": f1}
    found["no_answer_accuracy"] = float(given[~answerable, 0].mean())
    if np.isneginf(differences).any():
        return found
    best, best_threshold = _best_threshold(of_spans[:, 1], differences, answerable)
    return found | {"best_f1": best, "best_f1_threshold": best_threshold}


def is_per_character(answers: Iterable[str]) -> bool:
    """Whether most letters of the answers are ideographs or kana, as in Chinese and Japanese."""
    letters = [letter for answer in answers for letter in answer if letter.isalpha()]
    return 2 * sum(bool(_IDEOGRAPH.match(letter)) for letter in letters) > len(letters)


def exact_match(text: str, gold: str, *, per_character: bool = False) -> bool:
    """Whether two answers are the same but for case, punctuation, white space and English articles."""
    return _tokens(text, per_character) == _tokens(gold, per_character)


def f1_score(text: str, gold: str, *, per_character: bool = False) -> float:
    """Return the harmonic mean of the shares of common words: of one answer's, and of the other's.

    Words are compared as in `exact_match`; every ideograph is a word of its own where `per_character` is set.
    """
    one, other = _tokens(text, per_character), _tokens(gold, per_character)
    if not one or not other:
        return float(one == other)
    common = (Counter(one) & Counter(other)).total()
    return 2 * common / (len(one) + len(other))


def _best_scores(text: str, gold: Sequence[str], per_character: bool) -> tuple[float, float]:
    """Return exact match and F1 with the most favourable of several right answers."""
    exact = max((float(exact_match(text, one, per_character=per_character)) for one in gold), default=0.0)
    return exact, max((f1_score(text, one, per_character=per_character) for one in gold), default=0.0)


def _tokens(text: str, per_character: bool) -> list[str]:
    text = text.lower()
    if not per_character:
        without = "".join(letter for letter in text if letter not in string.punctuation)
        return _ARTICLES.sub(" ", without).split()
    without = "".join(letter for letter in text if not _is_punctuation(letter))
    return _IDEOGRAPH.sub(r" \g<0> ", without).split()


def _is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def _best_threshold(f1: np.ndarray, differences: np.ndarray, answerable: np.ndarray) -> tuple[float, float]:
    """Return the best mean F1 that a threshold can give, and that threshold.

    Raising it to a question's difference answers that question: it gains the span's F1, or loses the point for rightly
    saying nothing. Between two questions the middle is taken.
    """
    order = np.argsort(differences, kind="stable")
    ranked = differences[order]
    sums = np.concatenate(([0.0], np.cumsum(np.where(answerable, f1, -1.0)[order]))) + (~answerable).sum()
    # Questions of the same difference are answered together.
    sums[1:-1][ranked[1:] == ranked[:-1]] = -np.inf
    best = int(sums.argmax())
    threshold = ranked[max(best, 1) - 1]
    if best == 0:
        threshold -= 1.0
    elif best < len(ranked) and np.isfinite(ranked[best]):
        threshold = (threshold + ranked[best]) / 2
    return float(sums[best] / len(f1)), float(threshold)
