"""Faults of ids, names and flags."""

from __future__ import annotations

import numpy as np

from upvit_mm.data.coco.fault import Fault, Rule, how_many, repeated, some
from upvit_mm.data.coco.objects import Id, Objects


def _ids_twice(objects: Objects) -> Fault | None:
    for what, rows in (('images', objects.images), ('objects', objects.rows), ('categories', objects.categories)):
        if twice := repeated(row['id'] for row in rows):
            found = f'{len(twice)} ids of {what} occur twice ({some(twice)}): readers keep only the last of each.'
            return Fault(found, 'Give them new numbers.', severity='fatal')
    return None


def _names_twice(objects: Objects) -> Fault | None:
    if twice := repeated(category['name'] for category in objects.categories):
        found = f'{len(twice)} categories have the name of another ({some(twice)}), so labels would be shifted.'
        return Fault(found, 'Give them one id, or different names.', severity='fatal')
    return None


def _pictures_twice(objects: Objects) -> Fault | None:
    if twice := repeated(image['file_name'] for image in objects.images):
        found = (
            f'{len(twice)} pictures are listed under several ids ({some(twice)}): the objects of one count as '
            'background in the other.'
        )
        return Fault(found, 'Give every picture one id, and its objects that image_id.')
    return None


def _unknown_image(objects: Objects) -> Fault | None:
    lost = objects.picture < 0
    if not lost.any():
        return None
    wanted = {objects.rows[k]['image_id'] for k in np.flatnonzero(lost)}
    known = {image['id'] for image in objects.images}
    found = f'{how_many(lost)} have an image_id that no image of the file has ({some(sorted(wanted, key=str))}).'
    return Fault(found, _as_other_type(wanted, known, 'image_id') or 'Correct image_id, or remove these objects.')


def _unknown_category(objects: Objects) -> Fault | None:
    lost = ~objects.known
    if not lost.any():
        return None
    wanted = {objects.rows[k]['category_id'] for k in np.flatnonzero(lost)}
    known = {category['id']: category['name'] for category in objects.categories}
    listed = ', '.join(f'{number!r} {name}' for number, name in list(known.items())[:10])
    unknown = some(sorted(wanted, key=str))
    found = f'{how_many(lost)} have a category_id that is none of its categories ({unknown}; there are {listed}).'
    used = {row['category_id'] for row in objects.rows}
    remedy = _as_other_type(wanted, set(known), 'category_id')
    if not remedy and not any(isinstance(value, str) for value in used | set(known)):
        if {value + 1 for value in used} <= set(known):
            remedy = (
                'Objects seem to count categories from 0, categories from 1: then *all* labels are off by one. Add 1 '
                'to each category_id.'
            )
        elif min(used) == 1 and {value - 1 for value in used} <= set(known):
            remedy = (
                'Objects seem to count categories from 1, categories from 0: then *all* labels are off by one. '
                'Subtract 1 from each category_id.'
            )
    return Fault(found, remedy or 'Add the category, or remove these objects.')


def _as_other_type(wanted: set[Id], known: set[Id], key: str) -> str:
    """The remedy where ids are text on one side and numbers on the other, but equal otherwise."""
    if {str(value) for value in wanted} <= {str(value) for value in known}:
        kinds = ('text', 'numbers') if isinstance(next(iter(wanted)), str) else ('numbers', 'text')
        return f'Here they are {kinds[0]}, there {kinds[1]}: write {key} as {kinds[1]}.'
    return ''


def _id_zero(objects: Objects) -> Fault | None:
    if not any(row['id'] == 0 for row in objects.rows):
        return None
    found = '1 object has the id 0, which pycocotools reads as "no match": its detection would count as a miss.'
    return Fault(found, 'Number the objects from 1.', 'judge')


def _text_ids(objects: Objects) -> Fault | None:
    if not objects.rows or not isinstance(objects.rows[0]['id'], str):
        return None
    found = f'the {len(objects)} ids of objects are text; pycocotools needs numbers and would stop.'
    return Fault(found, 'Number the objects from 1.', 'judge', 'fatal')


def _back_slashes(objects: Objects) -> Fault | None:
    names = [image['file_name'] for image in objects.images if '\\' in image['file_name']]
    if not names:
        return None
    found = f'{len(names)} of {len(objects.images)} file names have backslashes ({some(names)}): not folders here.'
    return Fault(found, 'Write / instead.', severity='fatal')


# -------------------------------------------------------------------------- objects


def _no_objects(objects: Objects) -> Fault | None:
    if objects.kept.any():
        return None
    reasons = ', '.join(f'{count} {why}' for why, count in objects.left_out().items()) or 'it lists none'
    return Fault(f'mmdet finds no object in it ({reasons}).', 'Correct the objects.', 'train')


def _nothing_to_judge(objects: Objects) -> Fault | None:
    if len(objects):
        return None
    found = 'it lists no objects, so nothing can be evaluated with it.'
    return Fault(found, 'Give a file with objects, or set format_only=True in the evaluator.', 'judge', 'fatal')


def _flags(objects: Objects) -> Fault | None:
    for key in ('iscrowd', 'ignore'):
        wrong = [row for row in objects.rows if key in row and row[key] not in (0, 1)]
        if wrong:
            found = f'{len(wrong)} of {len(objects)} objects have {key} = {some(row[key] for row in wrong)}'
            return Fault(f'{found}: anything but 0 makes mmdet ignore them.', f'Write {key} as 0 or 1.')
    return None


def _no_crowd_flag(objects: Objects) -> Fault | None:
    lacking = [row for row in objects.rows if 'iscrowd' not in row]
    if not lacking:
        return None
    found = (
        f"{len(lacking)} of {len(objects)} objects lack 'iscrowd' (id {lacking[0]['id']!r}), which pycocotools reads."
    )
    return Fault(found, 'Write iscrowd = 0.', 'judge', 'fatal')


def _ignored(objects: Objects) -> Fault | None:
    if not (count := int(objects.ignore.sum())):
        return None
    found = f'{count} objects are marked with ignore: training leaves them out, pycocotools counts them as objects.'
    return Fault(found, 'Mark them with iscrowd where they should not count.', 'judge', 'note')


def _all_crowd(objects: Objects) -> Fault | None:
    kept = objects.kept
    if not kept.any() or not objects.crowd[kept].all():
        return None
    found = f'all {int(kept.sum())} objects are crowds, which mmdet ignores.'
    return Fault(found, 'Write iscrowd = 0 for single objects.', severity='fatal')


RULES: tuple[Rule, ...] = (
    _ids_twice,
    _names_twice,
    _unknown_category,
    _unknown_image,
    _flags,
    _no_objects,
    _nothing_to_judge,
    _all_crowd,
    _pictures_twice,
    _back_slashes,
    _no_crowd_flag,
    _id_zero,
    _text_ids,
    _ignored,
)
