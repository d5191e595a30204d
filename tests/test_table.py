"""One table in three formats."""

from __future__ import annotations

import csv
import io

from markupsafe import Markup

from upvit_mm.table import Group, Table


class Half:
    """A cell of its own."""

    def markdown(self) -> str:
        return '**1/2**'

    def html(self) -> Markup:
        return Markup('<b>&frac12;</b>')


TABLE = Table(
    ['name', Group('<both>', ['a', 'b']), 'c'], [['x & y', Half(), 0.1 + 0.2, None], ['z', 'text', 3, Half()]]
)


def test_markdown():
    assert TABLE.markdown() == [
        '| name | a | b | c |',
        '|---|---:|---:|---:|',
        '| x & y | **1/2** | 0.30000000000000004 |  |',
        '| z | text | 3 | **1/2** |',
    ]
    assert Table(['alone'], []).markdown() == ['| alone |', '|---|']


def test_csv_has_numbers_in_full():
    lines = list(csv.reader(io.StringIO(Table(TABLE.header, [['x, "y"', 0.1 + 0.2, None, True]]).csv())))
    assert lines == [['name', 'a', 'b', 'c'], ['x, "y"', repr(0.1 + 0.2), '', 'True']]


def test_html():
    head, lower, *body = TABLE.html().splitlines()
    assert head == (
        '<thead><tr><th scope="col" rowspan="2">name</th><th scope="colgroup" colspan="2">&lt;both&gt;</th>'
        '<th scope="col" rowspan="2">c</th></tr>'
    )
    assert lower == '<tr><th scope="col">a</th><th scope="col">b</th></tr></thead>'
    assert body[1].startswith('<tr><th scope="row">x &amp; y</th><td><b>&frac12;</b></td><td>0.30000000000000004</td>')
    assert body[1].endswith('<td><span class="none">\N{EN DASH}</span></td></tr>')
    assert (
        Table(['one', 'two'], []).html().startswith('<thead><tr><th scope="col">one</th><th scope="col">two</th></tr>')
    )
