"""The trained detector that a pruning job starts from."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Size, Windows
from upvit_mm.checkpoints import read_checkpoint
from upvit_mm.data.checks import check_datasets
from upvit_mm.models.arch_in_config import map_widths
from upvit_mm.models.detector_loss import DetectorLoss
from upvit_mm.models.map_readers import MapReaders, find_map_readers
from upvit_mm.models.map_repair import repair_readers
from upvit_mm.models.trained_detector import load_trained
from upvit_mm.openmmlab import require_mmcv_ops
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.criteria import Criterion, Posterior, ReadTokensChange, token_deviations
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.table import BACKBONE
from upvit_mm.pruning.token_net import TokenNet
from upvit_mm.pruning.walk import Walk
from upvit_mm.registry import MODELS
from upvit_mm.workflow.detector_file import (
    DENSE,
    FOLLOWER,
    PRUNED,
    narrowed,
    with_own_backbone,
    write_detector,
    write_follower,
)
from upvit_mm.workflow.detector_test import DetectorTest, check_countable, check_testable
from upvit_mm.workflow.healing import heal
from upvit_mm.workflow.job_images import DetectorImages
from upvit_mm.workflow.ledger import Ledger
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.subject import Figures, State, Subject
from upvit_mm.workflow.whole_detector import build_detector, default_size, map_outputs

logger = logging.getLogger('upvit_mm')


class DenseDetector(Subject):
    """A trained detector of mmdet. Its backbone is pruned, its neck and heads stay.

    Args:
        cfg: its whole config; the backbone is one of ours, or one that ``own_backbone`` converts.
        checkpoint: its weights, neck and heads included.
        device: where it runs.

    Attributes:
        state: all its tensors; the backbone has our names.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the backbone cannot be pruned, or the checkpoint is not of the whole detector.
    """

    scope = 'mmdet'
    result = 'detector.pth'

    def __init__(self, cfg: Config, checkpoint: str, device: str = 'cpu'):
        require_mmcv_ops()
        init_default_scope('mmdet')
        self.cfg, self._own = cfg, with_own_backbone(cfg)
        self.arch = ArchSpec.from_dict(self._own.model.backbone.arch)
        super().__init__(checkpoint, device)
        content = read_checkpoint(self._file)
        self.detector = build_detector(self._own)
        load_trained(self.detector, content, checkpoint)
        self.state = self.detector.state_dict()
        self._names = list(content.get('state_dict', content))
        meta = content.get('meta') or {}
        self._meta = {'dataset_meta': meta['dataset_meta']} if 'dataset_meta' in meta else {}

    @property
    def identity(self) -> list[Any]:
        model = self._own.model.to_dict()
        return [*super().identity, {name: value for name, value in model.items() if name != 'test_cfg'}]

    @property
    def judged_by(self) -> Any:
        return self.cfg.to_dict()  # as DetectorTest

    @cached_property
    def readers(self) -> MapReaders:
        """What reads the backbone's maps."""
        side = max(128, 4 * self.detector.backbone.smallest_side)
        image = torch.randn(1, self.arch.in_channels, side, side, generator=torch.Generator().manual_seed(0))
        return find_map_readers(
            self.detector, lambda arch: build_detector(narrowed(self._own, arch)), map_outputs, image
        )

    @property
    def fixed(self) -> Mapping[str, str]:
        blocks = {} if self.arch.kind.is_pyramid else {'depths': 'its windows and outputs are given by block number'}
        return {**self.readers.fixed, **blocks}

    def criterion_name(self, settings: PruneSettings) -> str:
        return settings.criterion or ReadTokensChange.name

    def attention(self, settings: PruneSettings) -> str:
        return 'lowrank'

    def scored(
        self,
        settings: PruneSettings,
        batches: Sequence[Batch],
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ) -> tuple[Walk, Criterion]:
        if self.criterion_name(settings) == DetectorLoss.name:
            return self.net, DetectorLoss(self.detector, self.device)
        return self.net, ReadTokensChange(token_deviations(self.net, batches, crew))

    def net_of(self, arch: ArchSpec, state: State) -> TokenNet:
        backbone = MODELS.build({**self._own.model.backbone.to_dict(), 'arch': arch.to_dict()})
        backbone.load_state_dict({k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)})
        return TokenNet(backbone).to(self.device)

    def with_weights(self, state: State, net: TokenNet) -> State:
        return state | {f'{BACKBONE}{k}': v.cpu() for k, v in net.backbone.state_dict().items()}

    def repair_rest(self, state: State, plan: PrunePlan, batches: Sequence[Batch], ridge: float | None) -> State:
        pruned = build_detector(narrowed(self._own, plan.target_arch))
        pruned.load_state_dict(state)
        names = [slot.tensor for slots in self.readers.slots.values() for slot in slots]
        dense = copy.deepcopy(self.detector).to(self.device)
        repair_readers(dense, pruned.to(self.device), names, batches, map_outputs, ridge)
        return {key: tensor.cpu() for key, tensor in pruned.state_dict().items()}

    def heal(
        self, state: State, batches: Sequence[Batch], settings: PruneSettings, arch: ArchSpec, file: Path
    ) -> State:
        pruned = build_detector(narrowed(self._own, arch))
        pruned.load_state_dict(state)
        names = [slot.tensor for slots in self.readers.slots.values() for slot in slots]
        dense = copy.deepcopy(self.detector).to(self.device)
        heal(dense, pruned.to(self.device), names, batches, settings.heal, settings.seed, file)
        return {key: tensor.cpu() for key, tensor in pruned.state_dict().items()}

    def slice(self, plan: PrunePlan) -> State:
        return self.readers.slice(self.state, plan)

    def windows(self, settings: PruneSettings) -> Windows:
        return self.detector.backbone.windows

    def blocks_in_use(self, arch: ArchSpec) -> list[int]:
        return [min(pair) for pair in zip(self.detector.backbone.blocks_in_use(), arch.depths)]

    @property
    def sizes(self) -> list[Size]:
        return [default_size(self.cfg)]

    def images(
        self,
        settings: PruneSettings,
        ledger: Ledger,
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ) -> DetectorImages:
        preprocessor: nn.Module = self.detector.data_preprocessor
        return DetectorImages(self.cfg, settings, ledger, preprocessor, crew)

    def check(self, settings: PruneSettings, scored: bool) -> None:
        criterion = self.criterion_name(settings)
        if criterion == Posterior.name:
            raise ValueError(f'criterion = {criterion!r}: a detector has no class posteriors; it takes tokens or loss.')
        if criterion == DetectorLoss.name and settings.images:
            raise ValueError(
                f'criterion = {criterion!r}, images = {settings.images!r}: the loss needs labels, which a folder of '
                'pictures does not have; leave out one of them.'
            )
        fitting = [name for name, m in METHODS.items() if not m.needs_images or criterion in m.criteria]
        if settings.method not in fitting:
            raise ValueError(
                f'method = {settings.method!r}: does not score the {criterion} of a detector; take one of '
                f'{", ".join(fitting)}.'
            )
        if settings.embed != 'channels':
            raise ValueError(
                f"embed = {settings.embed!r}: a detector takes 'channels'; layers after the backbone pool its maps, "
                'channel by channel.'
            )
        for line in self._lost_keys():
            logger.warning(line)
        if settings.eval_images != 0:
            check_testable(self.cfg)
        if settings.eval_images:
            check_countable(self.cfg)

    def check_data(self, settings: PruneSettings, proxy: bool) -> None:
        parts = ['train'] * (proxy and not settings.images) + ['test'] * (settings.eval_images != 0)
        check_datasets(self.cfg, parts)

    def write_config(self, folder: Path, plan: PrunePlan) -> list[str]:
        plan.target_arch.save_json(folder / 'arch.json')
        pruned = narrowed(self._own, plan.target_arch)
        files = ['arch.json', *write_detector(folder, self.cfg, pruned, self.result)]
        backbone = self._own.model.backbone
        if self.detector.with_neck or map_widths(backbone, self.arch) == map_widths(backbone, plan.target_arch):
            dense = folder / DENSE if DENSE in files else Path(self.cfg.filename)
            files.append(write_follower(folder, dense, self.checkpoint))
        else:
            (folder / FOLLOWER).unlink(missing_ok=True)  # of an earlier job
        return files

    @property
    def meta(self) -> dict[str, Any]:
        return self._meta

    def judge(self, folder: Path, files: Mapping[str, str], arch: ArchSpec, images: DetectorImages) -> Figures:
        """The metrics of the config's test evaluator."""
        count, pruned = images.settings.eval_images, narrowed(self._own, arch)
        figures = {'dense': DetectorTest(folder / 'test/dense', self.cfg, self._file, count).metrics()}
        for name, file in files.items():
            figures[name] = DetectorTest(folder / 'test' / name, pruned, folder / file, count).metrics()
        return figures

    def table(self, figures: Figures) -> tuple[Sequence[str], list[Sequence[str]]]:
        """AP in %; mmdet leaves it out where nothing was detected."""
        keys = dict.fromkeys(key for row in figures.values() for key in row)
        shown = [key for key in keys if key.endswith(('mAP', 'mAP_50', 'mAP_75'))] or list(keys)
        rows = [(name, *(f'{100 * row.get(key, 0):.1f}' for key in shown)) for name, row in figures.items()]
        return ('detector', *(key.rpartition('/')[2] for key in shown)), rows

    def lines(self, figures: Figures) -> list[str]:
        (_, *names), rows = self.table(figures)
        texts = [', '.join(map(' '.join, zip(names, values))) or 'nothing was detected' for _, *values in rows]
        return [f'{name}: {text}' for (name, *_), text in zip(rows, texts)]

    def use(self, folder: Path, plan: PrunePlan) -> list[str]:
        return ['```bash', *(f'{command}  # {purpose}' for purpose, command in self._commands(folder)), '```', '']

    def next_steps(self, folder: Path) -> list[str]:
        kept = [f'{name} keeps its width: {reason}' for name, reason in self.readers.fixed.items()]
        commands = [f'{purpose}: {command}' for purpose, command in self._commands(folder)[1:]]
        return [*kept, *self._lost_keys(), f'{folder}: detector.py, detector.pth and report.md', *commands]

    def _lost_keys(self) -> list[str]:
        """A line for each of the optimizer's ``custom_keys`` that fits names of a stock backbone, but none of ours."""
        keys = ((self.cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}).get('custom_keys') or {}
        ours = [name for name, _ in self.detector.named_parameters()]
        lost = [key for key in keys if any(key in n for n in self._names) and not any(key in n for n in ours)]
        return [
            f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} fits {sum(key in n for n in self._names)} tensors of '
            f'the checkpoint and none of the pruned detector, with names as {ours[0]}: change it before training on.'
            for key in lost
        ]

    def _commands(self, folder: Path) -> list[tuple[str, str]]:
        """What each command is for, and the command."""
        commands = [
            ('test', f'python tools/test.py {folder}/{PRUNED} {folder}/{self.result}'),
            ('go on', f'python tools/train.py {folder}/{PRUNED}'),
        ]
        if (folder / FOLLOWER).is_file():
            commands.append(('or with the dense detector as teacher', f'python tools/train.py {folder}/{FOLLOWER}'))
        return commands
