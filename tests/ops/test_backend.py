"""Choices that are looked up: what was answered before, until something that the answer depends on has changed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastssl import extension
from fastssl.ops import backend
from fastssl.ops.backend import Supports, remembered_choice

CPU = torch.device("cpu")


@pytest.fixture
def asked(monkeypatch) -> list:
    """The questions that were not looked up."""
    monkeypatch.setattr(backend, "_answers", {})
    questions, choose = [], backend.choose

    def counted(*question):
        questions.append(question)
        return choose(*question)

    monkeypatch.setattr(backend, "choose", counted)
    return questions


@pytest.fixture
def backends() -> dict:
    narrow = Supports(dtypes=(torch.float32,), refuses={"it is wide": lambda width: width > 8})
    return {"narrow": SimpleNamespace(SUPPORTS=narrow), "any": SimpleNamespace(SUPPORTS=Supports())}


def choice(backends, requested="auto", dtype=torch.float32, width=8) -> str:
    return remembered_choice("op", requested, backends, CPU, dtype, {"width": width})


def test_a_question_is_answered_once(asked, backends):
    assert [choice(backends) for _ in range(3)] == 3 * ["narrow"]
    assert len(asked) == 1


def test_another_question_has_its_own_answer(asked, backends):
    for _ in range(2):
        assert choice(backends) == "narrow"
        assert choice(backends, width=9) == choice(backends, dtype=torch.bfloat16) == "any"
        assert choice(backends, "any") == "any"
    assert len(asked) == 4


def test_a_refusal_is_told_each_time(asked, backends):
    for _ in range(2):
        with pytest.raises(ValueError, match="op: backend='narrow' cannot run this call: it is wide"):
            choice(backends, "narrow", width=9)


def test_another_fact_sheet_is_another_question(asked, backends):
    assert choice(backends) == "narrow"
    backends["any"].SUPPORTS = replace(backends["any"].SUPPORTS, first_on=("cpu",))
    assert choice(backends) == "any"
    assert choice({"any": backends["any"]}) == "any"
    backends["any"].SUPPORTS = replace(backends["any"].SUPPORTS, first_on=())
    assert choice(backends) == "narrow"
    assert choice(dict(reversed(backends.items()))) == "any"


def test_what_a_fact_sheet_asks_may_change(asked, backends, monkeypatch):
    backends["narrow"].SUPPORTS = replace(backends["narrow"].SUPPORTS, needs_cpu_ops=True)
    monkeypatch.setattr(extension, "cpu_ops_loaded", lambda: True)
    assert choice(backends) == "narrow"
    monkeypatch.setattr(extension, "cpu_ops_loaded", lambda: False)
    assert choice(backends) == "any"


def test_answers_do_not_pile_up(asked, backends, monkeypatch):
    monkeypatch.setattr(backend, "_MOST_ANSWERS", 4)
    for width in range(20):
        assert choice(backends, width=width) == ("narrow" if width <= 8 else "any")
        assert len(backend._answers) <= 4


def test_a_symbolic_size_is_asked_for_each_time(asked, backends):
    class Symbolic(int):
        __hash__ = None

    assert [choice(backends, width=Symbolic(9)) for _ in range(2)] == ["any", "any"]
    assert len(asked) == 2
