"""Checks of a config's training: optimizer, learning rate, schedule."""

from __future__ import annotations

from collections.abc import Iterator

from upvit_mm.doctor.findings import Finding, check, ok, warning
from upvit_mm.doctor.subject import Subject

ADAMW = "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))"
EMBEDDINGS = ('cls_token', 'reg_token', 'pos_embed')  # of a plain ViT
UNDECAYED = (
    'optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={'
    "'cls_token': dict(decay_mult=0.0), 'pos_embed': dict(decay_mult=0.0)}))"
)
COUNTABLE = 64e6  # bytes; smaller annotation files are read quickly


@check('config', needs=('model',), remedy=f'{ADAMW}; without _delete_ the settings of SGD stay in it')
def optimizer(subject: Subject) -> Iterator[Finding]:
    """The optimizer can be built, and is AdamW where a transformer needs it."""
    import torch
    from mmengine.registry import OPTIM_WRAPPERS

    from upvit_mm.models.backbones.base import UPBackbone
    from upvit_mm.optim import check_constructor
    from upvit_mm.registry import is_type

    if not subject.cfg.get('optim_wrapper'):
        return
    check_constructor(subject.cfg)
    kind = type(subject.optim_wrapper.optimizer).__name__
    if isinstance(subject.model.backbone, UPBackbone) and kind != 'AdamW':
        yield warning(f'{kind}: vision transformers are trained with AdamW; with SGD mAP stays low')
    else:
        yield ok(kind)
    mixed = is_type(subject.cfg.optim_wrapper.get('type'), 'AmpOptimWrapper', registry=OPTIM_WRAPPERS)
    if mixed and not torch.cuda.is_available():
        if {'dtype', 'loss_scale'} & subject.cfg.optim_wrapper.keys():  # OptimWrapper does not know them
            remedy = "optim_wrapper = dict(_delete_=True, type='OptimWrapper', ...)"
        else:
            remedy = '--cfg-options optim_wrapper.type=OptimWrapper'
        yield warning('mixed precision needs a GPU, and there is none', remedy)


@check('config', needs=('optimizer',), remedy=UNDECAYED)
def weight_decay(subject: Subject) -> Finding:
    """Which parameters decay, from the groups of the built optimizer; of our backbones only matrices and kernels do."""
    groups, backbone = _groups(subject), 'backbone.'
    decayed = [name for name, settings in groups.items() if settings.get('weight_decay', 0) > 0]
    if embeddings := [name for name in decayed if name.endswith(EMBEDDINGS)]:
        return warning(f'weight decay pulls {", ".join(embeddings)} to zero')
    sizes = {name: parameter.numel() for name, parameter in subject.model.named_parameters() if name in groups}
    shares = []
    for place, inside in (('backbone', True), ('rest of the model', False)):
        names = [name for name in groups if name.startswith(backbone) is inside]
        acts = [name for name in names if name in decayed]
        if names:
            count, total = (sum(sizes[name] for name in part) for part in (acts, names))
            shares.append(f'{count:,} of {total:,} parameters of the {place} ({len(acts)} of {len(names)} tensors)')
    if not decayed:
        return ok('no weight decay', '')
    factors = sorted({groups[name]['weight_decay'] for name in decayed})
    return ok(f'weight decay {", ".join(f"{factor:g}" for factor in factors)} acts on {" and ".join(shares)}')


