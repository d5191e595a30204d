"""``detector.py``: the config of a pruned detector, which inherits that of the dense one; ``detector_distil.py``: the
same with the dense one as teacher."""

from __future__ import annotations

import copy
import os
import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from upvit_mm.arch import ArchSpec
from upvit_mm.files import update_text
from upvit_mm.models.arch_in_config import map_widths, put_arch, reading_parts
from upvit_mm.models.own_backbone import own_backbone
from upvit_mm.registry import HOOKS, MODELS, is_type, type_name

DENSE, PRUNED, FOLLOWER = 'dense.py', 'detector.py', 'detector_distil.py'
TEXT = """\"\"\"The detector of {base} with its backbone pruned to {title}.

Go on training: python tools/train.py {folder}/detector.py
\"\"\"

_base_ = {base!r}
model = {model}{arch}{hooks}
load_from = '{{{{ fileDirname }}}}/{checkpoint}'
resume = False
work_dir = '{{{{ fileDirname }}}}/trained'
"""
FOLLOWER_TEXT = """\"\"\"The pruned detector of {pruned}, with the dense one as teacher (``upvit_mm.FollowDense``).

Go on training: python tools/train.py {folder}/{follower}
\"\"\"

_base_ = {pruned!r}
custom_hooks = [
    *(_base_.get('custom_hooks') or []),
    dict(
        type='upvit_mm.FollowDense',
        config={config!r},
        checkpoint={checkpoint!r},
    ),
]
work_dir = '{{{{ fileDirname }}}}/distilled'
"""


def with_own_backbone(cfg: Config) -> Config:
    """The detector's config with our backbone, without start weights.

    Raises:
        ValueError: see ``own_backbone``; no part reads the backbone's maps.
    """
    cfg = Config(copy.deepcopy(cfg.to_dict()))
    model = cfg.get('model') or {}
    cfg.model.backbone = ConfigDict(own_backbone(model.get('backbone') or {}, cfg.get('default_scope') or 'mmdet'))
    cfg.model.init_cfg = None
    if not reading_parts(cfg.model):
        raise ValueError(
            'the model has no neck, and no head with a list in_channels: nothing says what reads the maps.'
        )
    return cfg


def narrowed(cfg: Config, arch: ArchSpec) -> Config:
    """The config of ``with_own_backbone`` for another architecture; only the widths of maps change.

    Raises:
        ValueError: the maps get other widths, and ``in_channels`` of what reads them are not the widths of before.
    """
    cfg = copy.deepcopy(cfg)
    dense = map_widths(cfg.model.backbone, ArchSpec.from_dict(cfg.model.backbone.arch))
    given = [part.in_channels for part in reading_parts(cfg.model)]
    put_arch(cfg.model, arch)
    keeps = map_widths(cfg.model.backbone, arch) == dense
    for part, channels in zip(reading_parts(cfg.model), given):
        if keeps:
            part.in_channels = channels
        elif (channels if isinstance(channels, int) else list(channels)) not in (dense, dense[-1]):
            raise ValueError(
                f'in_channels = {channels} of {type_name(part.get("type"))}: are not the widths of the maps, {dense}.'
            )
        if is_type(part.get('type'), 'SimpleFeaturePyramid', registry=MODELS):
            part.setdefault('inner_channels', dense[0])
    return cfg


