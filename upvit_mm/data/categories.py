"""Rewrite a COCO annotation file so that it has the categories of another one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upvit_mm.data.names import alike
from upvit_mm.files import write_text_atomically


@dataclass(frozen=True)
class Matched:
    """How a file's categories changed.

    Attributes:
        path: the new file.
        names: all categories, in order.
        renamed: old to new names.
        added: names that the file did not have.
        more: names that the other file does not have.
    """

    path: Path
    names: Sequence[str]
    renamed: dict[str, str]
    added: Sequence[str]
    more: Sequence[str]


def matched_name(path: Path) -> Path:
    """Where ``match_categories`` writes by default."""
    return path.with_name(f'{path.stem}_matched.json')


def match_categories(path: Path, like: Path, out: Path | None = None) -> Matched:
    """Write a copy of a COCO file with the categories of another one, in its order; ids and objects stay the same.

    Names that differ only in case or blanks count as the same and become those of the other file. Missing categories
    are added, with the other file's id if that is free. Categories that the other file does not have come last.

    Args:
        path: the file.
        like: the other one, of the training data.
        out: the new file; None = beside the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file is not a COCO file, has two categories of one name, or has several that could match one.
    """
    content, reference = _read(path), _read(like)
    ours = {category['name']: category for category in content['categories']}
    wanted = [category['name'] for category in reference['categories']]
    renamed = alike([name for name in ours if name not in wanted], [name for name in wanted if name not in ours])
    if len(set(renamed.values())) < len(renamed):
        raise ValueError(f'annotation file {str(path)!r}: {", ".join(renamed)} could be one category; rename them.')
    ours = {renamed.get(name, name): {**category, 'name': renamed.get(name, name)} for name, category in ours.items()}
    ids, categories, added = {category['id'] for category in ours.values()}, [], []
    for category in reference['categories']:
        if category['name'] not in ours:
            number = _free(category['id'], ids)
            ours[category['name']] = {**category, 'id': number}
            ids.add(number)
            added.append(category['name'])
        categories.append(ours.pop(category['name']))
    content['categories'] = [*categories, *ours.values()]
    out = out or matched_name(path)
    write_text_atomically(out, json.dumps(content, ensure_ascii=False))
    return Matched(out, [category['name'] for category in content['categories']], renamed, added, list(ours))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f'annotation file {str(path)!r} does not exist; check the path.')
    try:
        content = json.loads(path.read_bytes())
        names = [category['name'] for category in content['categories'] if category['id'] is not None]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'annotation file {str(path)!r} is no whole COCO file: {error!r}.') from error
    if len(set(names)) < len(names):
        raise ValueError(f'annotation file {str(path)!r} has two categories of one name; give each its own.')
    return content


def _free(number: Any, ids: set[Any]) -> Any:
    """An id of the same type as in the file: the given one, or the next free one."""
    kind = str if ids and all(isinstance(other, str) for other in ids) else int
    if kind(number) not in ids:
        return kind(number)
    return kind(max((int(other) for other in ids if str(other).isdigit()), default=0) + 1)
