"""Whether the heads of a config's model have as many classes as its data.

OpenMMLab compares them only if a hook is set for it. Heads are read from the config, without building a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import MODELS

from upvit_mm.data.class_folders import folder_names, has_class_folders
from upvit_mm.data.datasets import PARTS, Dataset, datasets_in, is_open_vocabulary
from upvit_mm.registry import class_of

# class-agnostic objects, stuff classes of segmentation maps, and a teacher, which may have other classes
OTHER_HEADS = ('rpn_head', 'semantic_head', 'teacher')
NUMBERS = ('num_classes', 'num_things_classes')


def head_numbers(cfg: Mapping[str, Any]) -> dict[str, int]:
    """Number of classes by key of the config: of every head and, where it is set, of the preprocessor."""
    model = cfg.get('model') or {}
    found = dict(_numbers_below(model, 'model', False, cfg.get('default_scope')))
    for place, settings in (('data_preprocessor', cfg), ('model.data_preprocessor', model)):
        count = (settings.get('data_preprocessor') or {}).get('num_classes')
        if isinstance(count, int):
            found[f'{place}.num_classes'] = count
    if 'data_preprocessor' in model:  # wins over that of the config
        found.pop('data_preprocessor.num_classes', None)
    return found


def _numbers_below(node: Any, place: str, in_head: bool, scope: str | None) -> Iterator[tuple[str, int]]:
    if isinstance(node, Mapping):
        if in_head and not node.get('class_agnostic'):
            for key in NUMBERS:
                count = node.get(key, _default(node.get('type'), key, scope))
                if isinstance(count, int) and (key in node or 'num_things_classes' not in node):
                    yield f'{place}.{key}', count
        for key, value in node.items():
            if not any(other in key for other in OTHER_HEADS):
                yield from _numbers_below(value, f'{place}.{key}', in_head or 'head' in key, scope)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for k, value in enumerate(node):
            yield from _numbers_below(value, f'{place}[{k}]', in_head, scope)


def _default(kind: Any, key: str, scope: str | None) -> int | None:
    """The default of a class; mmdet's heads of boxes and masks have COCO's 80."""
    found = class_of(kind, MODELS, scope) if kind else None
    for base in getattr(found, '__mro__', ()):
        parameter = inspect.signature(base.__init__).parameters.get(key)
        if parameter is not None:
            return None if parameter.default is inspect.Parameter.empty else parameter.default
    return None


def data_number(dataset: Dataset, is_read: bool) -> int | None:
    """Number of classes of a dataset, from its settings or its folders; None when only its annotations have it.

    Args:
        dataset: its settings.
        is_read: whether its folders may be read.
    """
    if dataset.base is None:
        return None
    if is_read and has_class_folders(dataset) and (names := folder_names(dataset)):
        return len(names)
    things = getattr(dataset.cls, 'METAINFO', {}).get('thing_classes')  # of a panoptic dataset, without stuff
    return len(dataset.given_classes or things or dataset.classes or ()) or None


def class_numbers(cfg: Mapping[str, Any], parts: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of classes of the data, by part, and of the heads, by key.

    Args:
        cfg: of mmdet or mmpretrain.
        parts: parts whose class folders may be read; for others the settings count.
    """
    data: dict[str, int] = {}
    datasets = {part: datasets_in(cfg, part) for part in PARTS}
    twice = [dataset.settings for dataset in datasets['val']] == [dataset.settings for dataset in datasets['test']]
    for part in PARTS[:2] if twice else PARTS:
        name = 'data of val and test' if part == 'val' and twice else f'data of {part}'
        for dataset in datasets[part]:
            if (count := data_number(dataset, part in parts)) is not None:
                data.setdefault(name, count)
    return data, head_numbers(cfg)


def check_class_numbers(
    cfg: Mapping[str, Any], parts: Sequence[str], also: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Refuse a config whose heads have another number of classes than its data.

    Args:
        cfg: of mmdet or mmpretrain.
        parts: see ``class_numbers``.
        also: more numbers that must agree, by a description.

    Returns:
        The numbers by a description; empty if the config has no number for the data, or none for heads.

    Raises:
        ValueError: the numbers differ; the message has all of them and what to set.
    """
    data, heads = class_numbers(cfg, parts)
    if not data or not heads or is_open_vocabulary(cfg):
        return {}
    numbers, wanted = data | heads | (also or {}), next(iter(data.values()))
    if len(set(numbers.values())) == 1:
        return numbers
    remedy = 'Give all parts the same classes'
    if places := [f'{place}={wanted}' for place, count in heads.items() if count != wanted]:
        remedy = f'Set {", ".join(places)}'
    elif others := [name for name, count in (also or {}).items() if count != wanted]:
        remedy = f'For {others[0]} use the data that it has learned from'
    raise ValueError(
        f'numbers of classes differ: {", ".join(f"{name} {count}" for name, count in numbers.items())}. {remedy}.'
    )
