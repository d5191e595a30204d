"""Every config builds and takes a training step; ours swap into mmdet's own."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec, arch_names, get_arch
from upvit_mm.arguments import add_run_arguments
from upvit_mm.models.map_strides import check_strides

CONFIGS = Path(__file__).parents[1] / 'configs'
ARCHS = sorted((CONFIGS / '_base_/archs').glob('*.json'))
ENTRIES = sorted(p for p in CONFIGS.rglob('*.py') if '_base_' not in p.parts)
DETECTORS = [p for p in ENTRIES if not p.name.startswith('up-')]
CLASSIFIERS = [p for p in ENTRIES if p.name.startswith('up-') and p.parent.name != 'distillation']  # with a head
STOCK_DETECTORS = [
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'retinanet/retinanet_r50_fpn_1x_coco.py',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'atss/atss_r50_fpn_1x_coco.py',
]
SWAP = """
_base_ = '{base}'
model = dict(
    backbone=dict(
        _delete_=True, type='upvit_mm.UPPVTv2', arch='{folder}/arch.json',
        init_cfg=dict(type='Pretrained', checkpoint='{folder}/pruned.pth')),
    neck=dict(in_channels=[16, 24, 35, 40]))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4))
"""
OWN_SWAP = """
_base_ = '{base}'
model = dict(
    backbone=dict(arch='{folder}/arch.json', init_cfg=dict(checkpoint='{folder}/pruned.pth')),
    neck=dict(in_channels=[45]))
"""


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize('path', ARCHS, ids=name_of)
def test_arch_files_are_valid_and_equal_to_the_zoo(path):
    spec = ArchSpec.from_json(path)
    assert spec.name == path.stem
    assert json.loads(path.read_text()) == {'arch': spec.to_dict()}
    if spec.name in arch_names():
        assert spec == get_arch(spec.name)


@pytest.mark.parametrize('path', [p for p in ENTRIES if p.parent.name != 'pruning'], ids=name_of)
def test_every_training_can_be_resumed_as_if_undisturbed(path):
    cfg = Config.fromfile(path)
    assert {'upvit_mm.StopOnNonFiniteLoss', 'upvit_mm.SeedEveryEpoch'} <= {hook.type for hook in cfg.custom_hooks}
    assert cfg.train_dataloader.persistent_workers is False  # else the hook refuses


def detector_losses(cfg: Config, scope, size: int = 96) -> dict:
    """Losses of one training step on two random images; backbone weights are not loaded."""
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs

    scope('mmdet')
    cfg.model.backbone.init_cfg = None
    if 'roi_head' in cfg.model:  # fewer proposals: the same code, seconds less
        cfg.model.train_cfg.rpn_proposal.max_per_img = 40
        stages = cfg.model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16
    if 'num_queries' in cfg.model:
        cfg.model.num_queries = 40  # at this size there are fewer tokens than queries
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.train()
    heads = cfg.model.get('bbox_head') or cfg.model.roi_head.bbox_head
    num_classes = heads.get('num_classes', 10) if isinstance(heads, dict) else 10
    shapes = [(3, size, size), (3, size - 7, size - 20)]
    with_mask = 'mask_head' in cfg.model.get('roi_head', {})
    data = demo_mm_inputs(2, shapes, num_classes=min(num_classes + 1, 10), with_mask=with_mask)
    for sample in data['data_samples']:
        sample.gt_instances.labels %= num_classes
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    total.backward()
    dead = [n for n, p in model.backbone.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not dead
    return losses


@pytest.mark.parametrize('path', DETECTORS, ids=name_of)
def test_detector_config(path, scope):
    cfg = Config.fromfile(path)
    arch = ArchSpec.from_dict(cfg.arch)
    assert cfg.model.backbone.arch == cfg.arch
    assert list(cfg.model.neck.in_channels) == list(arch.embed_dims)
    assert arch.name in path.name
    losses = detector_losses(cfg, scope)
    assert any(name.endswith('loss_mask') for name in losses) == ('mask-rcnn' in path.name)


@pytest.mark.parametrize('path', [p for p in DETECTORS if p.parent.name == 'detection'], ids=name_of)
def test_coco_recipe(path):
    """What the configs promise in their docstrings."""
    cfg = Config.fromfile(path)
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert 'momentum' not in cfg.optim_wrapper.optimizer
    assert cfg.optim_wrapper.optimizer.lr == (2e-4 if 'mask-rcnn' in path.name else 1e-4)
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.batch_size == 2  # on 8 GPUs
    assert cfg.model.backbone.drop_path_rate == 0.1
    if '1x' in path.name:
        assert cfg.train_cfg.max_epochs == 12
        warm_up, steps = cfg.param_scheduler
        assert (warm_up.type, warm_up.end, warm_up.by_epoch) == ('LinearLR', 500, False)
        assert steps.milestones == [8, 11]
    elif path.name.startswith('dino-'):
        assert (cfg.train_cfg.max_epochs, [s.milestones for s in cfg.param_scheduler]) == (12, [[11]])
    else:
        assert cfg.train_dataloader.dataset.times * cfg.train_cfg.max_epochs == 36
    arch = ArchSpec.from_dict(cfg.arch)
    weights = f'{arch.name}.pth' if arch.family.startswith('dino') else f'up-{arch.name}_in1k.pth'
    assert cfg.model.backbone.init_cfg.checkpoint == f'checkpoints/{weights}'
    if not arch.kind.is_pyramid:
        from upvit_mm.models import UPViT

        undecayed = cfg.optim_wrapper.paramwise_cfg
        assert undecayed.norm_decay_mult == undecayed.bias_decay_mult == 0

        settings = {k: v for k, v in cfg.model.backbone.items() if k not in ('type', 'init_cfg')}
        with torch.device('meta'):
            kinds = [type(b.attn).__name__ for b in UPViT(**settings).stages[0].blocks]
        assert kinds.count('Attention') == 4
        assert kinds[-1] == 'Attention'
    if arch.family.startswith('dino'):
        assert cfg.optim_wrapper.constructor == 'upvit_mm.LayerDecayOptimWrapperConstructor'
        assert cfg.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.8
        mixed = 'OptimWrapper' if path.name.startswith('dino-') else 'AmpOptimWrapper'
        assert (cfg.optim_wrapper.type, cfg.optim_wrapper.get('dtype', 'bfloat16')) == (mixed, 'bfloat16')
        raised = 'upvit_mm.Float32Outputs' in {hook.type for hook in cfg.custom_hooks}
        assert raised == (mixed == 'AmpOptimWrapper')


def without_teacher(cfg: Config) -> dict:
    """A config's model as a plain classifier: checkpoints are not at hand (see test_classification_configs.py)."""
    settings = dict(cfg.model)
    if settings['type'] == 'upvit_mm.DistillClassifier':
        settings = {k: v for k, v in settings.items() if k not in ('teacher', 'distill', 'init_cfg')}
        settings['type'] = 'ImageClassifier'
        settings['head'] = {'in_channels': cfg.arch.embed_dims[-1], **settings['head']}
    return settings


