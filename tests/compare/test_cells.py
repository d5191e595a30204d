"""How the numbers of comparisons are written."""

from __future__ import annotations

import pytest

from upvit_mm.compare.cells import Code, Count, Difference, Figure, Latency, Memory

NAN, MINUS, DASH = float('nan'), '\N{MINUS SIGN}', '\N{EN DASH}'
NOTHING = f'<span class="none">{DASH}</span>'
CELLS = {
    'with spread': (Figure.of(0.4, 0.01, 1, 100), '40.0 ± 1.0', '40.0<small> ± 1.0</small>'),
    'negative': (Figure(-0.5, digits=2), '-0.50', f'{MINUS}0.50'),
    'unknown': (Figure.of(NAN, NAN), '-', NOTHING),
    'not defined': (Figure.of(None, unknown='not defined'), 'not defined', NOTHING),
    'loss': (
        Difference(-1.0, (-1.25, -0.75), True, 2),
        '**-1.00 [-1.25, -0.75]**',
        f'<strong>{MINUS}1.00</strong><small> [{MINUS}1.25, {MINUS}0.75]</small>',
    ),
    'not established': (
        Difference(1, (-1, 3), False),
        '+1.0 [-1.0, +3.0]',
        f'+1.0<small> [{MINUS}1.0, +3.0]</small>',
    ),
    'one seed': (Difference(5.4, None, None), '+5.4 (one seed)', '+5.4<small> one seed</small>'),
    'no pair': (Difference(None, None, None), '-', NOTHING),
    'count': (Count(2_000_000, 'G', share=25.0), '0.002 G', '2.00 M<small> 25.0 %</small>'),
    'unknown count': (Count(None), '-', DASH),
    'latency': (Latency(0.02, 0.0151, 0.0349), '20.0 (15.1-34.9)', f'20.0 <small>15.1{DASH}34.9</small>'),
    'memory': (Memory(3 * 2**20 + 2**19), '4', '3.5'),
    'code': (Code('a<b'), '`a<b`', '<code>a&lt;b</code>'),
}


@pytest.mark.parametrize('name', CELLS)
def test_texts(name):
    cell, markdown, html = CELLS[name]
    assert (cell.markdown(), str(cell.html())) == (markdown, html)
