"""Checks of a config's data, model and weights."""

from __future__ import annotations

from collections.abc import Iterator

from upvit_mm.doctor.findings import Finding, check, error, heard, message_of, ok, warning
from upvit_mm.doctor.subject import PARTS, Subject

SIDE = 128  # pixels of the test image
WIDTHS = 'set in_channels of each part to the widths of what comes in'
PRETRAINED = "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=...)))"
LOOK = 'training says the same and goes on: make sure that it is meant'
CLASSES = 'set num_classes of every head, and metainfo=dict(classes=...) of every dataset, to the same classes'


@check('config', remedy='correct the config file, or --cfg-options')
def config(subject: Subject) -> Finding:
    """The config file can be read."""
    return ok(f'{subject.config} for {subject.cfg.default_scope}')


@check('config', needs=('config',), remedy='check the dataset settings')
def data(subject: Subject) -> Iterator[Finding]:
    """Folders, annotation files and classes of every part, including parts after a broken one."""
    from upvit_mm.data.checks import check_part
    from upvit_mm.data.datasets import datasets_in
    from upvit_mm.registry import type_name

    for part, name in subject.parts.items():
        try:
            with heard() as said:
                found = check_part(subject.cfg, part)
        except (OSError, ValueError) as problem:
            yield error(f'{name}: {message_of(problem)}', 'how data of your own fit a config: docs/own_data.md')
            continue
        yield from (warning(f'{name}: {text}', LOOK) for text in said)
        yield from (ok(f'{name}: {line}') for line in found)
        datasets = datasets_in(subject.cfg, part)
        kinds = {f'{type_name(dataset.settings.get("type"))} in {dataset.root or "."}' for dataset in datasets}
        known = all(dataset.reads_as for dataset in datasets)
        yield ok(f'{name}: {", ".join(sorted(kinds))}{"" if known else ", which this check does not know"}')


@check('config', needs=('data',), remedy='how data of your own fit a config: docs/own_data.md')
def evaluator(subject: Subject) -> Iterator[Finding]:
    """CocoMetric reads the annotations a second time, from its own path."""
    from upvit_mm.data.annotations import check_judges
    from upvit_mm.data.detection_classes import check_evaluator

    for part in PARTS[1:]:
        try:
            check_judges(subject.cfg, part)
            judges = check_evaluator(subject.cfg, part)
        except (OSError, ValueError) as problem:
            yield error(f'{part}: {message_of(problem)}')
            continue
        for path in judges:
            yield ok(f'{part}: judged by {path}')


@check('config', needs=('data',), remedy=LOOK)
def figures(subject: Subject) -> Iterator[Finding]:
    """What changes the figures of a run without an error; training warns of the same."""
    from upvit_mm.data.shifts import shifts_in

    texts = shifts_in(subject.cfg, [part for part in PARTS if subject.datasets(part)])
    yield from map(warning, texts)
    if not texts:
        yield ok('nothing was found that changes figures without an error')


@check(
    'config',
    needs=('config',),
    remedy='correct the settings that it names; when a type is not found, check its spelling and custom_imports',
)
def model(subject: Subject) -> Finding:
    """The model can be built."""
    from upvit_mm.models.backbone_settings import check_backbone_settings
    from upvit_mm.models.map_strides import check_strides

    check_backbone_settings(subject.cfg)
    check_strides(subject.cfg)
    millions = sum(parameter.numel() for parameter in subject.model.parameters()) / 1e6
    backbone = getattr(subject.model, 'backbone', None)
    return ok(f'{type(subject.model).__name__} on {type(backbone).__name__}, {millions:.1f} M parameters')


@check('config', needs=('config',), remedy=CLASSES)
def classes(subject: Subject) -> Finding | tuple:
    """Every head must have as many classes as every dataset."""
    from upvit_mm.data.class_numbers import check_class_numbers

    numbers = check_class_numbers(subject.cfg, PARTS)
    return ok(f'{next(iter(numbers.values()))} in {", ".join(numbers)}') if numbers else ()


