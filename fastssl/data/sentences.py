"""Sentences of a text, by rules that serve English, Chinese and their neighbours."""

from __future__ import annotations

import re

_CLOSERS = r"\"'”’»)\]}」』）》〉】］"

_WIDE = "。！？｡।॥؟۔։።៕။"
_NARROW = ".!?…‼⁇⁈⁉"

# Marks of scripts that need no space behind a sentence, and marks that only count before white space. A match begins
# where a run of marks begins, or else a long run that ends no sentence would be tried from each of its characters.
_BOUNDARY = re.compile(
    rf"(?P<wide>(?<![{_WIDE}])[{_WIDE}]+[{_CLOSERS}]*(?![{_WIDE}{_CLOSERS}，、；：,;]))"
    rf"|(?P<narrow>(?<![{_NARROW}])[{_NARROW}]+[{_CLOSERS}]*)(?=\s)"
)
_NEXT_WORD = re.compile(r"\s+[\"'“‘«(\[{「『（《¡¿—–-]*\s*(?P<word>\w[\w’']*)?")
_LAST_WORD = re.compile(r"[^\s(\[{\"“‘「『（]*\Z")
_LINE = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_LOOK_BACK_CHARACTERS = 40

RULES_VERSION = 1


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_LAST = _words(
    "mr mrs ms mx dr prof rev hon gen col capt cmdr lt sgt cpl pvt gov sen rep amb ste messrs mme mlle "
    "vs v cf viz eg e.g ie i.e ca approx z.b d.h u.a bzw dipl ing"
)
_LAST_UNLESS_NUMBER_FOLLOWS = _words(
    "no nos vol vols p pp ch chap sec fig figs eq eqs art op nr jan feb mar apr jun jul aug sep sept oct nov dec"
)
_LAST_IF_STARTER_FOLLOWS = _words(
    "etc al jr sr st mt ft esq inc ltd co corp bros dept univ assn ave blvd rd maj ed eds ph.d m.d b.a m.a d.c u.s u.k "
    "u.n e.u u.s.a a.m p.m a.d b.c b.c.e c.e usw"
)
_STARTERS = _words(
    "the a an this that these those he she it we you they i there here his her its our their my your in on at by for "
    "from with to of as but and or so yet nor if when while after before since although though because however then "
    "thus therefore what who where why how is are was were do does did no not one some many most all"
)
_INITIAL = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]\Z")


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences; every line end is a boundary too.

    A run of ``。！？`` (and the full stops of Devanagari, Arabic, Armenian, Ethiopic, Khmer and Burmese) ends a
    sentence wherever it stands, with the quotes and brackets that close behind it. A run of ``.!?…`` does so before
    white space, unless the next word starts with a lower-case letter, or the full stop belongs to an abbreviation
    (Dr.), an initial (J. Smith) or the number of a list (1. Item). Abbreviations that often end a sentence (etc.,
    U.S.) do so when a common first word (The, He, But) follows.

    Args:
        text: Any text.

    Returns:
        The sentences in order, stripped, none empty. Their characters, white space left out, are those of the text.
    """
    sentences = []
    for line in _LINE.split(text):
        start = 0
        for match in _BOUNDARY.finditer(line):
            if match["wide"] or _ends_sentence(line, match, start):
                sentences.append(line[start : match.end()].strip())
                start = match.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends_sentence(line: str, match: re.Match[str], start: int) -> bool:
    following = _NEXT_WORD.match(line, match.end())
    word = (following and following["word"]) or ""
    if word[:1].islower():
        return False
    if match["narrow"][0] != "." or match["narrow"].startswith(".."):
        return True
    back = max(start, match.start() - _LOOK_BACK_CHARACTERS)
    last = _LAST_WORD.search(line, back, match.start())[0].lower()
    if last in _NEVER_LAST or (last.isdigit() and not line[start : match.start() - len(last)].strip()):
        return False
    if last in _LAST_UNLESS_NUMBER_FOLLOWS:
        return not word[:1].isdigit()
    if last in _LAST_IF_STARTER_FOLLOWS or _INITIAL.match(last):
        another_initial = line.startswith(".", following.end()) if following else False
        return word.lower() in _STARTERS and not another_initial
    return True
