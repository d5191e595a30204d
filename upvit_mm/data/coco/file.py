"""A COCO annotation file, read completely once: its content, and faults that would cause errors later."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upvit_mm.data.coco import boxes, entries, masks
from upvit_mm.data.coco.fault import Fault
from upvit_mm.data.coco.objects import Id, Objects, check_structure
from upvit_mm.data.picture_files import tried
from upvit_mm.files import cache_folder, write_text_atomically
from upvit_mm.version import __version__

logger = logging.getLogger('upvit_mm')
SHOWN = 3  # faults that one error names
LAYOUT = 2  # of what is cached; an older cache is read again
RULES = (*entries.RULES, *boxes.RULES, *masks.RULES)
WAY_OUT = 'allow_faulty_annotations'  # a setting of the config
ENCODINGS = {b'\xef\xbb\xbf': 'utf-8-sig', b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16'}  # by their first bytes


@dataclass(frozen=True)
class CocoFile:
    """The content of a COCO annotation file.

    Attributes:
        path: the file.
        categories: ``(id, name)`` in the file's order, which is the order of mmdet's labels.
        names: ``file_name`` of every picture.
        sizes: ``(width, height)`` in pixels of every picture, as in the file.
        objects: number of objects.
        empty: pictures without an object.
        kept: objects by category id (as text) that mmdet keeps, crowds among them.
        left_out: number of objects that mmdet drops, by reason; each counts once.
        crowds: number of objects that mmdet keeps as regions to ignore.
        crowding: number of pictures by their number of single objects (as text).
        crowding_by_class: the same for objects of one category; a picture counts once for each.
        faults: all faults that were found.
    """

    path: str
    categories: tuple[tuple[Id, str], ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    objects: int
    empty: int
    kept: Mapping[str, int]
    left_out: Mapping[str, int]
    crowds: int
    crowding: Mapping[str, int]
    crowding_by_class: Mapping[str, int]
    faults: tuple[Fault, ...]

    def check(self, uses: Sequence[str], tolerant: bool = False) -> None:
        """Refuse a file with faults that matter; log the others.

        Args:
            uses: what the file is used for, from ``fault.USES``.
            tolerant: only warn about faults that mmdet can read (``allow_faulty_annotations`` of the config).

        Raises:
            ValueError: the first three faults, each with count, example and remedy.
        """
        found = [fault for fault in self.faults if fault.use in ('any', *uses)]
        refused = [fault for fault in found if fault.severity == 'fatal' or (fault.severity == 'loss' and not tolerant)]
        for fault in found:
            if fault not in refused:
                logger.warning('annotation file %s: %s', self.path, fault.found)
        if refused:
            more = len(refused) - SHOWN
            texts = [f'{fault.found} {fault.remedy}' for fault in refused[:SHOWN]]
            if all(fault.severity == 'loss' for fault in refused):
                texts.append(f'Or set {WAY_OUT} = True in the config to continue without them.')
            if more > 0:
                texts.append(f'({more} more of such faults.)')
            raise ValueError(f'annotation file {self.path!r}: {" ".join(texts)}')

    def summary(self, classes: Sequence[str], filter_cfg: Mapping[str, Any] | None) -> str:
        """One line: the numbers of pictures and objects, and what mmdet leaves out by design.

        Args:
            classes: classes that the config lists.
            filter_cfg: setting of a training dataset; None = every picture stays.
        """
        listed = {str(number): name in classes for number, name in self.categories}
        left_out = dict(self.left_out)
        if unlisted := sum(count for number, count in self.kept.items() if not listed[number]):
            left_out['of categories that the config does not list'] = unlisted
        reasons = [f'{count} objects are left out because they are {why}' for why, count in left_out.items()]
        if self.crowds:
            reasons.append(f'{self.crowds} objects are crowds, which mmdet ignores')
        filters = filter_cfg or {}
        if filters.get('filter_empty_gt') and self.empty:
            reasons.append(f'{self.empty} pictures are left out because they have no object')
        least = filters.get('min_size', 0)
        if small := sum(min(size) < least for size in self.sizes):
            reasons.append(f'{small} pictures are left out because a side is below {least} pixels')
        return f'{self.path}: {len(self.names)} images, {self.objects} objects; {"; ".join(reasons) or "all are read"}'


def examine(path: Path) -> CocoFile:
    """Read a whole annotation file; the result is cached by path, size and time of the last change.

    The cache is the folder ``$UPVIT_MM_CACHE``, by default ``~/.cache/upvit_mm``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON, not in COCO's form, or lacks what every reader needs.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f'annotation file {str(path)!r} does not exist{tried(path)}; check data_root and ann_file.'
        )
    path = path.absolute()
    state = path.stat()
    key = [__version__, LAYOUT, str(path), state.st_size, state.st_mtime_ns]
    memory = cache_folder('annotations') / f'{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.json'
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a cache that cannot be read is ignored
        remembered = json.loads(memory.read_text(encoding='utf-8'))
        if remembered['key'] == key:
            return _from_json(remembered['file'])
    if state.st_size > 50e6:
        logger.info('%s: reading %.0f MB of annotations to check them', path, state.st_size / 1e6)
    file = _read(path)
    try:
        write_text_atomically(memory, json.dumps({'key': key, 'file': dataclasses.asdict(file)}))
    except OSError as error:
        logger.warning('the result for %s cannot be cached (%s): the file is read again each time', path, error)
    return file


def _read(path: Path) -> CocoFile:
    with _without_gc():
        content = _parse(path)
        check_structure(content, str(path))
        objects = Objects.of(content)
        faults = tuple(fault for rule in RULES if (fault := rule(objects)))
    categories = [(category['id'], category['name']) for category in content['categories']]
    return CocoFile(
        path=str(path),
        categories=tuple(categories),
        names=tuple(image['file_name'] for image in content['images']),
        sizes=tuple((int(image['width']), int(image['height'])) for image in content['images']),
        objects=len(objects),
        empty=len(content['images']) - len(objects.pictures_with_objects()),
        kept=objects.kept_by_category(),
        left_out=objects.left_out(),
        crowds=int((objects.crowd & objects.kept).sum()),
        crowding=objects.crowding(),
        crowding_by_class=objects.crowding(by_class=True),
        faults=faults,
    )


def _parse(path: Path) -> Any:
    content = path.read_bytes()
    for mark, encoding in ENCODINGS.items():
        if content.startswith(mark):
            raise ValueError(
                f'annotation file {str(path)!r} is {encoding} with a byte order mark, which pycocotools cannot read. '
                f'Write it as plain UTF-8: python -c "from pathlib import Path; p = Path({str(path)!r}); '
                f"p.write_text(p.read_text(encoding='{encoding}'), encoding='utf-8')\""
            )
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise ValueError(f'annotation file {str(path)!r} is not UTF-8 text ({error}); write it as UTF-8.') from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'annotation file {str(path)!r} is half-written or no COCO file: {error}. Write or download it again.'
        ) from error


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Switch off the garbage collector: with millions of new dictionaries it takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _from_json(data: dict[str, Any]) -> CocoFile:
    data['faults'] = tuple(Fault(**fault) for fault in data['faults'])
    for field in ('categories', 'sizes'):
        data[field] = tuple(map(tuple, data[field]))
    return CocoFile(**data | {'names': tuple(data['names'])})
