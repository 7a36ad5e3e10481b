"""Figures with letters that matplotlib's usual font does not have."""

import warnings
from pathlib import Path

import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastssl.tasks import figure_file
from fastssl.tasks.figure_file import write_figure

USUAL = font_manager.findfont(font_manager.FontProperties())
CHINESE = "由地球引力造成"


def figure_of(title: str) -> Figure:
    figure = Figure(figsize=(2, 2))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xticks([0, 1], [title, "b"])
    return figure


@pytest.fixture(autouse=True)
def forgotten():
    figure_file._families_with.cache_clear()
    figure_file._letters_of.cache_clear()
    yield
    figure_file._families_with.cache_clear()
    figure_file._letters_of.cache_clear()


def test_no_font_is_looked_for_without_need(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(figure_file, "_families_with", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_figure(figure_of("plain, é\n"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_no_font_has_is_told_once(tmp_path: Path, monkeypatch):
    fonts = [font for font in font_manager.fontManager.ttflist if "DejaVu" in font.name or "Last" in font.name]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    with pytest.warns(UserWarning) as told:
        write_figure(figure_of(CHINESE * 3 + "也没有别的字"), tmp_path / "a.png")
    (message,) = (str(one.message) for one in told)
    assert "no installed font has the letters" in message and "... " not in message and "Noto Sans CJK" in message
    assert (tmp_path / "a.png").stat().st_size


def test_a_font_that_has_the_letters_is_taken(tmp_path: Path, monkeypatch):
    # Whatever is installed here: matplotlib's own STIX has what is left out of the usual font.
    letters_of = figure_file._letters_of

    def without_greek(file: str) -> frozenset[str]:
        return letters_of(file) - ({"α", "β"} if file == USUAL else set())

    monkeypatch.setattr(figure_file, "_letters_of", without_greek)
    figure = figure_of("αβ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_figure(figure, tmp_path / "a.png")
    families = figure.axes[0].title.get_fontfamily()
    assert families[0] == "sans-serif" and len(families) == 2
    chosen = font_manager.findfont(font_manager.FontProperties(family=families[1]))
    assert chosen != USUAL and {"α", "β"} <= letters_of(chosen)
    assert figure.axes[0].get_xticklabels()[0].get_fontfamily() == families
