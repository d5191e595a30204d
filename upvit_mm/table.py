"""A table of a report: written as Markdown, as CSV, and as HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from markupsafe import Markup, escape

NOTHING = Markup('<span class="none">\N{EN DASH}</span>')  # an unknown value in HTML


class Cell(Protocol):
    """A value that formats itself. Text and plain numbers need no such class; None is an empty cell."""

    def markdown(self) -> str: ...

    def html(self) -> Markup: ...


@dataclass(frozen=True)
class Group:
    """Columns under a common title, which only HTML shows."""

    title: str
    columns: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table. The first column has the names of the rows, left-aligned; the others have values, right-aligned.

    Attributes:
        header: names of the columns; they may be in groups.
        rows: each row has one ``Cell``, text, number or None for every column.
    """

    header: Sequence[str | Group]
    rows: Sequence[Sequence[Any]]

    @property
    def columns(self) -> list[str]:
        """Names of the columns, one after another."""
        return [name for entry in self.header for name in (entry.columns if isinstance(entry, Group) else [entry])]

    def texts(self) -> list[list[str]]:
        """The cells as Markdown."""
        return [[_markdown(cell) for cell in row] for row in self.rows]

    def markdown(self) -> list[str]:
        """The lines of the table."""
        head, *body = (f'| {" | ".join(row)} |' for row in [self.columns, *self.texts()])
        return [head, f'|---|{"---:|" * (len(self.columns) - 1)}', *body]

    def csv(self) -> str:
        """CSV text with one line per row, numbers with all digits."""
        text = io.StringIO()
        csv.writer(text, lineterminator='\n').writerows([self.columns, *self.rows])
        return text.getvalue()

    def html(self) -> Markup:
        """``thead`` and ``tbody``; the page adds the caption and the table element."""
        body = Markup('\n').join(_row(first, cells) for first, *cells in self.rows)
        return Markup('<thead>{}</thead>\n<tbody>\n{}\n</tbody>').format(self._head(), body)

    def _head(self) -> Markup:
        grouped = any(isinstance(entry, Group) for entry in self.header)
        upper, lower = Markup(), Markup()
        for entry in self.header:
            if isinstance(entry, Group):
                span = len(entry.columns)
                upper += Markup('<th scope="colgroup" colspan="{}">{}</th>').format(span, entry.title)
                lower += Markup().join(Markup('<th scope="col">{}</th>').format(name) for name in entry.columns)
            else:
                upper += Markup('<th scope="col"{}>{}</th>').format(Markup(' rowspan="2"' * grouped), entry)
        return Markup('<tr>{}</tr>').format(upper) + (Markup('\n<tr>{}</tr>').format(lower) if grouped else Markup())


def _row(first: Any, cells: Sequence[Any]) -> Markup:
    values = Markup().join(Markup('<td>{}</td>').format(_html(cell)) for cell in cells)
    return Markup('<tr><th scope="row">{}</th>{}</tr>').format(first, values)


def _markdown(cell: Any) -> str:
    if cell is None:
        return ''
    return cell.markdown() if hasattr(cell, 'markdown') else str(cell)


def _html(cell: Any) -> Markup:
    if cell is None:
        return NOTHING
    return cell.html() if hasattr(cell, 'html') else escape(cell)
