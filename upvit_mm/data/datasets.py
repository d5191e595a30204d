"""The datasets of a config: where they are, how they are read, and which classes their labels mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS, EVALUATOR, METRICS

from upvit_mm.registry import class_of, is_type, type_name

PARTS = ('train', 'val', 'test')
# methods that decide how a dataset is read; a subclass that changes them reads in its own way
READERS = {
    'CocoDataset': ('load_data_list', 'COCOAPI'),
    'CustomDataset': ('load_data_list', '_find_samples'),
    'XMLDataset': ('load_data_list', 'parse_data_info', '_parse_instance_info'),
}
HOMES = {  # without a default_scope
    **dict.fromkeys(('CocoDataset', 'XMLDataset', 'VOCDataset'), 'mmdet'),
    **dict.fromkeys(('CustomDataset', 'ImageNet'), 'mmpretrain'),
}
LOCAL = ('local', 'disk', 'LocalBackend', 'HardDiskBackend')  # mmengine's names for a local disk


@dataclass(frozen=True)
class Dataset:
    """Settings of one innermost dataset of a config.

    Attributes:
        part: one of ``PARTS``.
        place: its key in the config, for example ``'val_dataloader.dataset'``.
        settings: the settings there.
        scope: the config's ``default_scope``.
    """

    part: str
    place: str
    settings: Mapping[str, Any]
    scope: str | None = None

    @cached_property
    def cls(self) -> type | None:
        """Its class, None where the type is not registered."""
        kind = self.settings.get('type')
        return class_of(kind, DATASETS, self.scope or HOMES.get(type_name(kind)))

    @cached_property
    def base(self) -> type | None:
        """The class of ``READERS`` that its class is or inherits from."""
        return next((base for base in getattr(self.cls, '__mro__', ()) if base.__name__ in READERS), None)

    @property
    def base_name(self) -> str:
        """Its name; empty where there is none."""
        return type_name(self.base)

    @cached_property
    def reads_as(self) -> str | None:
        """The class of ``READERS`` that reads in the same way; None if there is none."""
        if self.base is None:
            return None
        same = all(getattr(self.cls, key) is getattr(self.base, key) for key in READERS[self.base_name])
        return self.base_name if same else None

    # ------------------------------------------------------------------ where it is

    @property
    def root(self) -> str:
        return str(self.settings.get('data_root') or '')

    def path(self, part: str) -> Path:
        """A file or folder that the settings name."""
        return Path(self.root, part)

    def is_here(self, part: str = '') -> bool:
        """Whether its files are on a local disk."""
        return is_local(self.settings) and '://' not in part and '://' not in self.root

    @property
    def split(self) -> str:
        """Of ``ImageNet``."""
        return str(self.settings.get('split') or '')

    @property
    def prefixes(self) -> list[str]:
        """Folders from its ``data_prefix`` or ``split``."""
        prefix = self.settings.get('data_prefix') or self.split
        values = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
        return [value for value in values if value and isinstance(value, str)]

    @property
    def images(self) -> str:
        """The folder of its images, from the settings."""
        prefix = self.settings.get('data_prefix') or self.split
        if isinstance(prefix, Mapping):
            prefix = prefix.get('img_path') or prefix.get('img')
        return prefix if isinstance(prefix, str) else ''

    @property
    def ann_file(self) -> str:
        """Its annotation file, from the settings or as ``ImageNet`` finds it; empty where there is none.

        Raises:
            ValueError: it is not text.
        """
        ann_file = self.settings.get('ann_file') or ''
        if not isinstance(ann_file, str):
            raise ValueError(f'{self.place}.ann_file = {ann_file!r}: must be one file; for several use ConcatDataset.')
        found = f'meta/{self.split}.txt' if self.split and not ann_file else ''
        return found if found and self.is_here() and self.path(found).is_file() else ann_file

    # ----------------------------------------------------------------------- classes

    @cached_property
    def given_classes(self) -> list[Any] | None:
        """Class names that the settings list; None where they list none.

        Raises:
            ValueError: the key is one that OpenMMLab does not read, or the file of names is missing.
        """
        metainfo = self.settings.get('metainfo') or {}
        if 'CLASSES' in metainfo:
            raise ValueError(f'{self.place}.metainfo.CLASSES is not read by this OpenMMLab; write metainfo.classes.')
        classes = metainfo.get('classes') or self.settings.get('classes')
        if not classes:
            return None
        if isinstance(classes, str):
            if not Path(classes).is_file():
                raise ValueError(f'classes = {classes!r}: no such file of names; a tuple of one name needs a comma.')
            classes = Path(classes).read_text(encoding='utf-8').splitlines()
        return list(classes)

    @cached_property
    def classes(self) -> list[Any] | None:
        """Class names as OpenMMLab reads the settings; None if only the data have them.

        Raises:
            ValueError: see ``given_classes``.
        """
        ours = list(getattr(self.cls, 'METAINFO', {}).get('classes') or ())
        return self.given_classes or ours or None


def datasets_in(cfg: Mapping[str, Any], part: str) -> list[Dataset]:
    """The innermost datasets of a part; none where the config does not have the part."""
    name, scope = f'{part}_dataloader', cfg.get('default_scope')
    return [Dataset(part, place, settings, scope) for place, settings in _innermost(cfg.get(name), name)]


def datasets_of(node: Any) -> Iterator[Mapping[str, Any]]:
    """The innermost dataset settings below a dataloader, through wrappers such as RepeatDataset."""
    for _, settings in _innermost(node, ''):
        yield settings


def _innermost(node: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(node, Mapping):
        return
    key = 'dataset' if node.get('dataset') else 'datasets'
    inner = node.get(key)
    if inner is None:
        yield place, node
    elif isinstance(inner, Sequence):
        for k, child in enumerate(inner):
            yield from _innermost(child, f'{place}.{key}[{k}]')
    else:
        yield from _innermost(inner, f'{place}.{key}')


def unwrapped(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data set inside a wrapper that repeats or rebalances it.

    Raises:
        ValueError: another wrapper, for example one of several data sets or of a fold.
    """
    while is_type(dataset['type'], 'RepeatDataset', 'ClassBalancedDataset', registry=DATASETS, scope='mmpretrain'):
        dataset = dataset['dataset']
    if 'dataset' in dataset or 'datasets' in dataset:
        raise ValueError(
            f'dataset.type = {type_name(dataset["type"])!r}: images are drawn from one data set; only repeated or '
            'class balanced wrappers are allowed.'
        )
    return dataset