@pytest.mark.parametrize('path', CLASSIFIERS, ids=name_of)
def test_classifier_config(path, scope):
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    cfg = Config.fromfile(path)
    assert cfg.model.backbone.arch == cfg.arch
    scope('mmpretrain')
    settings = without_teacher(cfg)
    model = MODELS.build({**settings, 'data_preprocessor': {'type': 'ClsDataPreprocessor', **cfg.data_preprocessor}})
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    images = list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    batch = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    losses = model(**batch, mode='loss')
    losses['loss'].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.fixture
def save_pruned(tmp_path, build):
    """``save_pruned(family, arch)``: the folder with the files of a pruned backbone: arch.json and a checkpoint."""
    from upvit_mm.checkpoints import save_checkpoint

    def save(family: str, arch: dict) -> Path:
        ArchSpec.from_dict(arch).save_json(tmp_path / 'arch.json')
        state = build(family, arch).state_dict()
        save_checkpoint(tmp_path / 'pruned.pth', {f'backbone.{k}': v for k, v in state.items()})
        return tmp_path

    return save


@pytest.fixture
def pruned(save_pruned, tiny_arch):
    return save_pruned('pvtv2', tiny_arch('pvtv2'))


@pytest.mark.parametrize('stock', STOCK_DETECTORS, ids=lambda s: s.split('/')[0])
def test_six_lines_swap_the_backbone_of_a_stock_config(stock, pruned, scope):
    path = pruned / 'swapped.py'
    path.write_text(SWAP.format(base=f'mmdet::{stock}', folder=pruned))
    cfg = Config.fromfile(path)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)

    from mmdet.registry import MODELS

    scope('mmdet')
    model = MODELS.build(cfg.model)
    model.init_weights()
    weights = torch.load(pruned / 'pruned.pth', weights_only=True)['state_dict']
    assert all(torch.equal(v, weights[f'backbone.{k}']) for k, v in model.backbone.state_dict().items())
    losses = detector_losses(cfg, scope)
    assert any('loss' in key for key in losses)