@check('config', needs=('model',), remedy=WIDTHS)
def channels(subject: Subject) -> Iterator[Finding]:
    """Check the widths in the config, then run a prediction through neck and heads."""
    import torch

    from upvit_mm.data.image_size import image_size

    network = subject.model.eval()
    with torch.no_grad():
        size = None if subject.detects else image_size(subject.datasets('val'))  # some classifiers accept only this
        batch = network.data_preprocessor(subject.random_batch(*size or (SIDE, SIDE)), False)
        given = [feature.shape[1] for feature in network.backbone(batch['inputs'])]
        neck = subject.cfg.model.get('neck')
        for settings in neck if isinstance(neck, list) else [neck or {}]:
            if 'in_channels' in settings:
                wanted = settings['in_channels']
                right = given[-1] if isinstance(wanted, int) else given
                if wanted != right:
                    remedy = '' if isinstance(neck, list) else f'model = dict(neck=dict(in_channels={right}))'
                    yield error(f'model.neck.in_channels = {wanted}, but the backbone gives {given}', remedy)
                    return
                break
        network(**batch, mode='predict')
    yield ok(f'the backbone gives {given}, and neck and heads take it to predictions')


@check(
    'config',
    needs=('model',),
    remedy='set in data_preprocessor mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], and bgr_to_rgb=True '
    '(mmdet) or to_rgb=True (mmpretrain)',
)
def colours(subject: Subject) -> Finding | tuple:
    """Pretrained vision transformers need normalised RGB; mmdet's configs of Caffe backbones give BGR up to 255."""
    from upvit_mm.models.backbones.base import UPBackbone
    from upvit_mm.models.network import Colours

    if not isinstance(subject.model.backbone, UPBackbone):
        return ()
    given = Colours.of_config(subject.cfg)
    found = f'{"RGB" if given.flip else "BGR"}, mean {given.mean}, std {given.std}'
    if given.flip and min(given.std) > 1:
        return ok(found)
    return warning(f'{found}: not what pretrained vision transformers were trained on')


@check(
    'config', needs=('model',), remedy='give the checkpoint that belongs to the arch, and prefix= where it needs one'
)
def checkpoint(subject: Subject) -> Iterator[Finding]:
    """Check all tensors of the backbone, and of the other parts if the file is of such a model."""
    from upvit_mm.checkpoints import check_state, load_backbone
    from upvit_mm.models.backbones.base import UPBackbone

    backbone = subject.model.backbone
    if not isinstance(backbone, UPBackbone):
        yield ok(f'{type(backbone).__name__} is not of this package: mmengine loads its weights without a check here')
        return
    if not (sources := _sources(subject)):
        found = 'none: training starts from random weights'
        yield warning(f'{found}, and mAP stays low', PRETRAINED) if subject.detects else ok(found)
    expected = backbone.state_dict()
    for path, *choice in sources:
        state = load_backbone(path, *choice, arch=backbone.arch)
        check_state(state, expected, f'{type(backbone).__name__} (checkpoint={path})')
        yield ok(f'{path} has all {len(expected)} tensors of the backbone')
        yield from _rest(subject, path)


def _sources(subject: Subject) -> list[tuple[str | None, ...]]:
    """Files of the weights, their prefixes and, if given, which weights."""
    from upvit_mm.models.backbones.base import split_pretrained

    if subject.checkpoint:
        return [(subject.checkpoint, None)]
    init_cfgs = (subject.cfg.model.backbone.get('init_cfg'), subject.cfg.model.get('init_cfg'))
    pretrained = [settings for init_cfg in init_cfgs for settings in split_pretrained(init_cfg)[0]]
    sources = [(settings['checkpoint'], settings.get('prefix'), settings.get('weights')) for settings in pretrained]
    return [*sources, (subject.cfg.load_from, None)] if subject.cfg.get('load_from') else sources


def _rest(subject: Subject, path: str) -> Iterator[Finding]:
    """Check neck and heads, but not if the file has none of them (a classifier's file for a detector)."""
    from upvit_mm.checkpoints import read_checkpoint
    from upvit_mm.checkpoints.keys import differences
    from upvit_mm.data.checks import check_classes_of

    content = read_checkpoint(path)
    theirs, ours = (
        {name: value for name, value in state.items() if hasattr(value, 'shape') and not name.startswith('backbone.')}
        for state in (content.get('state_dict', content), subject.model.state_dict())
    )
    if not theirs.keys() & ours.keys():
        return
    if problems := differences(theirs, ours):
        yield warning(
            f'{len(problems)} tensors outside the backbone differ: {"; ".join(problems[:5])}',
            'fine if heads will be trained from scratch; for testing use the config of that training, since '
            'mmengine only logs this',
        )
    for part in list(subject.parts)[:1]:  # all parts have the same classes
        try:
            check_classes_of(content.get('meta') or {}, subject.cfg, part, path)
        except ValueError as problem:
            yield warning(message_of(problem), 'fine if heads will be trained from scratch')