@check('config', needs=('optimizer',), remedy='correct optim_wrapper.paramwise_cfg')
def paramwise(subject: Subject) -> Iterator[Finding]:
    """A key of custom_keys acts on parameters whose names contain it."""
    keys = (subject.cfg.optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    names = [name for name, _ in subject.model.named_parameters()]
    idle = [key for key in keys if not any(key in name for name in names)]
    if wrong := [key for key in idle if key not in EMBEDDINGS]:  # recipes share these; PVTv2 has none
        yield warning(f'custom_keys that match no parameter: {", ".join(wrong)}', f'names are like {names[0]}')
    elif keys:
        found = ', '.join(f'{key} ({sum(key in name for name in names)})' for key in keys)
        yield ok(f'custom_keys and the parameters that they match: {found}')


@check('config', needs=('optimizer',), remedy='set optim_wrapper.optimizer.lr')
def learning_rate(subject: Subject) -> Finding:
    """mmengine's rule: the learning rate is proportional to the images per optimizer step."""
    lr = subject.cfg.optim_wrapper.optimizer.lr
    scaling = subject.cfg.get('auto_scale_lr') or {}
    rounds = subject.cfg.optim_wrapper.get('accumulative_counts', 1)
    batch = subject.processes * subject.images_per_gpu * rounds
    images = f'{batch} images ({subject.processes} x {subject.images_per_gpu}{f" x {rounds}" if rounds > 1 else ""})'
    base = scaling.get('base_batch_size')
    if base is None:
        return ok(f'{lr:g} for {images}; the config names no base batch size to compare with')
    if batch == base:
        return ok(f'{lr:g} for {images}, as meant')
    scaled = lr * batch / base
    if scaling.get('enable') and rounds == 1:
        return ok(f'{lr:g} for {base} images is scaled to {scaled:g} for {images}')
    remedy = f'--cfg-options optim_wrapper.optimizer.lr={scaled:.3g}'
    if rounds == 1:
        remedy += ', or --auto-scale-lr'
    if subject.gpus is None:
        remedy += '; if another machine will train, give --gpus'
    return warning(f'{lr:g} is meant for {base} images, a step has {images}', remedy)


@check('config', needs=('optimizer',), remedy='let end and milestones of param_scheduler fit max_epochs of train_cfg')
def schedule(subject: Subject) -> Iterator[Finding]:
    """Whether the schedule of the learning rate ends when the training ends."""
    from upvit_mm.registry import type_name

    schedulers = subject.cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    loop = subject.cfg.train_cfg
    unit, total = (
        ('epochs', loop.get('max_epochs')) if loop.get('max_epochs') else ('iterations', loop.get('max_iters'))
    )
    steps = _steps(subject) if unit == 'epochs' else total
    problems, ends = [], []
    for settings in schedulers:
        by_epoch = settings.get('by_epoch', True)
        limit = total if by_epoch and unit == 'epochs' else steps
        if limit is None:
            continue
        end = settings.get('end', limit)
        if by_epoch or unit == 'iterations':
            ends.append(end)
        last = max([end, *settings.get('milestones', [])])
        if last > limit:
            problems.append(
                f'{type_name(settings.type)} goes to {last}, the training to {limit} '
                f'{"epochs" if by_epoch else "iterations"}: it does not get to its end'
            )
    if ends and max(ends) < total:
        problems.append(f'all end at {max(ends)}, the training at {total} {unit}: after that the rate does not change')
    for problem in problems:
        yield warning(problem)
    if schedulers and not problems:
        yield ok(f'{", ".join(type_name(settings.type) for settings in schedulers)} within {total} {unit}')


def _groups(subject: Subject) -> dict[str, dict]:
    """Settings of the optimizer by name of the parameter."""
    names = {id(parameter): name for name, parameter in subject.model.named_parameters()}
    groups = subject.optim_wrapper.optimizer.param_groups
    return {names[id(parameter)]: group for group in groups for parameter in group['params']}


def _steps(subject: Subject) -> int | None:
    """Iterations of a training; None if counting them would take long."""
    from mmengine.registry import DATASETS

    from upvit_mm.data.datasets import datasets_in

    datasets = [dataset for dataset in datasets_in(subject.cfg, 'train') if dataset.reads_as == 'CocoDataset']
    paths = [dataset.path(dataset.ann_file) for dataset in datasets]
    if not paths or not all(path.is_file() and path.stat().st_size < COUNTABLE for path in paths):
        return None
    images = len(DATASETS.build(subject.cfg.train_dataloader.dataset))
    return -(-images // (subject.processes * subject.images_per_gpu)) * subject.cfg.train_cfg.max_epochs
