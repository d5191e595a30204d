"""Multiply-accumulates and parameters: counted module by module at any size, and traced by torch's own counter."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.arch.size import GLOBAL, Size, Windows
from upvit_mm.models import build_backbone
from upvit_mm.pruning.costs import mac_terms, param_terms, total, widths_of
from upvit_mm.registry import require_families, scope_of
from upvit_mm.workflow.whole_detector import build_detector

PARTS = {  # of a block -> its modules
    'attention projections': ('attn.q', 'attn.k', 'attn.v', 'attn.proj'),
    'attention products': ('attn',),
    'spatial reduction': ('attn.sr', 'attn.sr_norm'),
    'ffn': ('mlp.fc1', 'mlp.gate', 'mlp.dwconv', 'mlp.fc2'),
    'norms': ('norm1', 'norm2'),
}
PART_OF = {module: part for part, modules in PARTS.items() for module in modules}


@dataclass
class Part:
    """Costs of a part of a network, including the parts inside it.

    Attributes:
        name: its name in tables.
        macs: multiply-accumulates of one image.
        params: parameters.
        parts: the parts inside it, by name.
    """

    name: str
    macs: int = 0
    params: int = 0
    parts: dict[str, Part] = field(default_factory=dict)

    def add(self, path: Sequence[str], macs: int = 0, params: int = 0) -> None:
        """Add costs here and in every part on the path to their module."""
        self.macs += macs
        self.params += params
        if path:
            self.parts.setdefault(path[0], Part(path[0])).add(path[1:], macs, params)

    def walk(self, depth: int, level: int = 0) -> Iterator[tuple[int, Part]]:
        """This part and those inside it, ``depth`` levels deep, each with its level."""
        yield level, self
        for part in self.parts.values() if depth > level else ():
            yield from part.walk(depth, level + 1)


def count(arch: ArchSpec, size: Size, num_classes: int = 0, windows: Windows = GLOBAL) -> Part:
    """Costs by stage, block, part of a block, and module; see ``upvit_mm.pruning.costs.mac_terms``."""
    root, widths = Part('total'), widths_of(arch)
    for term in mac_terms(arch, size, num_classes, windows):
        if cost := total([term], widths):  # a backbone alone has a head of 0 classes
            root.add(_path(term.module), macs=cost)
    for term in param_terms(arch, num_classes):
        if cost := total([term], widths):
            root.add(_path(term.module), params=cost)
    return root


def _path(module: str) -> tuple[str, ...]:
    """``stages.0.blocks.1.attn.q`` -> ``('stage 0', 'block 1', 'attention projections', 'attn.q')``."""
    if module in ('cls_token', 'reg_token', 'pos_embed'):
        return 'stage 0', 'patch embedding', module
    if not module.startswith('stages.'):
        return (module,)
    _, i, kind, *rest = module.split('.')
    if kind == 'patch_embed':
        return f'stage {i}', 'patch embedding', *rest
    if kind == 'norm':
        return f'stage {i}', 'norms'
    inner = '.'.join(rest[1:])
    return f'stage {i}', f'block {rest[0]}', PART_OF[inner], inner


def traced_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of ``model(x)``, in convolutions and matrix products, by torch's ``FlopCounterMode``.

    It runs on the meta device, which has shapes but no numbers, so large sizes cost no time or memory. Fused attention
    is computed in single operations, because the counter does not know all fused kernels.

    Note:
        If queries and values of a block have different widths, our attention pads the narrower one with zeros for the
        fused kernel; these zeros are counted here.
    """
    return _trace(copy.deepcopy(model).to('meta'), x.to('meta'))[1]


@torch.no_grad()
def _trace(model: nn.Module, x: Any) -> tuple[Any, int]:
    """The output of a model on the meta device, and its multiply-accumulates."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = model(x)
    return out, counter.get_total_flops() // 2


def traced_detector(model: nn.Module, size: Size) -> Part:
    """Costs of a detector by backbone, neck and heads, counted by ``traced_macs``.

    Heads on regions are counted for the largest number of regions that the test settings allow. A part that cannot run
    alone says so in its name and counts no MACs.

    Args:
        model: a detector of mmdet.
        size: ``(height, width)`` of the image in pixels, including padding.
    """
    from mmdet.models import SingleStageDetector

    model, root = copy.deepcopy(model).to('meta'), Part('detector')
    regions = _regions(model)
    readers = {'backbone', 'neck', 'rpn_head', *regions}
    if getattr(type(model), '_forward', None) is SingleStageDetector._forward:
        readers.add('bbox_head')
    x = torch.empty(1, 3, *size, device='meta')
    for name, module in _units(model):
        out, macs, note = None, 0, ' (MACs not traced)'
        with contextlib.suppress(RuntimeError):  # an operator of mmcv without support for the meta device
            if name in readers and x is not None:
                out, macs = _trace(module, regions.get(name, x))
                note = f' ({len(regions[name])} regions)' if name in regions else ''
        if name in ('backbone', 'neck'):
            x = out
        root.add((name + note,), macs, sum(p.numel() for p in module.parameters()))
    return root


def _units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a detector that have parameters, in the order of its forward pass."""
    children = dict(model.named_children())
    if roi_head := children.pop('roi_head', None):
        children |= {f'roi_head.{name}': module for name, module in roi_head.named_children()}
    return ((name, module) for name, module in children.items() if any(True for _ in module.parameters()))