def write_detector(folder: Path, cfg: Config, pruned: Config, checkpoint: str) -> list[str]:
    """Write ``detector.py`` and, if it is needed, a dump of the dense detector's config that it inherits.

    Args:
        folder: the folder.
        cfg: the dense detector's config, as it was read from its file and changed by options.
        pruned: one of ``narrowed``.
        checkpoint: name of the pruned weights in the folder.

    Returns:
        Names of the files.
    """
    model, files, base = pruned.model, [PRUNED], _inheritable(cfg)
    if base is None:
        update_text(folder / DENSE, cfg.pretty_text)
        files, base = [DENSE, PRUNED], folder / DENSE
    else:
        (folder / DENSE).unlink(missing_ok=True)  # of a job with options
    changes: dict[str, Any] = {'backbone': {'_delete_': True, **model.backbone.to_dict()}}
    for name, part in model.items():
        if name != 'backbone' and part != cfg.model.get(name):
            changes[name] = _difference(part, cfg.model.get(name))
    arch = ArchSpec.from_dict(model.backbone.arch)
    own = "\narch = dict(model['backbone']['arch'], _delete_=True)" if isinstance(cfg.get('arch'), Mapping) else ''
    text = TEXT.format(
        arch=own,  # of configs that inherit an arch.json
        hooks=_hooks_without_teacher(cfg),
        base=_path_from(folder, base),
        title=arch.name or 'other widths',
        folder=folder,
        model=pprint.pformat(changes, width=120, compact=True, sort_dicts=False),
        checkpoint=checkpoint,
    )
    update_text(folder / PRUNED, text)
    return files


def write_follower(folder: Path, config: Path, checkpoint: str) -> str:
    """Write ``detector_distil.py``: ``detector.py`` with the dense detector as teacher.

    Args:
        folder: the folder, with ``detector.py``.
        config: file of the dense detector's config.
        checkpoint: the dense detector's weights, a file or an address.

    Returns:
        Name of the file.
    """
    is_file = '://' not in checkpoint
    text = FOLLOWER_TEXT.format(
        pruned=PRUNED,
        follower=FOLLOWER,
        folder=folder,
        config=_beside(folder, config),
        checkpoint=_beside(folder, Path(checkpoint).expanduser()) if is_file else checkpoint,
    )
    update_text(folder / FOLLOWER, text)
    return FOLLOWER


def _beside(folder: Path, file: Path) -> str:
    """The path of a file for a config in a folder."""
    path = _path_from(folder, file)
    return path if Path(path).is_absolute() else f'{{{{ fileDirname }}}}/{path}'


def _path_from(folder: Path, file: Path) -> str:
    """The path of a file from a folder; absolute if ``..`` would cross a link, which mmengine takes in two ways."""
    there, path = file.absolute(), os.path.relpath(file, folder)
    whole = there.parent.resolve() / there.name
    crosses = os.path.relpath(whole, folder.resolve()) != path
    return whole.as_posix() if crosses else Path(path).as_posix()


def _hooks_without_teacher(cfg: Config) -> str:
    """A line that leaves out the teacher of a detector that was pruned before; empty without one."""
    hooks = cfg.get('custom_hooks') or []
    own = [hook for hook in hooks if not is_type(hook.get('type'), 'FollowDense', registry=HOOKS)]
    if len(own) == len(hooks):
        return ''
    text = pprint.pformat([Config(dict(hook)).to_dict() for hook in own], width=120, compact=True, sort_dicts=False)
    return f'\ncustom_hooks = {text}  # without the teacher of the detector that is pruned again'


def _inheritable(cfg: Config) -> Path | None:
    """The config's own file, if a text config can inherit it and gives this config."""
    file = cfg.filename
    if not file or not Path(file).is_file():
        return None
    try:
        same = Config.fromfile(file, lazy_import=False).to_dict()
    except Exception:  # a new-style config cannot be inherited
        return None
    ours = cfg.to_dict()
    return Path(file) if {**same, 'work_dir': None} == {**ours, 'work_dir': None} else None


def _difference(ours: Any, theirs: Any) -> Any:
    """What a child config must say so that ``theirs`` becomes ``ours``."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and theirs.keys() <= ours.keys():
        changed = {key for key in ours if key not in theirs or ours[key] != theirs[key]}
        return {key: _difference(value, theirs.get(key)) for key, value in ours.items() if key in changed}
    if isinstance(ours, Mapping):
        return {'_delete_': True, **Config(dict(ours)).to_dict()}
    if isinstance(ours, Sequence) and not isinstance(ours, str):
        return [item.to_dict() if isinstance(item, ConfigDict) else item for item in ours]
    return ours
