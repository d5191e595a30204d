"""The pruning job from checkpoint to files, and those files at work in mmpretrain and mmdet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from upvit_mm.arch import ArchSpec
from upvit_mm.data.image_set import choose_images, held_out_set, proxy_set
from upvit_mm.prune import Settings, prune
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.scores import load_scores

ROOT = Path(__file__).parents[1]
CONFIGS = {'deit': 'configs/demo/up-deit-micro_digits.py', 'pvtv2': 'configs/demo/up-pvtv2-micro_digits.py'}
NARROWER = {  # half the attention, 5/8 of the FFN, 3/4 of the embedding; PVTv2 also loses blocks
    'deit': dict(embed_dims=[72], qk_dims=48, v_dims=48, mlp_hidden_dims=240),
    'pvtv2': dict(
        embed_dims=[12, 24, 60, 96],
        depths=[1, 2, 1, 2],
        num_heads=[1, 2, 5, 8],
        qk_dims=[8, 16, 40, 64],
        v_dims=[8, 16, 40, 64],
        qk_scales=0.25,
        mlp_hidden_dims=[80, 160, 200, 320],
    ),
}


@pytest.fixture
def cfg(family, digits_folder) -> Config:
    """The demo's config of a classifier, on the small data set."""
    cfg = Config.fromfile(ROOT / CONFIGS[family])
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.data_root = str(digits_folder / 'classification')
    return cfg


@pytest.fixture
def checkpoint(cfg, scope, tmp_path) -> str:
    """An untrained classifier of that config."""
    from mmpretrain.registry import MODELS

    scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    torch.nn.init.normal_(model.head.fc.weight, std=0.3)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'dense.pth')
    return str(tmp_path / 'dense.pth')


@pytest.fixture
def target(family, cfg) -> ArchSpec:
    return ArchSpec.from_dict({**cfg.arch, 'name': 'narrow', **NARROWER[family]})


def test_the_tool_and_what_becomes_of_its_files(family, cfg, checkpoint, target, scope, tmp_path):
    cfg.dump(tmp_path / 'dense.py')
    target.save_json(tmp_path / 'target.json')
    words = ['--target', 'target.json', '--work-dir', 'out', '--per-class', '12', '--draws', '1', '--compensate']
    env = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, str(ROOT / 'tools/prune.py'), 'dense.py', checkpoint, *words, '--eval-images', '40']
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'compensated: top-1' in done.stdout
    out = tmp_path / 'out'
    assert {p.name for p in out.iterdir()} == {
        'arch.json',
        'plan.json',
        'proxy.txt',
        'report.json',
        'scores.pt',
        'sliced.pth',
    }
    assert len((out / 'proxy.txt').read_text().splitlines()) == 120
    plan = PrunePlan.load(out / 'plan.json')
    assert plan.target_arch == target == ArchSpec.from_json(out / 'arch.json')
    meta = torch.load(out / 'sliced.pth', weights_only=True)['meta']
    assert meta['tool'] == 'prune'
    assert len(meta['sha256']) == 64
    held_out = json.loads((out / 'report.json').read_text())['held_out']
    assert held_out['dense']['kl'] == pytest.approx(0, abs=1e-9)
    assert 0 < held_out['compensated']['kl'] < held_out['sliced']['kl']

    (tmp_path / 'small.py').write_text(
        f"_base_ = ['{ROOT / CONFIGS[family]}']\n"
        f'arch = {ArchSpec.from_json(out / "arch.json").to_dict()}\n'
        "model = dict(backbone=dict(arch=dict(_delete_=True, **arch)), head=dict(in_channels=arch['embed_dims'][-1]))\n"
    )
    from mmpretrain.registry import MODELS

    scope('mmpretrain')
    model = MODELS.build(Config.fromfile(tmp_path / 'small.py').model)
    load_checkpoint(model, str(out / 'sliced.pth'), strict=True)
    with torch.no_grad():
        assert torch.isfinite(model.eval()(torch.randn(1, 3, 64, 64), mode='tensor')).all()


def test_the_pruned_backbone_goes_into_a_detector(cfg, checkpoint, target, scope, tmp_path, family):
    prune(cfg, checkpoint, target, tmp_path, Settings(method='magnitude', per_class=1, eval_images=10))
    neck = dict(type='FPN', in_channels=list(target.embed_dims), out_channels=16, num_outs=4)
    if family == 'deit':
        neck = dict(type='upvit_mm.SimpleFeaturePyramid', in_channels=target.embed_dims[0], out_channels=16)
    (tmp_path / 'detector.py').write_text(
        "_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './arch.json']\n"
        f"model = dict(backbone=dict(_delete_=True, type='upvit_mm.{'UPDeiT' if family == 'deit' else 'UPPVTv2'}',\n"
        f"    arch=_base_.arch, init_cfg=dict(type='Pretrained', checkpoint='{tmp_path}/sliced.pth')),\n"
        f'    neck=dict(_delete_=True, **{neck}), bbox_head=dict(in_channels=16))\n'
    )
    from mmdet.registry import MODELS

    scope('mmdet')
    model = MODELS.build(Config.fromfile(tmp_path / 'detector.py').model)
    model.init_weights()
    state = torch.load(tmp_path / 'sliced.pth', weights_only=True)['state_dict']
    assert all(torch.equal(v, state[f'backbone.{k}']) for k, v in model.backbone.state_dict().items())


