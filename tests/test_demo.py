"""How the demo reuses, resumes and refuses; the trainings themselves are tested in test_tools.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from upvit_mm.arch import get_arch

ROOT = Path(__file__).parents[1]
COSTS = {'dense': {'macs@128x128': 48_000_000}, 'pruned': {'macs@128x128': 24_000_000}}
ONE_SHOT = {name: {'top1': top1} for name, top1 in (('dense', 94.0), ('sliced', 90.0), ('compensated', 93.5))}
COMPARED = {
    'one_shot': ONE_SHOT,
    'rows': [{'key': 'vanilla', 'mean': 80.0}, {'key': 'compensated-distilled', 'mean': 93.75}],
}


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__('sys').modules, 'demo', module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def commands(demo, monkeypatch):
    """Stands for the tools: records each command and leaves behind what they would."""
    seen = []

    def run(command):
        seen.append(command)
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True, exist_ok=True)
        if command[0] == 'tools/compare_classifiers.py':
            get_arch('pvtv2-b0').save_json(folder / 'pruning/arch.json')
            (folder / 'compare.json').write_text(json.dumps(COMPARED))
            (folder / 'pruning/report.json').write_text(json.dumps({'costs': COSTS}))
        elif command[0] == 'tools/train.py':
            (folder / 'epoch_1.pth').write_bytes(b'weights')
            (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
        else:
            Path(command[command.index('--metrics') + 1]).write_text('{"metrics": {"coco/bbox_mAP": 0.31}}')

    monkeypatch.setattr(demo, 'run', run)
    return seen


def test_a_step_runs_once_for_the_same_inputs(demo, commands, digits_folder, tmp_path):
    get_arch('pvtv2-b0').save_json(tmp_path / 'arch.json')
    (tmp_path / 'sliced.pth').write_bytes(b'backbone')
    results = {'pruned': {'arch': str(tmp_path / 'arch.json'), 'checkpoint': str(tmp_path / 'sliced.pth')}}
    step = demo.DETECTORS[0]

    def go(**changes):
        settings = dict(work_dir=tmp_path / 'demo', data=digits_folder, results=results, quick=False) | changes
        return demo.run_step(step, **settings)

    first = go()
    assert [c[0] for c in commands] == ['tools/train.py', 'tools/test.py']
    assert '--resume' in commands[0]
    for command in commands:  # evaluated as it was trained
        assert f'model.backbone.init_cfg.checkpoint={tmp_path}/sliced.pth' in command
        assert f'model.backbone.arch={tmp_path}/arch.json' in command
        assert 'model.neck.in_channels=[32,64,160,256]' in command
    assert first['metrics'] == {'coco/bbox_mAP': 0.31}
    assert first['versions']['mmdet']
    assert go() == first
    assert len(commands) == 2

    leftover = tmp_path / 'demo/retinanet/leftover'
    leftover.touch()
    (tmp_path / 'demo/retinanet/result.json').unlink()  # as after a kill: same inputs, no result
    go()
    assert len(commands) == 4
    assert leftover.exists()

    (tmp_path / 'sliced.pth').write_bytes(b'another backbone')
    go()
    assert len(commands) == 6
    assert not leftover.exists()


def test_finetuning_runs_once_for_the_same_checkpoint(demo, commands, digits_folder, tmp_path):
    (tmp_path / 'dense.pth').write_bytes(b'dense')
    results = {'classifier': {'checkpoint': str(tmp_path / 'dense.pth')}}
    first = demo.run_finetuning(tmp_path / 'demo', digits_folder, results, quick=False)
    assert first['metrics'] == {'accuracy/top1': 93.75}
    assert first['checkpoint'].endswith('demo/pruned/compensated-distilled/seed0/epoch_5.pth')
    assert demo.run_finetuning(tmp_path / 'demo', digits_folder, results, quick=False) == first
    assert len(commands) == 1
    (tmp_path / 'dense.pth').write_bytes(b'trained again')
    demo.run_finetuning(tmp_path / 'demo', digits_folder, results, quick=False)
    assert len(commands) == 2


def test_a_folder_that_is_not_the_demos_is_kept(demo, commands, digits_folder, tmp_path):
    (tmp_path / 'classifier').mkdir()
    (tmp_path / 'classifier/epoch_100.pth').touch()
    with pytest.raises(ValueError, match='holds something else than a demo run'):
        demo.run_step(demo.CLASSIFIER, tmp_path, digits_folder, {}, quick=False)
    assert (tmp_path / 'classifier/epoch_100.pth').exists()
    assert not commands


def test_targets(demo):
    step = demo.DETECTORS[1]
    assert demo.missed_targets(step, {'metrics': {'coco/bbox_mAP': 0.31, 'coco/segm_mAP': 0.25}}) == {}
    missed = demo.missed_targets(step, {'metrics': {'coco/bbox_mAP': 0.31, 'coco/segm_mAP': 0.2}})
    assert missed == {'coco/segm_mAP': '0.2 < 0.25'}


def test_report(demo, digits_folder, tmp_path):
    import pickle

    import torch

    metrics = {'accuracy/top1': 93.25, 'coco/bbox_mAP': 0.34, 'coco/bbox_mAP_50': 0.6}
    results = {
        name: {'metrics': metrics, 'seconds': 61, 'command': f'python train {name}'}
        for name in ('classifier', 'pruned', 'retinanet', 'mask-rcnn')
    }
    results['pruned'] |= {'costs': COSTS, 'one_shot': ONE_SHOT, 'vanilla': 80.0, 'epochs': 5}
    instances = dict(bboxes=torch.tensor([[1.0, 2, 30, 40]]), labels=torch.tensor([3]), scores=torch.tensor([0.9]))
    for name in ('retinanet', 'mask-rcnn'):
        (tmp_path / name).mkdir()
        dumped = [{'img_id': i, 'pred_instances': instances} for i in (1, 2)]
        (tmp_path / name / 'predictions.pkl').write_bytes(pickle.dumps(dumped))
    demo.write_report(tmp_path, digits_folder, results, quick=True)
    report = (tmp_path / 'report.md').read_text()
    assert '| retinanet | 93.250 | 0.340 | 0.600 |' in report
    assert 'python train mask-rcnn' in report
    assert 'QUICK' in report
    assert '24.0 M multiply-accumulates at 128 px, dense 48.0 M' in report
    assert '| vanilla of the pruned widths, from scratch, 5 epochs | 80.0 |' in report
    assert '| UP, compensated, distilled, 5 epochs | 93.2 |' in report
    assert json.loads((tmp_path / 'results.json').read_text()) == results
    assert (tmp_path / 'detections.png').read_bytes().startswith(b'\x89PNG')
