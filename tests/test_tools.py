"""The tools as a user runs them: in processes of their own, which are forked but for the first run of each."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures import forked
from fixtures.jobs import free_port

ROOT = Path(__file__).parents[1]
PARTS = ('train', 'val', 'test')
IN_PROCESS = [f'{part}_dataloader.{key}' for part in PARTS for key in ('num_workers=0', 'persistent_workers=False')]
RETINANET = 'configs/demo/retinanet_up-pvtv2-micro_fpn_digits.py'
CLASSIFIER = 'configs/demo/up-pvtv2-micro_digits.py'
HASH_HOOK = """
import hashlib, pathlib
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class WriteWeights(Hook):
    def after_train(self, runner):
        state = runner.model.module.state_dict()
        digest = hashlib.sha256(b''.join(v.cpu().numpy().tobytes() for v in state.values())).hexdigest()
        text = f'{digest} {torch.distributed.get_world_size()} {torch.distributed.get_backend()}'
        pathlib.Path(runner.work_dir, f'rank{runner.rank}').write_text(text)
"""


def run(*words: str | Path, path: Path | None = None, status: int = 0) -> str:
    """What a command prints on both streams; it must end with ``status``."""
    env = os.environ | {
        'PYTHONPATH': os.pathsep.join(map(str, filter(None, (ROOT, path)))),
        'PYTHONWARNINGS': 'ignore',
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',  # the same on every machine
        'PYTHON': sys.executable,
    }
    done = subprocess.run(list(map(str, words)), env=env, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    output = done.stdout + done.stderr
    assert done.returncode == status, output[-3000:]
    return output


def tool(name: str, *words: str | Path, status: int = 0) -> str:
    """The same of a tool that is forked."""
    ended, output = forked.run([f'tools/{name}.py', *map(str, words)], ROOT, os.environ | {'PYTHONPATH': str(ROOT)})
    assert ended == status, output[-3000:]
    return output


@pytest.fixture
def data_options(digits_folder) -> list[str]:
    """Options that point the demo detector at the small data set, single process loading, one epoch."""
    return [
        *(f'{part}_dataloader.dataset.data_root={digits_folder}' for part in PARTS),
        *(f'{part}_evaluator.ann_file={digits_folder}/annotations/instances_val.json' for part in ('val', 'test')),
        *(
            f'{part}_dataloader.{key}'
            for part in ('train', 'val', 'test')
            for key in ('num_workers=0', 'persistent_workers=False')
        ),
        'train_dataloader.batch_size=4',
        'model.test_cfg.score_thr=0.0',  # a net that has hardly been trained detects something too
        'train_cfg.max_epochs=1',
    ]


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('check_consistency', ['--dense', 'no.py', 'no.pth', '--pruned', 'no.py', 'no.pth', '--images', 'no']),
        ('compare_consistency', ['no.py', 'no.pth', '--networks', 'a=no.json,no.pth', '--images', 'no']),
        ('benchmark', ['backbone', '--arch', 'no.json']),
        ('benchmark', ['latency', '--config', 'no.py']),
    ],
)
def test_a_gpu_that_is_not_there_is_one_line(name, words, tmp_path):
    """Said before any file is looked for: none of them exists."""
    words += [] if name == 'benchmark' else ['--work-dir', tmp_path]
    *_, last = tool(name, *words, '--device', 'cuda', status=1).splitlines()
    assert last.startswith("error: --device = 'cuda': torch ")
    assert last.endswith('sees no GPU on this machine; use cpu.')


def test_train_and_test_a_detector(data_options, tmp_path):
    work_dir = tmp_path / 'run'
    run(sys.executable, 'tools/train.py', RETINANET, '--work-dir', work_dir, '--cfg-options', *data_options)
    checkpoint = work_dir / 'epoch_1.pth'
    assert Path((work_dir / 'last_checkpoint').read_text()) == checkpoint

    results = [work_dir / 'metrics.json', work_dir / 'predictions.pkl']
    options = ['--metrics', results[0], '--out', results[1], '--show-dir', 'pictures']
    words = [RETINANET, checkpoint, '--work-dir', work_dir / 'test', *options, '--cfg-options', *data_options]
    run(sys.executable, 'tools/test.py', *words)
    metrics = json.loads(results[0].read_text())
    assert 0 <= metrics['metrics']['coco/bbox_mAP'] <= 1
    assert metrics['checkpoint'] == str(checkpoint)
    assert len(metrics['sha256']) == 64
    assert metrics['options']['train_cfg.max_epochs'] == 1
    assert [Path(path).name for path in metrics['data']] == ['instances_val.json']
    assert metrics['pictures'] == 2
    predictions = pickle.loads(results[1].read_bytes())
    assert sorted(p['img_id'] for p in predictions) == [1, 2]
    assert len(list((work_dir / 'test').glob('*/pictures/*.png'))) == 2

    # the heads of another width are refused, or stay random on purpose
    narrow = [*data_options, 'model.bbox_head.feat_channels=16']
    words = [RETINANET, checkpoint, '--work-dir', work_dir / 'test', '--metrics', results[0]]
    *_, error = tool('test', *words, '--cfg-options', *narrow, status=1).splitlines()
    assert error.startswith(f"error: checkpoint '{checkpoint}' does not fit the model of the config: 10 tensors are ")
    assert 'in bbox_head: 10 of another shape: bbox_head.cls_convs.0.conv.weight has shape (64, 64, 3, 3)' in error
    words += ['--allow-missing', 'bbox_head', '--weights', 'raw']
    output = tool('test', *words, '--cfg-options', *narrow)
    assert '--allow-missing bbox_head: 10 tensors are missing or of another shape and stay random: bbox_head.' in output
    assert json.loads(results[0].read_text())['weights'] == 'raw'

    longer = [*data_options[:-1], 'train_cfg.max_epochs=2']
    output = tool('train', RETINANET, '--work-dir', work_dir, '--resume', '--cfg-options', *longer)
    assert 'resumed epoch: 1' in output
    assert 'Epoch(train)  [1]' not in output
    assert (work_dir / 'epoch_2.pth').is_file()


def test_train_a_classifier_and_carry_its_backbone_into_a_detector(digits_folder, data_options, tmp_path):
    options = [
        *(f'{part}_dataloader.dataset.data_root={digits_folder}/classification' for part in PARTS),
        *IN_PROCESS,
        'train_dataloader.dataset.data_prefix=val',
        'train_cfg.max_epochs=1',
    ]
    tool('train', CLASSIFIER, '--work-dir', tmp_path / 'cls', '--cfg-options', *options)
    pretrained = tmp_path / 'cls/epoch_1.pth'
    backbone = ['model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={pretrained}']
    frozen = ['model.backbone.frozen_stages=4']  # so that the detector ends with the classifier's weights
    words = ['--work-dir', tmp_path / 'det', '--cfg-options', *data_options, *backbone, *frozen]
    output = tool('train', RETINANET, *words)
    assert f'{pretrained}: dropped 2 tensors outside the backbone (head)' in output
    assert f'UPPVTv2(arch=pvtv2-micro): loaded 192 tensors from {pretrained}' in output
    classifier = torch.load(tmp_path / 'cls/epoch_1.pth', weights_only=False)['state_dict']
    detector = torch.load(tmp_path / 'det/epoch_1.pth', weights_only=False)['state_dict']
    carried = [k for k in classifier if k.startswith('backbone.')]
    assert len(carried) == 192
    assert all(torch.equal(classifier[k], detector[k]) for k in carried)


def test_two_processes_end_with_the_same_weights(data_options, launch, tmp_path):
    (tmp_path / 'write_weights.py').write_text(HASH_HOOK)
    config = tmp_path / 'two.py'
    config.write_text(
        f"_base_ = '{ROOT / RETINANET}'\n"
        "custom_imports = dict(imports=['write_weights'])\n"
        "custom_hooks = [dict(type='WriteWeights')]\n"
    )
    words = ['--work-dir', tmp_path / 'run', '--cfg-options', *data_options]
    run('env', f'PORT={free_port()}', 'tools/dist_train.sh', config, '2', *words, path=tmp_path)
    first, second = ((tmp_path / 'run' / f'rank{rank}').read_text().split() for rank in (0, 1))
    assert first == second
    assert first[1:] == ['2', 'gloo']

    metrics = ['--metrics', tmp_path / 'metrics.json']
    words = ['--work-dir', tmp_path / 'test', *metrics, '--cfg-options', *data_options]
    launch('dist_test.sh', ROOT / RETINANET, tmp_path / 'run/epoch_1.pth', '2', *words)
    assert 'coco/bbox_mAP' in json.loads((tmp_path / 'metrics.json').read_text())['metrics']


@pytest.mark.parametrize(
    'script', ['dist_train', 'dist_test', 'dist_prune', 'slurm_train', 'slurm_test', 'slurm_prune']
)
def test_launchers_say_how_they_are_used(script):
    assert f'usage: tools/{script}.sh' in run(f'tools/{script}.sh', status=2)


@pytest.mark.parametrize('gpus', ['--amp', '0', '-1', '1.5', 'two', ''])
def test_launchers_ask_for_a_number_of_gpus(gpus):
    """Forgotten, the next word would stand in its place; one line instead of torchrun's traceback."""
    files = {'dist_train': [], 'dist_test': ['c.pth'], 'dist_prune': ['c.pth'], 'dist_compare_detectors': []}
    for script, words in files.items():
        (line,) = run(f'tools/{script}.sh', RETINANET, *words, gpus, '--work-dir', 'no', status=2).splitlines()
        rule = f'error: GPUS = {gpus}: must be a whole number of 1 or more; usage: tools/{script}.sh CONFIG'
        assert line.startswith(rule)


