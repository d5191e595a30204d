"""What the demo asks of which tool, reuses, refuses and demands; the tools themselves are tested elsewhere."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP1 = {'vanilla': 80.0, 'compensated-distilled': 93.75}
IN_PLACE = {'dense': 0.25, 'sliced': 0.2, 'compensated': 0.24}
AP = {  # by detector and backbone
    'retinanet': {'vanilla': (0.10,), 'dense': (0.25,), 'up': (0.24,)},
    'mask-rcnn': {'up': (0.30, 0.25)},
}


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def commands(demo, monkeypatch):
    """Stands for the tools: records each command and leaves behind what they would."""
    seen = []

    def run(title, command):
        seen.append(command)
        folder = Path(command[command.index('--work-dir') + 1])
        name = {'tools/compare_classifiers.py': 'compare.json', 'tools/compare_consistency.py': 'contrast.json'}
        name['tools/prune.py'] = 'report.json'
        content = {'rows': [{'key': key, 'mean': top1} for key, top1 in TOP1.items()]}
        if command[0] == 'tools/compare_detectors.py':
            found = AP[folder.name]
            rows = [{'name': b, 'mean': dict(zip(('bbox_mAP', 'segm_mAP'), aps))} for b, aps in found.items()]
            content = {'rows': rows}
        if command[0] == 'tools/prune.py':
            content = {'held_out': {key: {'coco/bbox_mAP': ap} for key, ap in IN_PLACE.items()}}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name.get(command[0], 'detectors.json')).write_text(json.dumps(content))

    monkeypatch.setattr(demo, 'run', run)
    return seen


@pytest.fixture
def start(demo, commands, monkeypatch, tmp_path):
    """``start(*words)``: the demo with its tools and page replaced; what it wrote the page from."""
    pages = []
    monkeypatch.setattr('upvit_mm.data.prepare.prepare_digits', lambda folder, *settings: None)
    monkeypatch.setattr(demo, 'sha256_of', lambda path: str(path))
    monkeypatch.setattr('upvit_mm.compare.page.write_page', lambda *given: (pages.append(given), given[0])[1])

    def go(*words):
        monkeypatch.setattr(sys, 'argv', ['demo.py', '--work-dir', str(tmp_path / 'demo'), *words])
        demo.main()
        return pages[-1]

    return go


@pytest.mark.parametrize(('threads', 'jobs'), [(1, ['1', '1', '1']), (2, ['2', '3', '1']), (8, ['2', '3', '1'])])
def test_trainings_share_the_threads(start, commands, monkeypatch, threads, jobs):
    monkeypatch.setattr('torch.get_num_threads', lambda: threads)
    start()
    assert [command[command.index('--jobs') + 1] for command in commands if '--jobs' in command] == jobs


def test_the_steps_and_what_they_hand_on(start, commands, tmp_path):
    page, _, detectors, classifiers, consistency, pruning, in_place, notes = start()
    out = tmp_path / 'demo'
    assert page == out / 'report.html'
    assert detectors == [out / 'retinanet', out / 'mask-rcnn']
    assert (classifiers, consistency, pruning) == (out / 'classifiers', out / 'consistency', classifiers / 'pruning')
    assert in_place == out / 'in-place'
    assert 'QUICK' not in notes[0]
    assert [command[0].removeprefix('tools/compare_') for command in commands] == [
        'classifiers.py',
        'consistency.py',
        'detectors.py',
        'detectors.py',
        'tools/prune.py',
    ]
    arch, seed = classifiers / 'pruning/arch.json', 'seed0/epoch_5.pth'
    up = f'{arch},{classifiers}/compensated-distilled/{seed}'
    vanilla = f'{classifiers}/vanilla/arch.json,{classifiers}/vanilla/{seed}'  # of its own logit scales
    dense = f'configs/_base_/archs/pvtv2-micro.json,{classifiers}/dense/epoch_10.pth'
    assert commands[1][2] == dense.partition(',')[2]
    assert f'sliced={arch},{classifiers}/pruning/sliced.pth' in commands[1]
    assert commands[2][-3:] == [f'vanilla={vanilla}', f'dense={dense}', f'up={up}']
    assert commands[3][-1:] == [f'up={up}']
    trained = out / 'retinanet/dense/seed0'
    assert commands[4][1:5] == [f'{trained}/config.py', f'{trained}/epoch_6.pth', '--budget', 'macs=50%@128x128']

    start()  # a tool finds what it finished before by itself; the comparison of tokens would do its minute again
    assert [command[0] for command in commands[5:]] == [commands[k][0] for k in (0, 2, 3, 4)]


def test_quick(start, commands, tmp_path):
    *_, notes = start('--quick')
    assert notes[0].startswith('QUICK run')
    for command in commands:
        assert str(tmp_path / 'demo/quick') in command[command.index('--work-dir') + 1]
        if '--epochs' in command:
            assert command[command.index('--epochs') + 1] == '1'
    classifiers, tokens, *detectors, in_place = commands
    assert in_place[2] == str(tmp_path / 'demo/quick/retinanet/dense/seed0/epoch_1.pth')  # its config has the data
    assert 'val_dataloader.dataset.data_root=data/digits-quick/classification' in classifiers
    annotations = 'data/digits-quick/annotations/instances_val.json'
    assert tokens[-1] == annotations
    for command in detectors:
        assert 'train_dataloader.dataset.data_root=data/digits-quick' in command
        assert f'test_evaluator.ann_file={annotations}' in command
        assert command[-2:] == ['--repeats', '0']
    start()  # beside it, on what the configs name
    assert not any('data_root' in word for command in commands[5:] for word in command)


def test_other_code_starts_anew(demo, start, tmp_path, monkeypatch):
    start()
    start('--quick')
    monkeypatch.setattr(demo, 'code_identity', lambda: ['newer'])
    (tmp_path / 'demo/retinanet/leftover').touch()
    start()
    assert not (tmp_path / 'demo/retinanet/leftover').exists()


def test_a_folder_that_is_not_the_demos_is_kept(start, commands, tmp_path):
    (tmp_path / 'demo').mkdir()
    (tmp_path / 'demo/thesis.txt').touch()
    with pytest.raises(ValueError, match='holds something other than a demo run'):
        start()
    assert (tmp_path / 'demo/thesis.txt').exists()
    assert not commands


def test_targets(demo, start, tmp_path, monkeypatch, capsys):
    start()
    assert demo.missed_targets(tmp_path / 'demo') == []
    monkeypatch.setitem(AP['retinanet'], 'vanilla', (0.23,))
    monkeypatch.setitem(TOP1, 'compensated-distilled', 81.0)
    with pytest.raises(SystemExit) as info:
        start()
    assert str(info.value) == (
        'error: below target: top-1 % of UP 81.000 < 88.0, top-1 % of UP over vanilla 1.000 < 3.0, '
        'retinanet: box AP of UP over vanilla 0.010 < 0.02'
    )
    monkeypatch.setitem(TOP1, 'compensated-distilled', 93.75)
    monkeypatch.setitem(AP['retinanet'], 'vanilla', (0.10,))
    for repaired, share in ((0.23, '0.920'), (0.0, '0.000')):
        monkeypatch.setitem(IN_PLACE, 'compensated', repaired)
        with pytest.raises(
            SystemExit, match=f'target: retinanet pruned in place: share of dense box AP {share} < 0.94'
        ):
            start()
    start('--quick')  # learns too little for any


def test_a_tool_that_fails_ends_the_demo(demo):
    with pytest.raises(SystemExit, match=r'error: tools/prune\.py ended with status 2; .* Run again to continue'):
        demo.run('pruning', ['tools/prune.py', '--no-such-option'])
