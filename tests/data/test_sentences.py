"""Sentence splitting: nothing is lost, and the boundaries are those that a reader would set."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastssl.data.sentences import split_sentences

_FRAGMENTS = st.sampled_from(
    [
        "Dr",
        ".",
        "...",
        "…",
        "U.S.",
        " ",
        "\n",
        "。",
        "！？",
        "」",
        '"',
        "A",
        "the",
        "3.14",
        "1",
        ",",
        "，",
        "\u3000",
        "x",
    ]
)


@given(st.one_of(st.text(), st.lists(_FRAGMENTS).map("".join)))
@example("a\x85b\u2028c.\x1c D")
def test_characters_are_kept(text: str):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)
    assert not any("\n" in sentence for sentence in sentences)


@given(st.lists(_FRAGMENTS).map("".join))
def test_a_sentence_of_one_line_is_cut_no_further_by_its_line_end(text: str):
    line = text.replace("\n", " ")
    assert split_sentences(line + "\n") == split_sentences(line)


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. Smith met J. R. R. Tolkien.", "He left."],
        ["I saw it in the U.S.", "The end."],
        ["In the U.S. Army he served until Jan. 5, 1990.", "Then he left at 5 p.m.", "It was late."],
        ["Pi is 3.14.", "Is it?", "Yes!", "Really?!", "Good."],
        ['"What?" he said.', '"No!"', "She left."],
        ["“Where?”", "“There.”", "(It was so.)", "Good."],
        ["Wait... what?", "Then it ended...", "Nobody spoke."],
        ["Wait… what?", "It ended…", "Nobody spoke."],
        ["1. First item.", "Next sentence."],
        ["He said no.", "See Fig. 3 and No. 5, i.e. The Figure.", "He sat.", "It was 5."],
        ["Homarus is a species .", "It may grow .", '" Lobster red " on cooking .'],
        ["bats, cats, etc. were there, etc.", "The rest left."],
        ["他說：「好。」", "然後走了。", "真的嗎？！", "是的……也許吧。"],
        ["老饕都知道智利的蘋果季節即將到來！", "每公斤下跌12.3%。", "iPhone 5.0發表。"],
        ["“再见！”，她说。", "“你好。”", "他走了。"],
        ["नमस्ते।", "आप कैसे हैं।"],
        ["هل أنت هنا؟", "نعم۔"],
        ["Der Preis, z.B. 3.50 Euro, stieg.", "Gut."],
        ["¿Qué?", "¡Nada!", "«Bien.»", "Adiós."],
    ],
)
def test_boundaries(sentences: list[str]):
    chinese = any("\u4e00" <= c <= "\u9fff" for c in sentences[0])
    assert split_sentences(("" if chinese else " ").join(sentences)) == sentences


def test_line_ends_are_boundaries():
    assert split_sentences("no stop here\r\nnor here\n\n  and there.\u2028Last") == [
        "no stop here",
        "nor here",
        "and there.",
        "Last",
    ]


@pytest.mark.parametrize("end", ["x", "，"])
def test_long_runs_of_marks_take_linear_time(end: str):
    for mark in ".!。？":
        text = mark * 200_000 + end
        assert "".join(split_sentences(text)) == text


def test_nothing():
    assert split_sentences(" \n\u3000\t ") == []


@pytest.mark.parametrize("name", ["kjv.txt", "moby_dick.txt", "wikitext2.valid.txt", "wikitext2.test.txt"])
def test_real_text_is_kept(test_data: Path, name: str):
    text = (test_data / "corpus" / name).read_text(encoding="utf-8")
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert len(sentences) > sum(1 for line in text.split("\n") if line.strip())


def test_universal_dependencies_sentences(test_data: Path):
    """Most of the sentences that annotators set in running prose are found again."""
    lines = (test_data / "ud_en_ewt" / "en_ewt-ud-dev.conllu").read_text(encoding="utf-8").split("\n")
    gold = [line.removeprefix("# text = ").strip() for line in lines if line.startswith("# text = ")]
    prose = [s for s in gold if s[0].isupper() and s[-1] in ".!?"]
    found = set(split_sentences(" ".join(prose)))
    assert sum(sentence in found for sentence in prose) / len(prose) > 0.9