def test_slurm_launchers(tmp_path):
    """What they ask of slurm, with an ``srun`` that prints its words."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    path = ['env', f'PATH={tmp_path}:{os.environ["PATH"]}', 'GPUS=16', 'SRUN_ARGS=--qos=a --time=1']
    words = run(*path, 'tools/slurm_train.sh', 'part', 'job', 'c.py', 'out', '--amp').splitlines()
    for word in ('--partition=part', '--ntasks=16', '--gres=gpu:8', '--ntasks-per-node=8', '--qos=a', '--time=1'):
        assert word in words
    assert words[-7:] == [str(ROOT / 'tools/train.py'), 'c.py', '--work-dir', 'out', '--launcher', 'slurm', '--amp']
    words = run(*path, 'tools/slurm_test.sh', 'part', 'job', 'c.py', 'c.pth').splitlines()
    assert words[-5:] == [str(ROOT / 'tools/test.py'), 'c.py', 'c.pth', '--launcher', 'slurm']
    words = run(*path, 'tools/slurm_prune.sh', 'part', 'job', 'c.py', 'c.pth', 'out', '--method', 'exact').splitlines()
    expected = ['c.py', 'c.pth', '--work-dir', 'out', '--launcher', 'slurm', '--method', 'exact']
    assert words[-9:] == [str(ROOT / 'tools/prune.py'), *expected]


def test_convert_checkpoint(tiny_source, identical, tmp_path):
    source = tiny_source('timm-deit')
    state = source.state | source.head
    torch.save(state, tmp_path / 'timm.pth')
    run(sys.executable, 'tools/convert_checkpoint.py', tmp_path / 'timm.pth', tmp_path / 'ours.pth')
    tool('convert_checkpoint', tmp_path / 'ours.pth', tmp_path / 'again.pth', '--to', 'timm')
    again = torch.load(tmp_path / 'again.pth', weights_only=True)
    assert identical(again['state_dict'], state)
    assert again['meta']['source'] == str(tmp_path / 'ours.pth')

    torch.save({'state_dict': {k: v + 1 for k, v in state.items()}, 'state_dict_ema': state}, tmp_path / 'run.pth')
    for number, options in ((0, []), (1, ['--weights', 'raw', '--no-head'])):
        output = tool('convert_checkpoint', tmp_path / 'run.pth', tmp_path / 'x.pth', '--to', 'timm', *options)
        assert 'run.pth: holds averages (state_dict_ema) and raw weights (state_dict); takes state_dict' in output
        found = torch.load(tmp_path / 'x.pth', weights_only=True)['state_dict']
        assert identical(found, {k: v + number for k, v in state.items() if not number or k not in source.head})


def test_one_line_for_each_mistake(digits_folder, data_options, tmp_path):
    def said(*words):
        output = tool(*words, status=1)
        errors = [line for line in output.splitlines() if line.startswith('error: ')]
        assert len(errors) == 1
        assert 'Traceback' not in output
        return errors[0]

    assert "config 'no.py' does not exist" in said('train', 'no.py')
    options = ['--cfg-options', 'train_dataloader.dataset.data_root=no/where']
    assert "'no/where" in said('train', RETINANET, '--work-dir', tmp_path, *options)
    assert "checkpoint 'no.pth' does not exist" in said('test', RETINANET, 'no.pth', '--work-dir', tmp_path)
    assert "checkpoint 'no.pth' does not exist" in said('convert_checkpoint', 'no.pth', tmp_path / 'out.pth')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/file').touch()
    assert 'not a digits data set' in said('prepare_digits', '--out', tmp_path / 'full')
    wrong = [f'model.backbone.init_cfg.checkpoint={tmp_path}/cut.pth', 'model.backbone.init_cfg.type=Pretrained']
    (tmp_path / 'cut.pth').write_bytes(b'PK\x03\x04')
    assert 'cut.pth' in said('train', RETINANET, '--work-dir', tmp_path / 'r', '--cfg-options', *data_options, *wrong)
