"""Trained detectors beside one another, each with a model of its own: all are judged alike, and none is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict

from upvit_mm.arch import ArchSpec
from upvit_mm.compare.contestants import Contestant, check_detector_config, with_backbone
from upvit_mm.compare.detector_options import DetectorOptions
from upvit_mm.compare.detectors import DetectorComparison
from upvit_mm.files import sha256_of
from upvit_mm.pruning.costs import count_macs
from upvit_mm.workflow.whole_detector import build_detector

STOCK = dict(type='PyramidVisionTransformerV2', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 5])


@pytest.fixture
def saved(tmp_path):
    """``saved(name, cfg)``: ``CONFIG.py,CHECKPOINT`` of a detector with random weights."""

    def save(name: str, cfg: Config) -> str:
        config, checkpoint = tmp_path / f'{name}.py', tmp_path / f'{name}.pth'
        cfg.dump(config)
        torch.manual_seed(0)
        detector = build_detector(cfg)
        detector.init_weights()
        torch.save({'state_dict': detector.state_dict()}, checkpoint)
        return f'{config},{checkpoint}'

    return save


@pytest.fixture
def compare(tmp_path):
    """``compare(cfg, *words)``: the rows by name, and what was said."""

    def run(cfg: Config, *words: str, **options) -> tuple[dict[str, dict], list[str]]:
        said, settings = [], DetectorOptions(**dict(seeds=(), repeats=0) | options)
        contestants = [Contestant.parse(text) for text in words]
        content = DetectorComparison(cfg, contestants, settings, tmp_path / 'out', said.append).run()
        return {row['name']: row for row in content['rows']}, said

    return run


def _found(tmp_path: Path, name: str) -> list[dict]:
    return json.loads((tmp_path / 'out' / name / 'predictions.json').read_text())


def test_each_has_its_own_model_and_all_the_same_judge(compare, saved, detector_config, archs, tmp_path):
    plain = with_backbone(detector_config('deit'), Contestant.parse(f'a={archs("deit")[0]}'))
    wide, narrow = archs('pvtv2')
    cfg = with_backbone(detector_config('pvtv2'), Contestant.parse(f'a={wide}'))
    dense = saved('dense', cfg)
    pruned = with_backbone(cfg, Contestant.parse(f'a={narrow}'))
    pruned.merge_from_dict({'model.bbox_head.stacked_convs': 1, 'load_from': 'no.pth'})
    pruned.test_dataloader.dataset.ann_file = pruned.test_evaluator.ann_file = 'no.json'
    stock = Config(cfg.to_dict())
    stock.model.backbone, stock.model.neck.in_channels = ConfigDict(STOCK), [8, 16, 32, 40]
    pairs = {'dense': dense, 'pruned': saved('pruned', pruned), 'stock': saved('stock', stock)}
    words = [f'{name}={files}' for name, files in (pairs | {'deit': saved('deit', plain)}).items()]
    words.append(f'same={wide},{tmp_path}/dense.pth')

    rows, said = compare(cfg, *words)
    assert said == [f'evaluating {name}' for name in rows]
    assert _found(tmp_path, 'same') == _found(tmp_path, 'dense') != []
    for name, row in rows.items():
        assert row['config'] == (None if name == 'same' else str(tmp_path / f'{name}.py'))
        metrics = json.loads((tmp_path / 'out' / name / 'metrics.json').read_text())
        assert row['mean']['bbox_mAP_50'] == metrics['metrics'].get('coco/bbox_mAP_50', 0.0)
        file = 'dense.pth' if name == 'same' else f'{name}.pth'
        assert row['sha256'] == metrics['sha256'] == sha256_of(tmp_path / file)
    for name, arch in (('dense', wide), ('pruned', narrow)):
        assert rows[name]['macs'] == count_macs(ArchSpec.from_json(arch), (64, 64))
    assert rows['stock']['arch']['embed_dims'] == [8, 16, 32, 40]
    assert rows['pruned']['params'] == sum(p.numel() for p in build_detector(pruned).parameters())
    assert compare(cfg, *words) == (rows, [])
    text = (tmp_path / 'out/detectors.md').read_text()
    assert f'model of `{tmp_path}/pruned.py`\n' in text
    assert text.count('model of `') == 4
    assert '<title>RetinaNet on dense, pruned, stock, deit, same</title>' in (tmp_path / 'out/report.html').read_text()


@pytest.mark.parametrize('wrapper', ['module.', '_orig_mod.'])
def test_a_checkpoint_of_a_wrapped_detector(compare, saved, detector_config, archs, tmp_path, wrapper):
    """As torch's DataParallel and torch.compile save it."""
    cfg = with_backbone(detector_config('pvtv2'), Contestant.parse(f'a={archs("pvtv2")[0]}'))
    pair = saved('plain', cfg)
    content = torch.load(tmp_path / 'plain.pth', weights_only=True)
    content['state_dict'] = {f'{wrapper}{name}': value for name, value in content['state_dict'].items()}
    torch.save(content, tmp_path / 'wrapped.pth')
    rows, _ = compare(cfg, f'plain={pair}', f'wrapped={tmp_path}/plain.py,{tmp_path}/wrapped.pth')
    assert _found(tmp_path, 'wrapped') == _found(tmp_path, 'plain') != []
    assert rows['wrapped']['mean'] == rows['plain']['mean']


