"""What the pruning of a detector refuses, in one line and before anything is scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.compare.contestants import Contestant, with_backbone
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs
from upvit_mm.workflow.detector_file import narrowed, with_own_backbone
from upvit_mm.workflow.prune import PruneJob
from upvit_mm.workflow.prune_goal import goal_and_settings
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.whole_detector import build_detector


@pytest.fixture
def dense(detector_config, archs, tmp_path):
    """``dense(family)``: the config of a small RetinaNet and the file of its random weights."""

    def make(family: str) -> tuple[Config, Path]:
        cfg = with_backbone(detector_config(family), Contestant.parse(f'a={archs(family)[0]}'))
        torch.manual_seed(0)
        torch.save({'state_dict': build_detector(cfg).state_dict()}, tmp_path / 'dense.pth')
        return cfg, tmp_path / 'dense.pth'

    return make


def start(cfg: Config, checkpoint: Path, tmp_path: Path, **given) -> PruneJob:
    goal, settings = goal_and_settings(cfg, {'budget': 'macs=60%', 'round_to': 1, **given})
    return PruneJob(cfg, str(checkpoint), goal, tmp_path / 'out', settings)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'per_class': 2}, 'per_class = 2: is not for a detector; pictures of a detector have several classes'),
        ({'window_size': 7}, 'window_size = 7: is not for a detector; the windows are those of the config'),
        ({'method': 'taylor'}, "method = 'taylor': does not score the tokens of a detector; take one of fisher"),
        (
            {'method': 'exact', 'criterion': 'loss'},
            r"method = 'exact': does not score the loss .* of fisher, magn",
        ),
        ({'criterion': 'posterior'}, "criterion = 'posterior': a detector has no class posteriors; it takes tokens or"),
        ({'criterion': 'loss', 'images': 'any'}, "criterion = 'loss', images = 'any': the loss needs labels, which a"),
        ({'size': '64*96'}, r"size '64\*96': must be SIDE or HEIGHTxWIDTH in pixels"),
        ({'images': 'nowhere', 'eval_images': 0}, "image folder 'nowhere' does not exist"),
        ({'budget': 'macs=1%'}, 'out of reach: the narrowest network costs'),
        ({'budget': 'latency=60%'}, "budget = 'latency=60%': of a detector needs a size in pixels; write latency=60%@"),
    ],
)
def test_settings(dense, tmp_path, given, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        start(*dense('pvtv2'), tmp_path, **given).run()
    assert not (tmp_path / 'out/detector.pth').exists()


def test_defaults_of_detectors_give_way_to_settings(detector_config):
    cfg = detector_config('pvtv2')
    settings = goal_and_settings(cfg, {'budget': 'macs=50%'})[1]
    assert (settings.num_images, settings.eval_images, settings.compensate, settings.non_uniform) == (
        128,
        None,
        True,
        True,
    )
    cfg.prune = dict(num_images=9, compensate=False)
    settings = goal_and_settings(cfg, {'budget': 'macs=50%', 'non_uniform': False, 'eval_images': 3})[1]
    assert (settings.num_images, settings.eval_images, settings.compensate, settings.non_uniform) == (
        9,
        3,
        False,
        False,
    )
    assert PruneSettings().eval_images == 1000


def test_backbones_that_cannot_be_pruned(detector_config, tmp_path):
    cfg = detector_config('pvtv2')
    cfg.model.backbone = dict(_delete_=True, type='ResNet', depth=18)
    with pytest.raises(ValueError, match=r"type = 'ResNet': cannot be pruned; known are upvit_mm\.UPDeiT.*Pyramid"):
        PruneJob(cfg, 'no.pth', Budget.parse('macs=50%'), tmp_path, PruneSettings())


def test_a_backbone_alone_is_no_detector(dense, tmp_path):
    cfg, checkpoint = dense('pvtv2')
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    torch.save({'state_dict': {k: v for k, v in state.items() if k.startswith('backbone.')}}, checkpoint)
    with pytest.raises(ValueError, match='has no tensors of bbox_head, neck: a whole trained detector is needed'):
        start(cfg, checkpoint, tmp_path)
    cut = {k: v[:4] if k.endswith('retina_cls.weight') else v for k, v in state.items()}
    torch.save({'state_dict': cut}, checkpoint)
    with pytest.raises(ValueError, match=r'does not fit the detector of the config.*retina_cls.weight has shape'):
        start(cfg, checkpoint, tmp_path)


def test_missing_data(dense, tmp_path):
    cfg, checkpoint = dense('pvtv2')
    cfg.train_dataloader.dataset.data_root = 'nowhere'
    with pytest.raises(FileNotFoundError, match='nowhere'):
        start(cfg, checkpoint, tmp_path).run()
    cfg.pop('train_dataloader')
    with pytest.raises(ValueError, match='the config has no train_dataloader: give pictures with --images FOLDER'):
        start(cfg, checkpoint, tmp_path, eval_images=0).run()


def test_blocks_of_a_plain_vit_stay(dense, tmp_path):
    cfg, checkpoint = dense('deit')
    cfg.model.backbone.arch.depths = [2]
    for field in ('num_heads', 'qk_dims', 'v_dims', 'qk_scales', 'mlp_hidden_dims'):
        cfg.model.backbone.arch[field] = [list(cfg.model.backbone.arch[field][0]) * 2]
    torch.save({'state_dict': build_detector(cfg).state_dict()}, checkpoint)
    with pytest.raises(ValueError, match=r'target depths = \[1\]: must stay \[2\], because its windows and outputs'):
        start(cfg, checkpoint, tmp_path, budget=None, widths={'depths': [1]})


def test_a_width_that_the_neck_depends_on_stays(detector_of, detector_config, tmp_path):
    """RTMDet's neck takes its own widths from the maps: the budget is spent on the other widths."""
    cfg = detector_config('pvtv2')
    cfg.model = detector_of('rtmdet').model
    cfg.model.bbox_head.num_classes = 10
    torch.save({'state_dict': build_detector(cfg).state_dict()}, tmp_path / 'dense.pth')
    job = start(cfg, tmp_path / 'dense.pth', tmp_path, method='magnitude', eval_images=0)
    assert set(job.subject.fixed) == {f'stages.{i}.embed' for i in (1, 2, 3)}
    target = job.target()
    assert target.embed_dims[1:] == job.source.embed_dims[1:]
    assert 0.59 < count_macs(target, (64, 64)) / count_macs(job.source, (64, 64)) <= 0.6
    assert any('stages.1.embed keeps its width: neck.' in line for line in job.subject.next_steps(tmp_path))
    with pytest.raises(ValueError, match=r'target embed_dims\[2\] = 30: must stay 35 in this detector, because neck'):
        start(cfg, tmp_path / 'dense.pth', tmp_path, budget=None, widths={'embed_dims': [16, 24, 30, 40]})


