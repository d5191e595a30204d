"""Names of classes that differ only in details that are easy to miss."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 10  # of many names


def plain(name: Any) -> str:
    """A name without case, blanks at its ends, and differences in the encoding of accents."""
    return unicodedata.normalize('NFC', str(name)).strip().casefold()


def alike(names: Iterable[Any], others: Iterable[Any]) -> dict[Any, Any]:
    """Names that differ from one of ``others`` but equal it after ``plain``, each with that one."""
    by_plain: dict[str, Any] = {}
    for other in others:
        by_plain.setdefault(plain(other), other)
    return {name: by_plain[plain(name)] for name in names if by_plain.get(plain(name), name) != name}


def alike_text(names: Iterable[Any], others: Iterable[Any]) -> str:
    """A hint in brackets that lists similar names, with a blank before it; empty if there are none."""
    pairs = [f'{name!r} for {other!r}' for name, other in alike(names, others).items()]
    return f' (different only in case or blanks: {", ".join(pairs[:SHOWN])})' if pairs else ''


def listed(names: Sequence[Any]) -> str:
    """The first names, and the number of others."""
    more = len(names) - SHOWN
    return ', '.join(map(str, names[:SHOWN])) + (f' and {more} more' if more > 0 else '')
