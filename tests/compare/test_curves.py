"""How rows of charts are told apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import upvit_mm.compare.page
from upvit_mm.compare.curves import COLOURS, plot_runs, range_over, set_percent_axis, style_of

CSS = Path(upvit_mm.compare.page.__file__).with_name('page.css').read_text(encoding='utf-8')


def luminance(colour: str) -> float:
    """Relative, of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(*colours: str) -> float:
    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def test_colours_show_on_the_light_and_the_dark_page():
    assert contrast('black', 'white') == pytest.approx(21)
    assert contrast('#ff7f0e', '#fdfcfa') == pytest.approx(2.47, abs=0.01)
    papers = re.findall(r'--paper: (#\w{6});', CSS)
    assert papers[:2] == ['#fdfcfa', '#14171b']
    assert min(contrast(colour, paper) for colour in COLOURS for paper in papers[:2]) >= 3


def test_rows_differ_in_grey():
    styles = [style_of(k) for k in range(28)]
    assert len({(style['marker'], style['linestyle']) for style in styles}) == 28
    assert len({style['marker'] for style in styles[:7]}) == 7
    assert ':' not in {style['linestyle'] for style in styles}


def test_curves():
    axes = Figure().subplots()
    for k in (0, 1):
        plot_runs(axes, [[None, 1.0, 3.0], [None, 2.0, None]], k, f'row {k}')
    first, second = axes.lines
    assert first.get_xdata().tolist() == [2, 3]
    assert first.get_ydata().tolist() == [1.5, 3.0]
    assert (first.get_marker(), first.get_linestyle()) == ('o', '-')
    assert (second.get_marker(), second.get_linestyle()) == ('s', '--')
    assert [handle.get_label() for handle in axes.lines] == ['row 0', 'row 1']


@pytest.mark.parametrize(('epochs', 'every'), [(1, 1), (12, 1), (13, 2), (200, 17)])
def test_many_epochs_leave_the_dashes_visible(epochs, every):
    axes = Figure().subplots()
    plot_runs(axes, [[1.0] * epochs], 0, 'row')
    assert axes.lines[0].get_markevery() == every


@pytest.mark.parametrize(
    ('values', 'ticks'),
    [
        ((12.5, 18.6, 19.3), [12, 14, 16, 18, 20]),
        ((41.2, 41.3), [40, 40.5, 41, 41.5, 42, 42.5]),  # 0.1 is noise, and does not fill the chart
        ((0.0, 0.0), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((17.34,), [16, 16.5, 17, 17.5, 18, 18.5]),
        ((99.2, 100.0), [98.5, 99, 99.5, 100]),
        ((3.0, 96.0), [0, 20, 40, 60, 80, 100]),
    ],
)
def test_round_numbers_within_a_hundred_percent(values, ticks):
    axes = Figure().subplots()
    axes.plot(values, 'o')
    set_percent_axis(axes)
    low, high = axes.get_ylim()
    found = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert found == pytest.approx(ticks)
    assert (low, high) == (pytest.approx(ticks[0]), pytest.approx(ticks[-1]))
    assert 0 <= low <= min(values) <= max(values) <= high <= 100


def test_one_seed_has_no_range():
    assert range_over([0]) == ''
    assert range_over([0, 1]) == ', mean and range over seeds'