def coco_metrics(cfg: Mapping[str, Any], part: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Key and settings of each CocoMetric of ``'val'`` or ``'test'`` that reads only from a local disk.

    LVISMetric inherits from it but reads other files. MultiDatasetsEvaluator gives each metric its own data.
    """
    place = f'{part}_evaluator'
    settings, known = cfg.get(place) or [], dict(registry=METRICS, scope=cfg.get('default_scope') or 'mmdet')
    if isinstance(settings, Mapping):
        own_data = is_type(settings.get('type'), 'MultiDatasetsEvaluator', registry=EVALUATOR, scope=known['scope'])
        settings = [] if own_data else settings.get('metrics', settings)
    for k, metric in enumerate([settings] if isinstance(settings, Mapping) else settings):
        kind = metric.get('type')
        if not is_type(kind, 'CocoMetric', **known) or is_type(kind, 'LVISMetric', **known):
            continue
        if is_local(metric) and '://' not in str(metric.get('ann_file')):
            yield place if isinstance(settings, Mapping) else f'{place}[{k}]', metric


def transforms_of(node: Any) -> Iterator[Mapping[str, Any]]:
    """All transforms of a pipeline in order, including nested ones."""
    if isinstance(node, Mapping):
        yield node
        node = node.get('transforms')
    if isinstance(node, Iterable) and not isinstance(node, (str, Mapping)):
        for inner in node:
            yield from transforms_of(inner)


def is_local(settings: Mapping[str, Any]) -> bool:
    """Whether a dataset or metric with these settings reads from a local disk."""
    backends = [settings[key] for key in ('backend_args', 'file_client_args') if settings.get(key)]
    return all(args.get('backend') in LOCAL for args in backends)


def is_open_vocabulary(cfg: Mapping[str, Any]) -> bool:
    """Whether a detector reads its classes as text, so that each part may have its own."""
    return bool((cfg.get('model') or {}).get('language_model'))


def evaluation_part(cfg: Mapping[str, Any]) -> str:
    """The part whose transforms prepare images for a finished network: ``'test'``, or ``'val'`` without a test part.

    Raises:
        ValueError: neither is there.
    """
    for part in ('test', 'val'):
        if datasets_in(cfg, part):
            return part
    raise ValueError('the config has neither test_dataloader nor val_dataloader: give one of them.')