@pytest.mark.parametrize('stock', STOCK_DETECTORS, ids=lambda s: s.split('/')[0])
def test_cfg_options_alone_swap_the_backbone(stock, pruned):
    """As the README's command line writes them, parsed as every tool parses them."""
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    options = f"""model.backbone._delete_=True
        model.backbone.type=upvit_mm.UPPVTv2 model.backbone.arch={pruned}/arch.json
        model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint={pruned}/pruned.pth
        model.neck.in_channels=[16,24,35,40]
        optim_wrapper.optimizer._delete_=True optim_wrapper.optimizer.type=AdamW optim_wrapper.optimizer.lr=1e-4
        optim_wrapper.optimizer.weight_decay=1e-4"""
    (pruned / 'stock.py').write_text(f"_base_ = ['mmdet::{stock}']")
    cfg = Config.fromfile(pruned / 'stock.py')
    cfg.merge_from_dict(parser.parse_args(['--cfg-options', *options.split()]).cfg_options)

    path = pruned / 'swapped.py'
    path.write_text(SWAP.format(base=f'mmdet::{stock}', folder=pruned))
    expected = Config.fromfile(path)
    assert cfg.model == expected.model
    assert cfg.optim_wrapper == expected.optim_wrapper


@pytest.mark.parametrize('kind', ['retinanet', 'mask-rcnn'])
def test_six_lines_swap_the_backbone_of_a_config_that_has_an_arch(kind, pruned, scope):
    """Two bases with ``arch`` would be a duplicate key."""
    own, path = pruned / 'own.py', pruned / 'swapped.py'
    own.write_text(f"_base_ = '{CONFIGS}/detection/{kind}_up-pvtv2-b0_fpn_1x_coco.py'")
    path.write_text(SWAP.format(base=own, folder=pruned))
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.arch == f'{pruned}/arch.json'
    assert any('loss' in key for key in detector_losses(cfg, scope))


@pytest.mark.parametrize('name', ['retinanet_up-dinov2', 'mask-rcnn_up-dinov3'])
def test_six_lines_put_a_pruned_dino_into_its_config(name, save_pruned, tiny_arch, scope):
    """The strides of 14 px patches stay; weights are loaded; a step trains all of the backbone."""
    from mmdet.registry import MODELS

    family = name.rpartition('-')[2]
    changes = dict(patch_size=14, img_size=56) if family == 'dinov2' else {}
    folder = save_pruned(family, tiny_arch(family, **changes))
    path = folder / 'swapped.py'
    path.write_text(OWN_SWAP.format(base=f'{CONFIGS}/detection/{name}-small_sfp_1x_coco.py', folder=folder))
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.window_size == 14
    check_strides(cfg)
    scope('mmdet')
    model = MODELS.build(cfg.model)
    model.init_weights()
    weights = torch.load(folder / 'pruned.pth', weights_only=True)['state_dict']
    assert all(torch.equal(v, weights[f'backbone.{k}']) for k, v in model.backbone.state_dict().items())
    detector_losses(cfg, scope)


def test_own_data_config_of_the_docs(tmp_path):
    """The page's example is a whole config: it parses, and its classes are those of the heads."""
    text = (CONFIGS.parent / 'docs/own_data.md').read_text()
    (code,) = (block for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL) if 'fruit' in block)
    (tmp_path / 'own.py').write_text(code.replace("'./configs", f"'{CONFIGS}"))
    cfg = Config.fromfile(tmp_path / 'own.py')
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    for part in ('train', 'val', 'test'):
        dataset = cfg[f'{part}_dataloader'].dataset
        assert (dataset.data_root, dataset.metainfo.classes) == ('data/fruit/', ('apple', 'pear'))
        assert dataset.pipeline
    assert cfg.test_evaluator.ann_file == 'data/fruit/val.json'
    assert cfg.test_evaluator.metric == ['bbox', 'segm']


def test_another_backbone_in_the_own_config_of_the_docs(tmp_path, pruned):
    """The page's lines inherit a config that already has an arch."""
    text = (CONFIGS.parent / 'docs/own_data.md').read_text()
    (code,) = (block for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL) if './own.py' in block)
    (tmp_path / 'own.py').write_text(f"_base_ = '{CONFIGS}/detection/mask-rcnn_up-pvtv2-b0_fpn_1x_coco.py'")
    (tmp_path / 'half.py').write_text(code.replace('work_dirs/half', str(pruned)))
    model = Config.fromfile(tmp_path / 'half.py').model
    assert model.backbone.arch == f'{pruned}/arch.json'
    assert model.backbone.init_cfg == dict(type='Pretrained', checkpoint=f'{pruned}/pruned.pth')
    assert model.neck.in_channels == [24, 56, 144, 208]