def test_a_test_that_cannot_judge(dense, tmp_path):
    cfg, checkpoint = dense('pvtv2')
    cfg.test_evaluator.format_only = True
    with pytest.raises(ValueError, match=r'test_evaluator\.format_only = True: it writes files and gives no metrics'):
        start(cfg, checkpoint, tmp_path)
    start(cfg, checkpoint, tmp_path, eval_images=0)
    cfg.pop('test_evaluator')
    with pytest.raises(ValueError, match='the config has no test_evaluator, and the pruned detector is judged by its'):
        start(cfg, checkpoint, tmp_path)


def test_blocks_that_never_run_take_no_budget(dense, tmp_path):
    cfg, checkpoint = dense('pvtv2')
    cfg.model.backbone.out_indices = (0, 1, 2)
    cfg.model.neck.in_channels = cfg.model.neck.in_channels[:3]
    torch.save({'state_dict': build_detector(cfg).state_dict()}, checkpoint)
    message = r'out_indices: the last 1 of 4 blocks never run, and a budget would be spent on them; give the widths'
    with pytest.raises(ValueError, match=message):
        start(cfg, checkpoint, tmp_path)
    job = start(cfg, checkpoint, tmp_path, budget=None, widths={'mlp_hidden_dims': 14}, eval_images=0)
    dense_costs = job.costs(job.source)['dense']
    assert dense_costs['macs@64x64'] == count_macs(job.source, (64, 64), used=[1, 1, 1, 0])


def test_a_neck_that_does_not_name_the_widths_keeps_them(dense, tmp_path):
    """ViTDet's pyramid of mmdet has its own levels there, YOLOv3's neck the deepest map first."""
    cfg, _ = dense('pvtv2')
    arch, widths = cfg.model.backbone.arch, list(cfg.model.neck.in_channels)
    own = with_own_backbone(cfg)
    own.model.neck.in_channels = widths[::-1]
    same = ArchSpec.from_dict(arch).with_widths({'mlp_hidden_dims': 14})
    assert narrowed(own, same).model.neck.in_channels == widths[::-1]
    other = ArchSpec.from_dict(arch).with_widths({'embed_dims': [8, 12, 16, 17]})
    with pytest.raises(ValueError, match=r'in_channels = .* of FPN: are not the widths of the maps, \['):
        narrowed(own, other)
    own.model.neck.in_channels = widths
    assert narrowed(own, other).model.neck.in_channels == [8, 12, 16, 17]


def test_learning_rates_by_names_that_the_backbone_no_longer_has(dense, tmp_path, caplog):
    """mmdet's PVTv2 has ``layers`` where ours has ``stages``; its learning rate would be that of the heads."""
    cfg, _ = dense('pvtv2')
    cfg.model.backbone = dict(
        type='PyramidVisionTransformerV2', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 5]
    )
    cfg.model.neck.in_channels = [8, 16, 32, 40]
    cfg.optim_wrapper.paramwise_cfg = dict(
        custom_keys={'backbone.layers': dict(lr_mult=0.1), 'norm': dict(decay_mult=0), 'absent': dict(lr_mult=0.5)}
    )
    torch.save({'state_dict': build_detector(cfg).state_dict()}, tmp_path / 'stock.pth')
    job = start(cfg, tmp_path / 'stock.pth', tmp_path, eval_images=0)
    (line,) = [record.message for record in caplog.records if 'custom_keys' in record.message]
    assert line.startswith("optim_wrapper.paramwise_cfg.custom_keys: 'backbone.layers' fits ")
    assert line in job.subject.next_steps(tmp_path)


def test_some_pictures_of_a_test_need_a_metric_that_can(dense, tmp_path):
    cfg, checkpoint = dense('pvtv2')
    cfg.test_evaluator = dict(type='VOCMetric', metric='mAP')
    with pytest.raises(
        ValueError, match='eval_images: test_evaluator has a VOCMetric; the first pictures can be taken'
    ):
        start(cfg, checkpoint, tmp_path, eval_images=1)
    start(cfg, checkpoint, tmp_path, eval_images=0)
