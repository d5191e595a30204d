"""The classifier that a pruning job starts from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Size, Windows
from upvit_mm.checkpoints import load_classifier
from upvit_mm.models import build_backbone
from upvit_mm.models.map_strides import pyramid_strides
from upvit_mm.pruning import PrunePlan, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.criteria import Criterion, Posterior, ReadTokensChange, token_deviations
from upvit_mm.pruning.dims import table_of
from upvit_mm.pruning.importance import POSTERIOR
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.token_net import TokenNet
from upvit_mm.pruning.walk import Walk
from upvit_mm.workflow.job_images import ClassifierImages
from upvit_mm.workflow.ledger import Ledger
from upvit_mm.workflow.posteriors import build_net, judge
from upvit_mm.workflow.prune_checks import check_images, check_readout
from upvit_mm.workflow.prune_goal import source_of
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.subject import Figures, State, Subject

logger = logging.getLogger('upvit_mm')
DETECTOR_SIZE = (800, 1333)
USE = """These lines put the result into a detector (the last replaces SGD); save them as `{folder}/detector.py`:

```python
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'  # or a config of your own
model = dict(
    backbone=dict(
        _delete_=True, type='upvit_mm.{backbone}', arch='{folder}/arch.json',{windows}
        init_cfg=dict(type='Pretrained', checkpoint='{folder}/pruned.pth')),
    neck=dict({neck}){heads})
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))
```
"""
NECK = {  # key: whether the backbone is a pyramid
    True: 'in_channels={widths}',
    False: "_delete_=True, type='upvit_mm.SimpleFeaturePyramid', in_channels={widths},\n"
    '        out_channels=256, start_level=1, num_outs=5',
}


class DenseClassifier(Subject):
    """A config's network with the weights of a checkpoint; built when it is first used.

    Args:
        cfg: its mmpretrain config.
        checkpoint: its weights, in any layout that ``upvit_mm.checkpoints`` knows.
        device: where it runs.

    Attributes:
        state: its tensors, ``backbone.*`` and ``head.fc.*``.
        num_classes: outputs of its head; 0 = it has none.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the config is not of a classifier of this package, or the checkpoint does not fit it.
    """

    scope = 'mmpretrain'
    result = 'pruned.pth'

    def __init__(self, cfg: Config, checkpoint: str, device: str = 'cpu'):
        self.cfg, self.arch = cfg, source_of(cfg)
        super().__init__(checkpoint, device)
        self.state = load_classifier(self._file, arch=self.arch)
        self.num_classes = len(self.state.get('head.fc.bias', ()))

    def criterion_name(self, settings: PruneSettings) -> str:
        """Tokens, if nothing is said and the network has no head."""
        return settings.criterion or (Posterior.name if self.num_classes else ReadTokensChange.name)

    def attention(self, settings: PruneSettings) -> str:
        """Directions, if the network has no head; a method without images has nothing to find them with."""
        return 'channels' if self.num_classes or not METHODS[settings.method].needs_images else 'lowrank'

    def scored(
        self,
        settings: PruneSettings,
        batches: Sequence[Batch],
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ) -> tuple[Walk, Criterion]:
        if self.criterion_name(settings) == Posterior.name:
            return self.net, POSTERIOR
        windows = {'window_size': settings.window_size} if settings.window_size else {}
        net = TokenNet(build_backbone(self.arch, **windows))
        net.backbone.load_state_dict(self.net.backbone.state_dict())
        net.turned = self.turned
        net = net.to(self.device)
        return net, ReadTokensChange(token_deviations(net, batches, crew))

    def net_of(self, arch: ArchSpec, state: State) -> Walk:
        return build_net(arch, state, self.device)

    def with_weights(self, state: State, net: Walk) -> State:
        state = {f'backbone.{k}': v.cpu() for k, v in net.backbone.state_dict().items()}
        if net.head is not None:
            state |= {f'head.fc.{k}': v.cpu() for k, v in net.head.state_dict().items()}
        return state

    def slice(self, plan: PrunePlan) -> State:
        return slice_state(self.state, plan)

    def windows(self, settings: PruneSettings) -> Windows:
        return settings.windows

    @property
    def sizes(self) -> list[Size]:
        return [(self.arch.img_size,) * 2, DETECTOR_SIZE]

    def images(
        self,
        settings: PruneSettings,
        ledger: Ledger,
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ) -> ClassifierImages:
        return ClassifierImages(self.cfg, settings, ledger, crew)

    def check(self, settings: PruneSettings, scored: bool) -> None:
        """If posteriors are needed, refuse a checkpoint without a head, or a config that uses it in another way."""
        if settings.criterion not in (None, Posterior.name, ReadTokensChange.name):
            raise ValueError(
                f'criterion = {settings.criterion!r}: is for detectors; a classifier takes posterior or tokens.'
            )
        method = METHODS[settings.method]
        of_classes = self.criterion_name(settings) == Posterior.name or (method.needs_images and not method.criteria)
        posteriors = (scored and of_classes) or settings.eval_images != 0
        needed = scored or settings.eval_images != 0
        if not self.num_classes and posteriors:
            without = ' or '.join(name for name, m in METHODS.items() if m.criteria or not m.needs_images)
            raise ValueError(
                f'checkpoint {self.checkpoint!r} has no linear head, and class posteriors are needed: of a backbone '
                f'alone the tokens are scored, and nothing is judged: --criterion {ReadTokensChange.name}, --method '
                f'{without}, and --eval-images 0.'
            )
        if settings.heal:
            raise ValueError(f'heal = {settings.heal}: is for detectors; train a pruned classifier by distillation.')
        if settings.embed == 'rotate':
            table_of(self.arch).stream_readers(self.arch, 0)  # refuses a family that does not allow it
        if self.num_classes and (needed or settings.compensate):
            check_readout(self.cfg, self.arch.kind)

    def check_data(self, settings: PruneSettings, proxy: bool) -> None:
        if not settings.images:
            parts = ['train'] * proxy + ['val'] * (settings.eval_images != 0)
            check_images(self.cfg, parts, self.num_classes)

    def write_config(self, folder: Path, plan: PrunePlan) -> list[str]:
        plan.target_arch.save_json(folder / 'arch.json')
        return ['arch.json']

    def judge(self, folder: Path, files: Mapping[str, str], arch: ArchSpec, images: ClassifierImages) -> Figures:
        """``kl`` to the dense posteriors and, with labels, ``top1`` in %."""
        figures = {'dense': judge(self.net, self.net, images.held_out)}
        for name, file in files.items():
            net = self.net_of(arch, load_classifier(str(folder / file), arch=arch))
            figures[name] = judge(self.net, net, images.held_out)
        if 'compensated' in figures and figures['compensated']['kl'] > figures['sliced']['kl']:
            logger.warning('compensation made the network worse; use more images, or a larger ridge')
        return figures

    def table(self, figures: Figures) -> tuple[Sequence[str], list[Sequence[str]]]:
        rows = [
            (name, f'{row["kl"]:.4f}', f'{row["top1"]:.2f}' if 'top1' in row else 'no labels')
            for name, row in figures.items()
        ]
        return ('network', 'KL to the dense network', 'top-1 %'), rows

    def lines(self, figures: Figures) -> list[str]:
        lines = []
        for name, row in figures.items():
            top1 = f'top-1 {row["top1"]:.2f} %, ' if 'top1' in row else ''
            lines.append(f'{name}: {top1}KL to the dense network {row["kl"]:.4f} (held-out images)')
        return lines

    def use(self, folder: Path, plan: PrunePlan) -> list[str]:
        kind, side = self.arch.kind, plan.meta['settings']['window_size']
        windows = f'\n        window_size={side},' if side else ''
        neck = NECK[kind.is_pyramid].format(widths=list(plan.target_arch.embed_dims))
        patch_size, heads = plan.target_arch.patch_size, ''
        if not kind.is_pyramid and patch_size != 16:  # RetinaNet's are for 16
            heads = f',\n    bbox_head=dict(anchor_generator=dict(strides={pyramid_strides(patch_size, 1, 5)}))'
        return [USE.format(backbone=kind.backbone, neck=neck, heads=heads, folder=folder, windows=windows)]

    def next_steps(self, folder: Path) -> list[str]:
        return [f'{folder}: arch.json, pruned.pth and report.md']