def test_scores_are_used_again_only_for_the_same_inputs(cfg, checkpoint, target, tmp_path):
    settings = dict(method='fisher', draws=1, per_class=1, eval_images=10)
    plans = [prune(cfg, checkpoint, target, tmp_path, Settings(**settings)).plan]
    stamp = (tmp_path / 'scores.pt').stat().st_mtime_ns
    plans.append(prune(cfg, checkpoint, target, tmp_path, Settings(**settings)).plan)
    assert (tmp_path / 'scores.pt').stat().st_mtime_ns == stamp
    assert all(torch.equal(plans[0].kept[n], plans[1].kept[n]) for n in plans[0].kept)
    prune(cfg, checkpoint, target, tmp_path, Settings(**settings | {'draws': 2}))
    assert (tmp_path / 'scores.pt').stat().st_mtime_ns != stamp


@pytest.mark.parametrize('family', ['pvtv2'])
def test_kl_and_fisher_rank_alike(cfg, checkpoint, target, tmp_path):
    """The estimate follows the definition, over all channels of the widest dims."""
    for method in ('kl', 'fisher'):
        settings = Settings(method=method, draws=16, per_class=1, eval_images=10)
        prune(cfg, checkpoint, target, tmp_path / method, settings)
    exact, estimate = (
        load_scores(tmp_path / m / 'scores.pt', ArchSpec.from_dict(cfg.arch))[0] for m in ('kl', 'fisher')
    )
    ranks = [
        torch.corrcoef(torch.stack([exact[n].argsort().argsort(), estimate[n].argsort().argsort()]).double())[0, 1]
        for n in exact
    ]
    assert torch.stack(ranks).median() > 0.8


def test_bad_input(cfg, checkpoint, target, tmp_path):
    with pytest.raises(ValueError, match="method = 'guess'"):
        Settings(method='guess')
    quick = dict(method='random', eval_images=10)
    with pytest.raises(ValueError, match='class 0 has 400 images: 401 of every class'):
        prune(cfg, checkpoint, target, tmp_path, Settings(per_class=401, **quick))
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'no.pth' does not exist"):
        prune(cfg, 'no.pth', target, tmp_path, Settings(**quick))
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    headless = {k: v for k, v in state.items() if not k.startswith('head')}
    torch.save(headless, tmp_path / 'headless.pth')
    with pytest.raises(ValueError, match='has no linear head'):
        prune(cfg, str(tmp_path / 'headless.pth'), target, tmp_path, Settings(**quick))
    wider = ArchSpec.from_dict({**target.to_dict(), 'mlp_hidden_dims': 4096})
    with pytest.raises(ValueError, match=r'mlp_hidden: the target keeps 4096 of'):
        prune(cfg, checkpoint, wider, tmp_path, Settings(**quick))


# -------------------------------------------------------------------- image sets


def test_proxy_set_is_balanced_seeded_and_in_test_transforms(cfg, scope):
    scope('mmpretrain')
    first, again, other = (proxy_set(cfg, 3, seed, batch_size=8) for seed in (1, 1, 2))
    assert first.numbers == again.numbers != other.numbers
    assert first.labels[first.numbers].tolist() == [c for c in range(10) for _ in range(3)]
    batches = list(first.batches())
    assert [len(x) for x, _ in batches] == [8, 8, 8, 6]
    assert [n for _, numbers in batches for n in numbers] == first.numbers
    assert batches[0][0].shape[1:] == (3, 64, 64)
    assert all('/train/' in path for path in first.paths)
    held_out = held_out_set(cfg, 50, seed=0)
    assert len(held_out.numbers) == 50
    assert all('/val/' in path for path in held_out.paths)
    assert len(held_out_set(cfg, 10**6, seed=0).numbers) == 1000


def test_choice_of_images():
    labels = [0] * 5 + [1] * 5 + [2] * 5
    chosen = choose_images(labels, 2, 0, 3)
    assert chosen == sorted(set(chosen))
    assert [labels[n] for n in chosen] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match='class 3 has 0 images'):
        choose_images(labels, 2, 0, 4)
    with pytest.raises(ValueError, match='per_class = 0'):
        choose_images(labels, 0, 0, 3)


def test_unreadable_images_are_left_out_or_refused(cfg, scope, digits_folder, tmp_path, caplog):
    import shutil

    scope('mmpretrain')
    root = shutil.copytree(digits_folder / 'classification', tmp_path / 'classification')
    for part in ('train', 'val'):
        cfg[f'{part}_dataloader'].dataset.data_root = str(root)
    whole = proxy_set(cfg, 20, seed=0)
    Path(whole.paths[7]).write_bytes(b'no picture')
    with caplog.at_level('WARNING', 'upvit_mm'):
        left = proxy_set(cfg, 20, seed=0)  # 1 of 200
    assert left.numbers == whole.numbers[:7] + whole.numbers[8:]
    assert f'{whole.paths[7]} cannot be read and is left out' in caplog.text
    for path in whole.paths[:3]:
        Path(path).write_bytes(b'')
    with pytest.raises(ValueError, match=r'4 of 200 images cannot be read, .*png among them'):
        proxy_set(cfg, 20, seed=0)