def test_a_config_of_any_backbone_judges_pairs(compare, saved, detector_config, archs):
    """Its own model is not built."""
    cfg = detector_config('pvtv2')
    pair = saved('own', with_backbone(cfg, Contestant.parse(f'a={archs("pvtv2")[1]}')))
    cfg.merge_from_dict({'model.backbone.type': 'ResNet', 'load_from': 'x.pth'})
    assert list(compare(cfg, f'own={pair}')[0]) == ['own']
    with pytest.raises(ValueError, match=r"backbone\.type = 'ResNet'"):
        check_detector_config(cfg, trained=False)


def test_mistakes(compare, saved, detector_config, archs, tmp_path):
    wide, narrow = archs('pvtv2')
    cfg = with_backbone(detector_config('pvtv2'), Contestant.parse(f'a={wide}'))
    good = saved('good', cfg)
    with pytest.raises(ValueError, match=r'b: CONFIG\.py,CHECKPOINT is .* only evaluated, .* add --evaluate'):
        compare(cfg, f'a={wide}', f'b={good}', seeds=(0,))
    with pytest.raises(ValueError, match=r"'b=good\.py' must be .*NAME=CONFIG\.py,CHECKPOINT for a whole detector"):
        compare(cfg, 'b=good.py')
    with pytest.raises(FileNotFoundError, match=r"backbones: b: config '.*no\.py' does not exist"):
        compare(cfg, f'b=no.py,{tmp_path}/good.pth')
    with pytest.raises(FileNotFoundError, match=r'b: checkpoint .*no\.pth'):
        compare(cfg, f'b={tmp_path}/good.py,{tmp_path}/no.pth')
    other = saved('other', with_backbone(cfg, Contestant.parse(f'a={narrow}')))
    with pytest.raises(ValueError, match=r'backbones: b .*: checkpoint .*good\.pth.* embed_dims|does not fit'):
        compare(cfg, f'b={other.partition(",")[0]},{tmp_path}/good.pth')
    few = Config(cfg.to_dict())
    few.model.bbox_head.num_classes = 3
    with pytest.raises(ValueError, match=r'b .*: numbers of classes differ: .*bbox_head\.num_classes 3'):
        compare(cfg, f'b={saved("few", few)}')
    few.model.backbone = ConfigDict(type='ResNet', depth=18)
    few.dump(tmp_path / 'few.py')
    with pytest.raises(ValueError, match=r"backbones: b \(.*few\.py\): model\.backbone\.type = 'ResNet': cannot be"):
        compare(cfg, f'b={tmp_path}/few.py,{tmp_path}/few.pth')
    assert not (tmp_path / 'out').exists()