def _regions(model: nn.Module) -> dict[str, Tensor]:
    """Inputs of the heads of mmdet's plain two-stage detectors, ``(regions, C, h, w)``; empty for other detectors."""
    from mmdet.models.roi_heads import StandardRoIHead

    roi_head = getattr(model, 'roi_head', None)
    if type(roi_head) is not StandardRoIHead or roi_head.with_shared_head:
        return {}
    found = {}
    for kind, stage in (('bbox', 'rpn'), ('mask', 'rcnn')):  # the box head reads proposals, the mask head detections
        if stage in model.test_cfg and getattr(roi_head, f'with_{kind}'):
            extractor = getattr(roi_head, f'{kind}_roi_extractor')
            shape = (model.test_cfg[stage].max_per_img, extractor.out_channels, *extractor.roi_layers[0].output_size)
            found[f'roi_head.{kind}_head'] = torch.empty(shape, device='meta')
    return found


def measure_arch(
    arch: ArchSpec, sizes: Sequence[Size], num_classes: int = 0, windows: Windows = GLOBAL
) -> dict[str, Any]:
    """Counted and traced costs of a backbone and its head.

    Args:
        arch: the network.
        sizes: ``(height, width)`` of images in pixels.
        num_classes: outputs of the head; 0 = a backbone alone.
        windows: where its blocks attend within windows.

    Returns:
        ``{'arch', 'num_classes', 'layout', 'sizes'}``, and by size ``{'counted': Part, 'traced_backbone_macs': int}``.

    Raises:
        ValueError: see ``mac_terms`` and ``UPDeiT``.
    """
    layout = windows.settings
    record: dict[str, Any] = {'arch': arch.to_dict(), 'num_classes': num_classes, 'layout': layout, 'sizes': {}}
    backbone = build_backbone(arch, **layout).eval()
    for size in sizes:
        record['sizes'][f'{size[0]}x{size[1]}'] = {
            'counted': count(arch, size, num_classes, windows),
            'traced_backbone_macs': traced_macs(backbone, torch.empty(1, arch.in_channels, *size, device='meta')),
        }
    return record


def measure_config(cfg: Config, sizes: Sequence[Size]) -> dict[str, Any]:
    """The same for a config's network, including its windows; for a detector also ``'detector': Part`` by size.

    Args:
        cfg: config of a detector of mmdet or a classifier of mmpretrain, with one of our backbones.
        sizes: see ``measure_arch``.

    Raises:
        ValueError: another backbone, or see ``measure_arch``.
    """
    settings = cfg.model.backbone
    windows = Windows(settings.get('window_size', 0), settings.get('global_blocks'))
    arch = resolve_arch(settings.arch, require_families('model.backbone.type', settings.type))
    if scope_of(cfg) != 'mmdet':
        return measure_arch(arch, sizes, cfg.model.head.num_classes, windows)
    record, detector = measure_arch(arch, sizes, windows=windows), build_detector(cfg)
    for size, costs in zip(sizes, record['sizes'].values()):
        costs['detector'] = traced_detector(detector, size)
    return record


def tables_of(record: Mapping[str, Any], depth: int) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table of ``measure_arch`` or ``measure_config``.

    Args:
        record: their result.
        depth: 0 the total, 1 stages too, 2 blocks, 3 parts of blocks, 4 modules.
    """
    name = record['arch']['name'] or record['arch']['family']
    counted = {size: costs['counted'] for size, costs in record['sizes'].items()}
    traced = [f'{costs["traced_backbone_macs"] / 1e6:,.3f} at {size}' for size, costs in record['sizes'].items()]
    tables = [
        _table(f'{name}, counted (backbone traced by torch: {", ".join(traced)})', counted, depth),
        _table(f'{name}, by kind', {size: by_kind(root) for size, root in counted.items()}, 1),
    ]
    if all('detector' in costs for costs in record['sizes'].values()):
        detectors = {size: costs['detector'] for size, costs in record['sizes'].items()}
        tables.append(_table('detector, traced', detectors, 1))
    return tables


def by_kind(root: Part) -> Part:
    """The same costs by kind of operation, not by place."""
    whole = Part('total')
    for stage in root.parts.values():
        for unit in stage.parts.values() or [stage]:  # the head has no parts
            for part in unit.parts.values() if unit.name.startswith('block ') else [unit]:
                whole.add((part.name,), part.macs, part.params)
    return whole


def _table(title: str, roots: Mapping[str, Part], depth: int) -> tuple[str, list[str], list[list[str]]]:
    """One row for each part; parameters, then multiply-accumulates at each size, both in millions and in percent."""
    header = ['part', 'M params', '%']
    rows: list[list[str]] = []
    for size, root in roots.items():
        header += [f'M MACs at {size}', '%']
        for k, (level, part) in enumerate(root.walk(depth)):
            if k == len(rows):
                rows.append(['  ' * level + part.name, *_cells(part.params, root.params)])
            rows[k] += _cells(part.macs, root.macs)
    return title, header, rows


def _cells(cost: int, whole: int) -> list[str]:
    return [f'{cost / 1e6:,.3f}', f'{100 * cost / whole:.1f}']
